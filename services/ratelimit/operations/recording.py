"""Recordings of calls for a bounded time and number, and candidate rules that are tried with them.

What is recorded are descriptors, which hold addresses and user ids: an hour after its end a recording is gone.
"""

from __future__ import annotations

import asyncio
import json
import logging
import tempfile
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

from kit.errors import InvalidArgument, Violation
from kit.runtime.clock import Clock
from kit.runtime.loops import every

from ..errors import RecordingNotFound
from ..model import MICROSECONDS
from ..model.administration import Act, Change, Recording
from ..model.rules import RuleSet
from ..store.administration import AdminStore
from ..store.rules_file import BadRules
from .explaining import Comparison, compare, recorded_lines
from .planning import Check

log = logging.getLogger(__name__)

LONGEST = timedelta(hours=1)
MOST_CALLS = 5000
_LONGEST_LINE = 4096
_EVERY_SECONDS = 1.0
_LONGEST_RETRY_SECONDS = 5.0
_MOST_FAULTS = 50


class Recorder:
    """Takes calls down while there is a recording: the thread that checks writes, another one copies what was written."""

    def __init__(self) -> None:
        self.left = 0
        """How many more calls are to be recorded; 0 while there is no recording, as is most common."""

        self._calls: list[tuple[int, Check]] = []

    def add(self, at: int, checks: Iterable[Check]) -> None:
        """`at` is in microseconds since 1970."""
        for check in checks:
            if self.left <= 0:
                return
            self.left -= 1
            self._calls.append((at, check))

    def taken(self) -> list[str]:
        """A line for each call since the last time; those with very long descriptors are left out."""
        calls, self._calls = self._calls, []
        lines = [_line(at, check) for at, check in calls]
        return [line for line in lines if len(line) <= _LONGEST_LINE]


class Recordings:
    """Begins and ends recordings, keeps this process's recorder to the one that is on, and tries rules with what was recorded."""

    def __init__(
        self,
        store: AdminStore,
        recorder: Recorder,
        rules: Callable[[], RuleSet],
        load: Callable[[Path], RuleSet],
        clock: Clock,
    ) -> None:
        self._store = store
        self._recorder = recorder
        self._rules = rules
        self._load = load
        self._clock = clock

    async def start(self, administrator_id: UUID, ends_at: datetime, most: int, reason: str) -> Recording:
        """Begin a recording, in place of the one before. Raises InvalidArgument; RedisError and OSError."""
        now = self._clock()
        if not now < ends_at <= now + LONGEST:
            raise InvalidArgument([Violation("expire_time", "is not within one hour from now", "TIME_OUT_OF_RANGE")])
        recording = Recording(most or MOST_CALLS, ends_at)
        told = f"{recording.most} calls at most"
        await self._store.record_calls(recording, Change(Act.RECORDING_STARTED, administrator_id, reason, told))
        log.info("calls are recorded, by %s: %s", administrator_id, reason)
        await self.copy()
        return recording

    async def stop(self, administrator_id: UUID, reason: str) -> Recording:
        """End the recording. Raises RecordingNotFound; RedisError and OSError."""
        await self.copy()
        stopped = await self._store.stop_recording(Change(Act.RECORDING_STOPPED, administrator_id, reason, ""))
        if stopped is None:
            raise RecordingNotFound
        log.info("calls are recorded no more, by %s: %s", administrator_id, reason)
        await self.copy()
        return stopped

    async def compare(self, text: str) -> Comparison:
        """Decide the recorded calls by the rules in force and by these. Raises InvalidArgument and RecordingNotFound; RedisError
        and OSError."""
        await self.copy()
        calls = await self._store.calls()
        candidate = await asyncio.to_thread(self._loaded, text)
        if not calls:
            raise RecordingNotFound
        return await asyncio.to_thread(_compared, self._rules(), candidate, calls)

    async def follow(self, stopping: asyncio.Event) -> None:
        """Copy what was recorded each second until `stopping` is set."""
        await every(
            _EVERY_SECONDS,
            stopping,
            self.copy,
            failure="calls cannot be recorded now",
            retry=lambda failures: min(float(failures), _LONGEST_RETRY_SECONDS),
        )

    async def copy(self) -> None:
        """Copy what was recorded, and see whether more is to be. Raises RedisError and OSError."""
        if calls := self._recorder.taken():
            await self._store.add_calls(calls)
        found = await self._store.recording()
        on = found is not None and self._clock() < found.ends_at
        self._recorder.left = max(0, found.most - found.count) if found is not None and on else 0

    def _loaded(self, text: str) -> RuleSet:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rules.yaml"
            path.write_text(text, encoding="utf-8")
            try:
                return self._load(path)
            except BadRules as error:
                faults = str(error).replace(f"{folder}/", "").splitlines()[:_MOST_FAULTS]
                raise InvalidArgument([Violation("rules", fault, "RULES_INVALID") for fault in faults]) from None


def _compared(rules: RuleSet, candidate: RuleSet, lines: Sequence[str]) -> Comparison:
    calls = sorted(recorded_lines(lines, "recording"), key=lambda call: call.at)
    return compare(rules, candidate, calls)


def _line(at: int, check: Check) -> str:
    descriptors = [{"entries": each.entries, "hits": each.hits} for each in check.descriptors]
    return json.dumps({"at": at / MICROSECONDS, "domain": check.domain, "descriptors": descriptors})
