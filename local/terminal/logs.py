"""Print the components' logs, each line under the name of its component."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from local.failures import LocalError
from local.layout import Layout

FOLLOW_SECONDS = 0.2


def paths(layout: Layout, component: str | None) -> list[Path]:
    """The logs to show. Raises LocalError when there is no such log."""
    found = sorted(layout.logs.glob("*.log")) if layout.logs.is_dir() else []
    if component is None:
        if not found:
            raise LocalError(f"There are no logs in {layout.logs}: no mesh has run in {layout.root} yet.")
        return found
    wanted = layout.log(component)
    if wanted not in found:
        names = ", ".join(path.stem for path in found) or "none yet"
        raise LocalError(f"{component} has no log in {layout.logs}; there are: {names}.")
    return [wanted]


def show(layout: Layout, component: str | None, *, lines: int, follow: bool, output: TextIO) -> None:
    """Print the last `lines` of each log, then, if asked, what is added until interrupted."""
    shown = {path: _last(path, lines) for path in paths(layout, component)}
    width = max(len(path.stem) for path in shown)
    positions: dict[Path, int] = {}
    for path, (text, position) in shown.items():
        positions[path] = position
        _print(path, text, width, output)
    while follow:
        time.sleep(FOLLOW_SECONDS)
        for path in paths(layout, component):
            for line in _added(path, positions):
                _print(path, [line], width, output)


def _print(path: Path, lines: list[str], width: int, output: TextIO) -> None:
    for line in lines:
        print(f"{path.stem:<{width}} | {line}", file=output, flush=True)


def _last(path: Path, lines: int) -> tuple[list[str], int]:
    content = path.read_bytes()
    complete = content.rfind(b"\n") + 1
    return content[:complete].decode(errors="replace").splitlines()[-lines:] if lines else [], complete


def _added(path: Path, positions: dict[Path, int]) -> Iterator[str]:
    """Complete lines since the last look. A file that became shorter is a new run's."""
    try:
        size = path.stat().st_size
        if size < positions.get(path, 0):
            positions[path] = 0
        with path.open("rb") as file:
            file.seek(positions.get(path, 0))
            content = file.read()
    except FileNotFoundError:
        return
    complete = content.rfind(b"\n") + 1
    positions[path] = positions.get(path, 0) + complete
    yield from content[:complete].decode(errors="replace").splitlines()
