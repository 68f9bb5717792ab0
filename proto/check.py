"""Checks the contracts: gen/ is up to date, buf finds no fault, and nothing breaks callers built from the last release.

`baseline.binpb` is the last release's descriptor set. Only the commit of a release replaces it, by `make release-baseline`.

Usage: python proto/check.py
"""

from __future__ import annotations

import filecmp
import subprocess
import sys
import tempfile
from pathlib import Path

from generate import PROTO, generate, image

from mesh import contract

ROOT = PROTO.parent
DESCRIPTORS = ROOT / "gen/descriptors.binpb"
BASELINE = PROTO / "baseline.binpb"


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        fresh, contracts = Path(scratch, "gen"), Path(scratch, "contracts.binpb")
        fresh.mkdir()
        contracts.write_bytes(image(generate(fresh)))
        stale = sorted(differences(filecmp.dircmp(ROOT / "gen", fresh, ignore=["__pycache__"])))
        if stale:
            sys.exit("\n  ".join(["gen/ is not what the contracts say; run: make gen", *stale]))
        buf("lint", str(contracts))
        breaking(DESCRIPTORS)


def differences(found: filecmp.dircmp[str]) -> list[str]:
    """Paths of files that differ between two folders or exist in one only."""
    here = [f"{found.left}/{name}" for name in [*found.left_only, *found.right_only, *found.diff_files]]
    return here + [path for below in found.subdirs.values() for path in differences(below)]


def breaking(descriptors: Path) -> None:
    """Ends the process with an error when the descriptor set breaks callers that were built from the last release."""
    buf("breaking", str(descriptors), "--against", str(BASELINE))
    # buf does not check HTTP bindings.
    if lost := sorted(http_calls(BASELINE) - http_calls(descriptors)):
        sys.exit(
            "\n  ".join(["the last release answered these HTTP calls, and no method is bound to them any more:", *lost])
        )


def http_calls(descriptors: Path) -> set[str]:
    """The HTTP bindings, each as `GET /v1/stories/{story_id} of /storymesh.story.v1.StoryService/GetStory`."""
    return {
        f"{binding.verb} {binding.template} of {method.path}"
        for method in contract.read(descriptors).exposed
        for binding in method.bindings
    }


def buf(*arguments: str) -> None:
    done = subprocess.run([Path(sys.executable).with_name("buf"), *arguments], cwd=ROOT, check=False)
    if done.returncode != 0:
        sys.exit(f"buf {arguments[0]} has found what it lists above")


if __name__ == "__main__":
    main()
