"""Checkouts in odd places, set up at once: a copy of this one, whose files are links to the same files."""

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
        # Another disk, or a system that keeps users from linking files of others.
        shutil.copy2(source, target)


def copy_code(place: Path, copy_file: Callable[[str, str], object] = _link) -> Path:
    """What a mesh runs from, without what is installed. `copy_file` makes the second of two paths what the first is."""
    place.mkdir(parents=True)
    for name in CODE:
        if (REPOSITORY / name).is_dir():
            leave_out = shutil.ignore_patterns("__pycache__")
            shutil.copytree(REPOSITORY / name, place / name, copy_function=copy_file, ignore=leave_out)
        else:
            copy_file(str(REPOSITORY / name), str(place / name))
    return place


def copy_installed(venv: Path, code: Path) -> None:
    """Make `venv` what `make setup` would make of it for the checkout in `code`."""
    shutil.copytree(
        sys.prefix, venv, symlinks=True, copy_function=_link, ignore=shutil.ignore_patterns("bench", "cache")
    )
    for path in venv.glob("lib/python*/site-packages/_storymesh*.pth"):
        write(path, "\n".join(str(code / folder) for folder in (".", "gen")))
    stamps = [venv / ".ready", venv / ".local-llm"]
    for stamp in [stamp for stamp in stamps if stamp.exists()]:
        write(stamp, "")


def write(path: Path, text: str) -> None:
    """Not in place: the file of this very checkout is the same one."""
    path.unlink(missing_ok=True)
    path.write_text(text)
