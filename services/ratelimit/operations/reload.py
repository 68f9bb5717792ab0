"""The rules in force, reloaded from their file without a restart."""

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
    """The rules in force. Raises BadRules for a bad file at the start; later, a bad file leaves the present rules in force."""

    def __init__(self, path: Path, load: Load, *, look_every_seconds: float = 1.0) -> None:
        self._path = path
        self._load = load
        self._look_every_seconds = look_every_seconds
        # Taken before the file is read, so that a change during the read is noticed.
        self._seen = _fingerprint(path)
        self._current = load(path)
        self._asked = False

    def current(self) -> RuleSet:
        return self._current

    async def follow(self, stopping: asyncio.Event) -> None:
        """Reload the file when it changes and on SIGHUP, until `stopping` is set."""
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
    """The file's identity; None if there is no file. Follows links, because Kubernetes swaps mounted files by links."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
