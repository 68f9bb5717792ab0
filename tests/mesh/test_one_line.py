"""The services are listed in one file, from which every other list is derived."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

from mesh.services import SERVICES

REPOSITORY = Path(__file__).resolve().parents[2]

EXCEPTED = re.compile(
    # Prose, and files generated from the contracts, the manifests and the settings.
    r"(docs|examples|gen)/|.*\.md$|uv\.lock$|docker-compose\.yml$|kit/runtime/setting_names\.py$"
    r"|deploy/process_settings\.py$"
    # Contracts, and tests and benchmarks of several services together.
    r"|proto/storymesh/|tests/|benchmarks/"
)
MOST = 2
"""Services that a file may name, for example because one calls the other. A file with a third is a list."""


def named(name: str) -> set[str]:
    """The services that a file outside their folders names in code: as a string, a key or a module."""
    text = (REPOSITORY / name).read_text(errors="replace")
    return {
        service
        for service in SERVICES
        if not name.startswith(f"services/{service}/")
        and re.search(
            rf"""(["']){service}(-[a-z0-9-]+)?\1|^\s*{service}:|services[./]{service}\b""", text, re.MULTILINE
        )
    }


def test_one_file_lists_the_services() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True).stdout
    files = [name for name in listed.splitlines() if not EXCEPTED.match(name) and (REPOSITORY / name).is_file()]
    assert [name for name in files if len(named(name)) > MOST] == ["mesh/services.py"]
