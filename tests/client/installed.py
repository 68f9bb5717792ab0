"""Installs the client's wheel in an environment of its own."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_UV = Path(sys.executable).with_name("uv")


@dataclass(frozen=True)
class Installed:
    wheel: Path
    environment: Path

    @property
    def python(self) -> Path:
        return self.environment / "bin/python"

    @property
    def command(self) -> Path:
        return self.environment / "bin/storymesh"


def install(folder: Path) -> Installed:
    """Builds the wheel and installs it with its dependencies, from uv's cache if that has all of them."""
    build = ("--wheel", "--offline", "--no-build-isolation", "--python", sys.executable, "--out-dir", str(folder))
    _uv("build", *build, str(ROOT / "clients/python"))
    (wheel,) = folder.glob("*.whl")
    installed = Installed(wheel, folder / "environment")
    _uv("venv", "--python", sys.executable, str(installed.environment))
    install = ("pip", "install", "--python", str(installed.python), str(wheel))
    try:
        _uv(*install, "--offline")
    except subprocess.CalledProcessError:
        _uv(*install)
    return installed


def _uv(*arguments: str) -> None:
    subprocess.run([_UV, "--quiet", *arguments], cwd=ROOT, check=True)
