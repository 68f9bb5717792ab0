"""Stops a process at an exact place between two of its durable steps.

A durable step changes what survives the process: a commit that wrote something, a Redis command that changed something, a mail
handed over. `boundaries` sees them where the libraries speak to the servers, so the code under test knows nothing of it and may do
its work in other steps tomorrow.

Steps of one role are counted together, whichever of its processes takes them: a step counts once it is done. Before step n is when
n - 1 are done and a process is about to change something; after it is when the server has done it and the process does not know
yet; midway is when half of what belongs together was sent.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import threading
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path


class Moment(StrEnum):
    BEFORE = "before"
    MIDWAY = "midway"
    AFTER = "after"


class Action(StrEnum):
    KILL = "kill"
    FREEZE = "freeze"
    """Stops the process until it is sent SIGCONT; it then goes on with the knowledge that it had."""


@dataclass(frozen=True, slots=True)
class Stop:
    """A place, and the action on the first process of the role that reaches it."""

    role: str
    step: int
    moment: Moment
    action: Action = Action.KILL
    label: str = ""
    """If not empty, only steps with this label are counted."""

    def __str__(self) -> str:
        action = "dies" if self.action is Action.KILL else "freezes"
        return f"{self.role} {action} {self.moment} step {self.step} {self.label}".rstrip()


@dataclass(frozen=True, slots=True)
class Line:
    """One line of the trace: a completed step, or a stop that happened, with its index in the scenario."""

    role: str
    process: int
    label: str
    detail: str
    moment: Moment | None = None
    stop: int | None = None

    def __str__(self) -> str:
        what = self.label if self.stop is None else f"*** STOPPED {self.moment} {self.label}"
        return f"{self.role:>12}/{self.process:<4} {what}  {self.detail}".rstrip()


_HAPPENED = 1 << 60


class Ledger:
    """Counts the steps of all processes of one pipeline. Each process opens the files itself: a lock belongs to an open file."""

    def __init__(self, folder: Path) -> None:
        self._counters = os.open(folder / "counters", os.O_RDWR | os.O_CREAT, 0o600)
        self._trace = os.open(folder / "trace", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def close(self) -> None:
        os.close(self._counters)
        os.close(self._trace)

    def done(self, line: Line, stops: Iterable[int]) -> dict[int, int]:
        """Counts a completed step for these stops, and returns the counts."""
        with _Locked(self._counters):
            counts = {stop: self._get(stop) + 1 for stop in stops if self._get(stop) != _HAPPENED}
            for stop, count in counts.items():
                self._set(stop, count)
            self._write(line)
        return counts

    def happens(self, stop: int, line: Line, *, after: int | None = None) -> bool:
        """Records the stop. False if it has happened before or, with `after`, if another number of steps is done."""
        with _Locked(self._counters):
            count = self._get(stop)
            if count == _HAPPENED or (after is not None and count != after):
                return False
            self._set(stop, _HAPPENED)
            self._write(line)
        return True

    def _write(self, line: Line) -> None:
        os.write(self._trace, json.dumps(asdict(line)).encode() + b"\n")

    def _get(self, index: int) -> int:
        return int.from_bytes(os.pread(self._counters, 8, 8 * index))

    def _set(self, index: int, value: int) -> None:
        os.pwrite(self._counters, value.to_bytes(8), 8 * index)


_THREADS = threading.Lock()
"""Keeps the threads of a process apart: they share the open file and with it the lock."""


class _Locked:
    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def __enter__(self) -> None:
        _THREADS.acquire()
        fcntl.flock(self._descriptor, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        _THREADS.release()


def lines(folder: Path) -> list[Line]:
    """The trace so far."""
    try:
        raw = (folder / "trace").read_bytes()
    except FileNotFoundError:
        return []
    # What follows the last line break is still being written.
    return [Line(**json.loads(line)) for line in raw.split(b"\n")[:-1]]


class Failpoints:
    """The failpoints of one process."""

    def __init__(self, folder: Path, role: str, process: int, stops: Sequence[Stop]) -> None:
        self._ledger = Ledger(folder)
        self._role = role
        self._process = process
        self._stops = [(index, stop) for index, stop in enumerate(stops) if stop.role == role]
        self._idle: set[str] = set()
        """Labels of operations that changed nothing the last time, such as polls that found no work: they are no steps."""

    def begins(self, label: str, detail: str = "", *, parts: int = 1, take: bool = False) -> bool:
        """Is called before an operation that may be a step. True: the caller does half of it and calls `halfway`.

        What only looks for work is passed over, a `take` or what found none the last time, unless a stop names it.
        """
        for index, stop in self._matching(label):
            if stop.moment is Moment.AFTER or (not stop.label and (take or label in self._idle)):
                continue
            line = Line(self._role, self._process, label, detail, stop.moment, index)
            if self._ledger.happens(index, line, after=stop.step - 1):
                if stop.moment is Moment.MIDWAY and parts > 1:
                    return True
                _do(stop.action)
        return False

    def halfway(self) -> None:
        """Kills the process, whatever the action of the stop is: nothing can go on from half an operation."""
        _do(Action.KILL)

    def ends(self, label: str, detail: str = "", *, changed: bool = True) -> None:
        """Is called when the server has done the operation and the process does not know it yet."""
        if not changed:
            self._idle.add(label)
            return
        self._idle.discard(label)
        matching = self._matching(label)
        counts = self._ledger.done(
            Line(self._role, self._process, label, detail),
            [index for index, _ in matching],
        )
        for index, stop in matching:
            if stop.moment is Moment.AFTER and stop.step == counts.get(index):
                line = Line(self._role, self._process, label, detail, stop.moment, index)
                if self._ledger.happens(index, line):
                    _do(stop.action)

    def _matching(self, label: str) -> list[tuple[int, Stop]]:
        return [(index, stop) for index, stop in self._stops if stop.label in ("", label)]


def _do(action: Action) -> None:
    os.kill(os.getpid(), signal.SIGKILL if action is Action.KILL else signal.SIGSTOP)
