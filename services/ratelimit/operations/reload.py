"""The rules in force, reloaded from their file without a restart."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from opentelemetry.metrics import Observation

from kit.runtime.loops import every
from kit.runtime.metrics import Metrics

from ..model.rules import RuleSet
from ..store.rules_file import BadRules

log = logging.getLogger(__name__)

Load = Callable[[Path], RuleSet]
"""Raises BadRules."""

_Fingerprint = tuple[tuple[str, int, int, int], ...]


class LiveRules:
    """The rules in force. Raises BadRules for a bad file at the start; later, a bad file leaves the present rules in force."""

    def __init__(self, path: Path, load: Load, *, look_every_seconds: float = 1.0) -> None:
        self._path = path
        self._load = load
        self._look_every_seconds = look_every_seconds
        # Taken before the file is read, so that a change during the read is noticed.
        self._seen = _fingerprint(path)
        self._current = load(path)
        self._fault = ""
        self._reloads = Counter[str]()
        self._asked = False

    def current(self) -> RuleSet:
        return self._current

    @property
    def faulty(self) -> bool:
        """Whether the file cannot be used, so that older rules are in force."""
        return bool(self._fault)

    async def check(self) -> None:
        """Raises BadRules while the file cannot be used and older rules are in force: a check of health."""
        if self._fault:
            raise BadRules(self._fault)

    def show_in(self, metrics: Metrics) -> None:
        """Show whether the rules in force are the file's, and how often it was read again."""
        metrics.gauge(
            "storymesh_rate_limit_rules_current",
            "Whether the rules in force are those of the file: 1, or 0 while the file cannot be used.",
            lambda: 0 if self._fault else 1,
        )
        metrics.gauge("storymesh_rate_limit_rules", "Rules in force.", lambda: len(self._current.rules))
        metrics.meter.create_observable_counter(
            "storymesh_rate_limit_reloads",
            [lambda _options: [Observation(self._reloads[how], {"outcome": how}) for how in ("taken", "refused")]],
            description="How often the changed file of rules was read.",
        )

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
        except Exception as error:
            # Whatever is wrong with the file, the rules in force stay, and health and metrics say so.
            self._fault = str(error) or type(error).__name__
            self._reloads["refused"] += 1
            log.error("the rules in force stay, because the new ones are unusable: %s", self._fault)
        else:
            self._fault = ""
            self._reloads["taken"] += 1
            log.info("%d rules of %s are in force now", len(self._current.rules), self._path)


def _fingerprint(path: Path) -> _Fingerprint | None:
    """The identity of the file, or of each file of the folder; None if there is none.

    Follows links, because Kubernetes swaps mounted files by links.
    """
    try:
        files = sorted(path.iterdir()) if path.is_dir() else [path]
        statuses = [(file.name, file.stat()) for file in files]
    except OSError:
        return None
    return tuple((name, status.st_mtime_ns, status.st_size, status.st_ino) for name, status in statuses)
