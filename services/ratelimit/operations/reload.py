"""The rules in force, which follow their file without a restart."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from pathlib import Path

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

    def current(self) -> RuleSet:
        return self._current

    async def follow(self, stopping: asyncio.Event) -> None:
        """Reads the file again when it changes and on SIGHUP, until `stopping` is set."""
        asked = asyncio.Event()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, asked.set)
        stop = asyncio.create_task(stopping.wait())
        try:
            while not stop.done():
                ask = asyncio.create_task(asked.wait())
                await asyncio.wait((stop, ask), timeout=self._look_every_seconds, return_when=asyncio.FIRST_COMPLETED)
                ask.cancel()
                if asked.is_set() or _fingerprint(self._path) != self._seen:
                    asked.clear()
                    await self._reload()
        finally:
            stop.cancel()

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
