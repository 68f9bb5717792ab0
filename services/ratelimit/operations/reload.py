"""The rules in force, reloaded from their file without a restart."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import signal
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from opentelemetry.metrics import Observation

from kit.runtime.clock import Clock, system_clock
from kit.runtime.loops import every
from kit.runtime.metrics import Metrics

from ..model.rules import RuleSet
from ..store.rules_file import BadRules

log = logging.getLogger(__name__)

_FAULTS_TOLD = 20_000
"""Characters of a fault that are told to administrators."""

Load = Callable[[Path], RuleSet]
"""Raises BadRules."""

_Fingerprint = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True)
class LoadedRules:
    """The rules in force, where they come from, and whether later ones were refused."""

    rules: RuleSet
    source: Path
    digest: str
    """SHA-256 of the files, in hexadecimal."""

    loaded_at: datetime
    fault: str
    """Why the files as they are now cannot be used; empty if they are in force."""

    faulted_at: datetime | None
    """When a change was refused last."""


class LiveRules:
    """The rules in force. Raises BadRules for a bad file at the start; later, a bad file leaves the present rules in force."""

    def __init__(self, path: Path, load: Load, *, look_every_seconds: float = 1.0, clock: Clock = system_clock) -> None:
        self._path = path
        self._load = load
        self._look_every_seconds = look_every_seconds
        # Taken before the file is read, so that a change during the read is noticed.
        self._seen = _fingerprint(path)
        self._clock = clock
        self._fault = ""
        self._faulted_at: datetime | None = None
        self._digest, self._current = _digest(path), load(path)
        self._loaded_at = clock()
        self._reloads = Counter[str]()
        self._asked = False

    def current(self) -> RuleSet:
        return self._current

    def loaded(self) -> LoadedRules:
        """The rules in force and what is known of their files."""
        return LoadedRules(
            self._current, self._path, self._digest, self._loaded_at, self._fault[:_FAULTS_TOLD], self._faulted_at
        )

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
            digest = await asyncio.to_thread(_digest, self._path)
            self._current = await asyncio.to_thread(self._load, self._path)
        except Exception as error:
            # Whatever is wrong with the file, the rules in force stay, and health and metrics say so.
            self._fault = str(error) or type(error).__name__
            self._faulted_at = self._clock()
            self._reloads["refused"] += 1
            log.error("the rules in force stay, because the new ones are unusable: %s", self._fault)
        else:
            self._fault = ""
            self._digest, self._loaded_at = digest, self._clock()
            self._reloads["taken"] += 1
            log.info("%d rules of %s are in force now", len(self._current.rules), self._path)


def _digest(path: Path) -> str:
    """SHA-256 of the file, or of the folder's files in the order of their names; empty if they cannot be read."""
    total = hashlib.sha256()
    try:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            if file.is_file():
                total.update(file.read_bytes())
    except OSError:
        return ""
    return total.hexdigest()


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
