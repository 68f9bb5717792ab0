"""The logs of all components as one, merged by time."""

import itertools
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from local.failures import LocalError
from local.layout import Layout
from local.terminal import log_lines
from local.terminal.log_lines import LogLine

FOLLOW_SECONDS = 0.2
DEFAULT_LINES = 100


@dataclass(frozen=True)
class Selection:
    """The lines to show."""

    components: Sequence[str] = ()
    """Names of components; empty for all."""

    lines: int | None = None
    """Number of latest lines, over all logs together. None means `DEFAULT_LINES`, or all lines of a trace if one is given."""

    trace: str = ""
    """A trace id or a `traceparent`; empty for all lines."""


def show(layout: Layout, selection: Selection, *, as_json: bool, follow: bool, output: TextIO) -> None:
    """Print the latest lines in order of time; if `follow`, then also new lines until interrupted.

    Raises LocalError if there is no such log, if the trace id is malformed, or if no line belongs to the trace.
    """
    trace = _trace(selection.trace)
    number = DEFAULT_LINES if selection.lines is None and not trace else selection.lines
    logs = {path: _Log(path, trace) for path in _paths(layout, selection.components)}
    width = max(len(path.stem) for path in logs)

    def write(lines: Sequence[LogLine]) -> None:
        for line in lines:
            print(line.raw() if as_json else line.readable(width), file=output, flush=follow)

    latest = _merged(log.latest(number) for log in logs.values())
    write(latest if number is None else latest[max(0, len(latest) - number) :])
    if trace and not latest and not follow:
        raise LocalError(
            f"No line of this run or of the one before belongs to the trace {trace}; looked at {layout.logs}/*.log."
        )
    while follow:
        time.sleep(FOLLOW_SECONDS)
        for path in _paths(layout, selection.components):
            logs.setdefault(path, _Log(path, trace))
        write(_merged(log.added() for log in logs.values()))


def _trace(given: str) -> str:
    if not given:
        return ""
    found = log_lines.trace_id(given)
    if found is None:
        raise LocalError(
            f"{given!r} is no trace id: those have 32 hexadecimal digits, as in an answer's header x-trace-id."
        )
    return found


def _merged(logs: Iterable[Sequence[LogLine]]) -> list[LogLine]:
    """The lines of all logs in order of time. The sort is stable, so lines with the same time keep the order of their log."""
    return sorted(itertools.chain.from_iterable(logs), key=lambda line: line.at)


class _Log:
    """The log of one component, read once and then followed. A non-empty `trace` selects the lines that contain it."""

    def __init__(self, path: Path, trace: str) -> None:
        self._path = path
        self._trace = trace
        self._position = 0
        self._at: float | None = None

    def latest(self, number: int | None) -> list[LogLine]:
        """The last `number` lines, None for all. If a trace is given, the log of the previous run is read as well."""
        former = _Log(self._path.with_suffix(".log.1"), self._trace)
        texts = itertools.chain(former._texts() if self._trace else (), self._texts())
        return self._parsed(list(deque(texts, number)))

    def added(self) -> list[LogLine]:
        """The lines since the last read."""
        return self._parsed(list(self._texts()))

    def _parsed(self, texts: Sequence[str]) -> list[LogLine]:
        if not texts:
            return []
        lines = log_lines.parse(self._path.stem, texts, self._at, self._path.stat().st_mtime)
        self._at = lines[-1].at
        return lines

    def _texts(self) -> Iterator[str]:
        """The complete lines after the position. A file that became shorter is a new run's and is read from its beginning."""
        try:
            with self._path.open("rb") as file:
                if file.seek(0, 2) < self._position:
                    self._position = 0
                file.seek(self._position)
                for content in file:
                    if not content.endswith(b"\n"):
                        return
                    self._position += len(content)
                    text = content.decode(errors="replace").rstrip("\r\n")
                    if self._trace in text.lower():
                        yield text
        except FileNotFoundError:
            return


def _paths(layout: Layout, components: Sequence[str]) -> list[Path]:
    found = sorted(layout.logs.glob("*.log")) if layout.logs.is_dir() else []
    if not found:
        raise LocalError(f"There are no logs in {layout.logs}: no mesh has run in {layout.root} yet.")
    if missing := sorted(set(components) - {path.stem for path in found}):
        names = ", ".join(path.stem for path in found)
        raise LocalError(f"{', '.join(missing)} has no log in {layout.logs}; there are: {names}.")
    return [path for path in found if not components or path.stem in components]
