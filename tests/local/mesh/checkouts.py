"""Copies of this checkout in other places; their files are hard links, which makes copying fast."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from local.settings import REPOSITORY

CODE = (
    "Makefile",
    "pyproject.toml",
    "uv.lock",
    "README.md",
    "local",
    "mesh",
    "deploy",
    "services",
    "kit",
    "gen",
    "envoy",
    "clients",
    "storymesh_client",
)


def _link(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        # The folder is on another disk, or the system forbids hard links to files of other users.
        shutil.copy2(source, target)


def copy_code(place: Path, copy_file: Callable[[str, str], object] = _link) -> Path:
    """Copies the code that a mesh needs, without installed packages. `copy_file` takes the source and the target."""
    place.mkdir(parents=True)
    for name in CODE:
        if (REPOSITORY / name).is_dir():
            leave_out = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPOSITORY / name, place / name, copy_function=copy_file, ignore=leave_out)
        else:
            copy_file(str(REPOSITORY / name), str(place / name))
    return place


def copy_installed(venv: Path, code: Path) -> None:
    """Creates `venv` as `make setup` would for the checkout in `code`."""
    shutil.copytree(
        sys.prefix, venv, symlinks=True, copy_function=_link, ignore=shutil.ignore_patterns("bench", "cache")
    )
    for path in venv.glob("lib/python*/site-packages/_storymesh*.pth"):
        write(path, "\n".join(str(code / folder) for folder in (".", "gen")))
    stamps = [venv / ".ready", venv / ".local-llm"]
    for stamp in [stamp for stamp in stamps if stamp.exists()]:
        write(stamp, "")


def write(path: Path, text: str) -> None:
    """Writes a new file instead of changing the old one, which is a hard link to a file of this checkout."""
    path.unlink(missing_ok=True)
    path.write_text(text)
