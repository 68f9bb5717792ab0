"""The pre-commit hooks run the repository's own tools and need no network."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TOOLS = Path(sys.executable).parent


class Checkout:
    """A repository with the files of this one that the hooks for Python need."""

    def __init__(self, folder: Path, home: Path) -> None:
        self.folder = folder
        # Nothing listens there, so every download fails.
        nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "PIP_INDEX_URL"), "http://127.0.0.1:1")
        self._environment = {
            **os.environ,
            **nowhere,
            "PATH": f"{TOOLS}{os.pathsep}{os.environ['PATH']}",
            "PRE_COMMIT_HOME": str(home),
            "GIT_CONFIG_GLOBAL": os.devnull,
            "GIT_CONFIG_SYSTEM": os.devnull,
        }

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, cwd=self.folder, env=self._environment, capture_output=True, text=True, check=False
        )

    def commit(self, name: str, text: str) -> subprocess.CompletedProcess[str]:
        (self.folder / name).write_text(text)
        assert self.run("git", "add", name).returncode == 0
        person = ("-c", "user.name=Ada", "-c", "user.email=ada@example.org")
        return self.run("git", *person, "commit", "--message", f"Write {name}")


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    folder = tmp_path / "checkout"
    folder.mkdir()
    (folder / "clients/python").mkdir(parents=True)
    for name in (
        "Makefile",
        "pyproject.toml",
        "clients/python/pyproject.toml",
        "uv.lock",
        ".pre-commit-config.yaml",
    ):
        shutil.copy(ROOT / name, folder / name)
        os.utime(folder / name, (0, 0))  # older than what is installed, so that make installs nothing
    (folder / ".venv").symlink_to(TOOLS.parent)
    made = Checkout(folder, tmp_path / "home")
    assert made.run("git", "init", "--quiet").returncode == 0
    # pre-commit refuses to run while its configuration is not staged.
    assert made.run("git", "add", ".pre-commit-config.yaml").returncode == 0
    installed = made.run("pre-commit", "install")
    assert installed.returncode == 0, installed.stderr
    return made


def test_a_commit_of_badly_formed_code_is_held_back_and_the_code_mended(checkout: Checkout) -> None:
    held = checkout.commit("badly.py", '"""A module."""\n\nNAMES = [ \'ada\',\n "bob" ]\n')
    assert held.returncode != 0
    mended = (checkout.folder / "badly.py").read_text()
    assert mended == '"""A module."""\n\nNAMES = ["ada", "bob"]\n', held.stderr
    done = checkout.commit("badly.py", mended)
    assert done.returncode == 0, done.stderr


def test_a_fault_that_cannot_be_mended_holds_a_commit_back(checkout: Checkout) -> None:
    held = checkout.commit("faulty.py", '"""A module."""\n\nprint(unknown)\n')
    assert held.returncode != 0
    assert "F821" in held.stdout + held.stderr


def test_contracts_are_checked_when_they_change(checkout: Checkout) -> None:
    listed = checkout.run("pre-commit", "run", "contracts", "--files", "README.md")
    assert (listed.returncode, "Skipped" in listed.stdout) == (0, True), listed.stdout
    ran = checkout.run("make", "--dry-run", "contracts")
    assert "proto/check.py" in ran.stdout
