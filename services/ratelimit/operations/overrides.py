"""Grants and bans: made, listed and lifted by administrators, and heeded by every replica within two seconds.

They are rules, merged into those of the files: a check costs nothing more, and nothing at all while there are none.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from kit.errors import InvalidArgument, Violation
from kit.runtime.clock import Clock, unix_milliseconds
from kit.runtime.loops import every

from ..errors import BanOfOneself, OverrideNotFound, OverridesFull
from ..model import Limit
from ..model.administration import Act, Change
from ..model.overrides import Override, OverrideKind, covers, merged
from ..model.rates import parse_rate, too_slow
from ..model.rules import RuleSet
from ..store.administration import AdminStore
from .subjects import Subject, match_of

log = logging.getLogger(__name__)

LONGEST = timedelta(days=30)
_LOOK_EVERY_SECONDS = 1.0
_LONGEST_RETRY_SECONDS = 5.0


class RulesInForce:
    """The rules of the files with grants and bans. `current` is asked for each batch of checks, in a thread of its own."""

    def __init__(self, of_files: Callable[[], RuleSet]) -> None:
        self._of_files = of_files
        self._merged = self._basis = of_files()
        self._overrides: Sequence[Override] = ()
        self._merging = threading.Lock()

    def current(self) -> RuleSet:
        basis = self._of_files()
        if basis is not self._basis:
            self._merge(basis)
        return self._merged

    def override(self, overrides: Sequence[Override]) -> None:
        """Put these grants and bans in force, in place of others."""
        with self._merging:
            self._overrides = overrides
        self._merge(self._of_files())

    def _merge(self, basis: RuleSet) -> None:
        # Two threads may change something at the same time, and neither change may be lost.
        with self._merging:
            self._merged = merged(basis, self._overrides)
            self._basis = basis


class Overrides:
    """Makes, lists and lifts grants and bans, and keeps those in force as the store tells them."""

    def __init__(self, store: AdminStore, rules: RulesInForce, classes: Sequence[str], clock: Clock) -> None:
        self._store = store
        self._rules = rules
        self._classes = classes
        self._clock = clock
        self._version: str | None = None
        self._heeded: Sequence[Override] = ()

    async def grant(
        self,
        administrator_id: UUID,
        subject: Subject,
        ends_at: datetime,
        reason: str,
        *,
        unlimited: bool,
        rate: str,
        burst: int,
    ) -> Override:
        """Raise or lift a limit until a time. Raises InvalidArgument and OverridesFull; RedisError and OSError."""
        limit = _limit(unlimited=unlimited, rate=rate, burst=burst)
        return await self._make(OverrideKind.GRANT, administrator_id, subject, ends_at, reason=reason, limit=limit)

    async def ban(self, administrator_id: UUID, subject: Subject, ends_at: datetime, reason: str) -> Override:
        """Refuse all calls until a time. Raises InvalidArgument, OverridesFull and BanOfOneself; RedisError and OSError."""
        if str(administrator_id) in (subject.user_id.lower(), *_values(subject)):
            raise BanOfOneself
        return await self._make(OverrideKind.BAN, administrator_id, subject, ends_at, reason=reason, limit=None)

    async def lift(self, administrator_id: UUID, override_id: UUID, reason: str) -> Override:
        """End one before its time. Raises OverrideNotFound; RedisError and OSError."""
        lifted = next((each for each in await self._store.overrides() if each.id == override_id), None)
        told = f"{lifted.kind} {lifted.id}: {_in_words(lifted)}" if lifted else ""
        if not lifted or not await self._store.lift(override_id, Change(Act.LIFTED, administrator_id, reason, told)):
            raise OverrideNotFound
        log.info("the %s %s is lifted by %s: %s", lifted.kind, lifted.id, administrator_id, reason)
        await self.refresh()
        return lifted

    async def all(self) -> list[Override]:
        """Those that have not ended, newest first. Raises RedisError and OSError."""
        return sorted(await self._store.overrides(), key=lambda each: (each.made_at, each.id), reverse=True)

    async def follow(self, stopping: asyncio.Event) -> None:
        """Keep those in force as the store tells them, until `stopping` is set. While it does not answer, they stay."""
        failure = "grants and bans stay as they are, because the present ones cannot be read"
        await every(
            _LOOK_EVERY_SECONDS,
            stopping,
            self.refresh,
            failure=failure,
            retry=lambda failures: min(float(failures), _LONGEST_RETRY_SECONDS),
        )

    async def refresh(self) -> None:
        """Read what was changed, and leave out what has ended. Raises RedisError and OSError."""
        version = await self._store.version()
        now = unix_milliseconds(self._clock()) * 1000
        if version != self._version:
            self._heeded = await self._store.overrides()
            self._rules.override(self._heeded)
            self._version = version
        elif any(each.ends_at <= now for each in self._heeded):
            self._heeded = [each for each in self._heeded if each.ends_at > now]
            self._rules.override(self._heeded)

    async def _make(
        self,
        kind: OverrideKind,
        administrator_id: UUID,
        subject: Subject,
        ends_at: datetime,
        *,
        reason: str,
        limit: Limit | None,
    ) -> Override:
        now = self._clock()
        if not now < ends_at <= now + LONGEST:
            raise InvalidArgument(
                [Violation("expire_time", f"is not within {LONGEST.days} days from now", "TIME_OUT_OF_RANGE")]
            )
        domain, match = match_of(subject, self._classes)
        same = [
            each
            for each in await self._store.overrides()
            if (each.kind, each.domain, each.match) == (kind, domain, match)
        ]
        override = Override(
            same[0].id if same else uuid4(),
            kind,
            domain,
            match,
            limit,
            unix_milliseconds(now) * 1000,
            unix_milliseconds(ends_at) * 1000,
            administrator_id,
            reason,
        )
        if not covers(self._rules.current().of(domain), override):
            raise InvalidArgument(
                [Violation("subject", "is of a form that no rule of the domain matches", "NO_SUCH_RULE")]
            )
        act = Act.GRANTED if kind is OverrideKind.GRANT else Act.BANNED
        told = f"{kind} {override.id}: {_in_words(override)} until {ends_at:%Y-%m-%d %H:%M:%S} UTC"
        if not await self._store.put(override, Change(act, administrator_id, reason, told)):
            raise OverridesFull
        # The caller may be an address, which no log may have.
        log.info("the %s %s is made by %s: %s", kind, override.id, administrator_id, reason)
        await self.refresh()
        return override


def _limit(*, unlimited: bool, rate: str, burst: int) -> Limit | None:
    if unlimited:
        if rate or burst:
            raise InvalidArgument([Violation("unlimited", "stands beside rate or burst; choose one", "EXCLUSIVE")])
        return None
    if not rate or not burst:
        missing = "burst" if rate else "rate"
        raise InvalidArgument([Violation(missing, "is missing; set rate and burst, or unlimited", "REQUIRED")])
    try:
        limit = Limit(*parse_rate(rate), burst)
    except ValueError as fault:
        raise InvalidArgument([Violation("rate", str(fault), "RATE_INVALID")]) from None
    if fault_of_burst := too_slow(limit):
        raise InvalidArgument([Violation("burst", fault_of_burst, "TOO_LARGE")])
    return limit


def _values(subject: Subject) -> Iterator[str]:
    for entries in subject.descriptors:
        for _, value in entries:
            yield value.lower()


def _in_words(override: Override) -> str:
    return " ".join(map(str, override.match))
