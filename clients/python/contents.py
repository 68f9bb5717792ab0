"""Build hook that selects the wheel's files: the client and its stubs, without the definitions of options and events."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

ROOTS = ("storymesh_client", "gen/storymesh")
NOT_FOR_CALLERS = ("storymesh/options", "storymesh/events")
SUFFIXES = {".py", ".pyi", ".typed"}


class Contents(BuildHookInterface[Any]):
    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        repository = Path(self.root).resolve().parents[1]
        for root in ROOTS:
            package = repository / root
            for file in sorted(package.rglob("*")):
                name = file.relative_to(package.parent).as_posix()
                if file.suffix in SUFFIXES and not name.startswith(NOT_FOR_CALLERS):
                    build_data["force_include"][str(file)] = name
