"""Checks the contracts: gen/ is fresh, buf finds no fault, and nothing breaks what callers rely on.

Usage: python proto/check.py
"""

from __future__ import annotations

import filecmp
import subprocess
import sys
import tempfile
from pathlib import Path

from generate import PROTO, generate, image

ROOT = PROTO.parent
DESCRIPTORS = "gen/descriptors.binpb"


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        fresh, contracts = Path(scratch, "gen"), Path(scratch, "contracts.binpb")
        fresh.mkdir()
        contracts.write_bytes(image(generate(fresh)))
        stale = sorted(differences(filecmp.dircmp(ROOT / "gen", fresh, ignore=["__pycache__"])))
        if stale:
            sys.exit("\n  ".join(["gen/ is not what the contracts say; run: make gen", *stale]))
        buf("lint", str(contracts))
        former = Path(scratch, "former.binpb")
        revision = baseline()
        if revision and (descriptors := git("show", f"{revision}:{DESCRIPTORS}")):
            former.write_bytes(descriptors)
            buf("breaking", str(ROOT / DESCRIPTORS), "--against", str(former))


def differences(found: filecmp.dircmp[str]) -> list[str]:
    """Paths that differ or are on one side only."""
    here = [f"{found.left}/{name}" for name in [*found.left_only, *found.right_only, *found.diff_files]]
    return here + [path for below in found.subdirs.values() for path in differences(below)]


def baseline() -> str:
    """The revision whose callers must not break: the newest release, before the first one the previous commit."""
    return (
        (git("describe", "--tags", "--abbrev=0") or git("rev-parse", "--verify", "--quiet", "HEAD~1")).decode().strip()
    )


def git(*arguments: str) -> bytes:
    """What git prints; empty when it has no answer, as in an archive without history."""
    done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)
    return done.stdout if done.returncode == 0 else b""


def buf(*arguments: str) -> None:
    done = subprocess.run([Path(sys.executable).with_name("buf"), *arguments], cwd=ROOT, check=False)
    if done.returncode != 0:
        sys.exit(f"buf {arguments[0]} has found what it lists above")


if __name__ == "__main__":
    main()
