"""The rules in force, which follow their file without a restart."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from pathlib import Path

from kit.runtime.loops import every

from ..model.rules import RuleSet
from ..store.rules_file import BadRules

log = logging.getLogger(__name__)

Load = Callable[[Path], RuleSet]
"""Raises BadRules."""

_Fingerprint = tuple[int, int, int]


class LiveRules:
    """Raises BadRules when the file is unusable at the start; later, bad rules leave those in force as they are."""

    def __init__(self, path: Path, load: Load, *, look_every_seconds: float = 1.0) -> None:
        self._path = path
        self._load = load
        self._look_every_seconds = look_every_seconds
        # Before the reading: a change during it is then seen as one.
        self._seen = _fingerprint(path)
        self._current = load(path)
        self._asked = False

    def current(self) -> RuleSet:
        return self._current

    async def follow(self, stopping: asyncio.Event) -> None:
        """Reads the file again when it changes and on SIGHUP, until `stopping` is set."""
        wake = asyncio.Event()

        def ask() -> None:
            self._asked = True
            wake.set()

        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, ask)
        failure = "the rules in force stay, because their file cannot be looked at now"
        await every(self._look_every_seconds, stopping, self._look, failure=failure, wake=wake)

    async def _look(self) -> None:
        if self._asked or _fingerprint(self._path) != self._seen:
            self._asked = False
            await self._reload()

    async def _reload(self) -> None:
        self._seen = _fingerprint(self._path)
        try:
            self._current = await asyncio.to_thread(self._load, self._path)
        except BadRules as error:
            log.error("the rules in force stay, because the new ones are unusable: %s", error)
        else:
            log.info("%d rules of %s are in force now", len(self._current.rules), self._path)


def _fingerprint(path: Path) -> _Fingerprint | None:
    """None while there is no file. It follows links, by which Kubernetes swaps mounted files."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
