"""The access tokens that are not to be taken any more although they have not expired: what one process knows of them.

Auth tells (`revocation_feed`), everybody else asks at each call. The list says for itself how far it can be trusted: when nobody
has vouched for it for a while, it is stale, and a token that it does not name may be revoked all the same.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from kit.errors import RevocationsUnknown
from kit.runtime.clock import SKEW, Clock
from kit.runtime.metrics import Metrics

STALE_AFTER = timedelta(seconds=30)
"""How long a service goes on taking writes while nothing confirms that the list is complete."""


class RevocationKind(StrEnum):
    """What a revocation names: the tokens of a session (claim `sid`), of a person (`sub`), or under a key (header `kid`)."""

    SESSION = "session"
    USER = "user"
    KEY = "key"


@dataclass(frozen=True, slots=True)
class Revocation:
    """`expires_at` is when the last of these tokens expires, after which the entry says nothing that `exp` does not."""

    kind: RevocationKind
    value: str
    expires_at: datetime
    before_epoch: int | None = None
    """Of a person: only tokens of sessions from before this epoch (claim `epoch`). None: all."""
    excepted: UUID | None = None
    """And of these not the ones of this session."""

    def names(self, session_id: UUID, epoch: int) -> bool:
        """Whether it is about a token with its target that has these."""
        return self.before_epoch is None or (epoch < self.before_epoch and session_id != self.excepted)

    def extended(self, later: Revocation) -> Revocation:
        """What both of the same target say together: of a person's, the one of the later epoch covers the other."""
        wider = later if _end(later) >= _end(self) else self
        return replace(wider, expires_at=max(self.expires_at, later.expires_at))


def _end(revocation: Revocation) -> float:
    return math.inf if revocation.before_epoch is None else revocation.before_epoch


Target = tuple[RevocationKind, str]


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """Somebody who holds a token and wants to be called when it is revoked."""

    revoked: Callable[[], None]
    session_id: UUID
    epoch: int


def since_boot() -> float:
    """Seconds that no change of the wall clock moves and that, where the system can tell, count a suspended machine's sleep."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))


class Revocations:
    """Bounded by itself, because an entry goes when the tokens that it names have expired.

    Belongs to one event loop. Expiry is a matter of the clock that token expiry is judged by, and an entry outlives the tokens by
    the same skew; staleness is a matter of elapsed seconds, which `monotonic` counts.
    """

    def __init__(
        self,
        clock: Clock,
        *,
        stale_after: timedelta = STALE_AFTER,
        monotonic: Callable[[], float] = since_boot,
    ) -> None:
        self._clock = clock
        self._monotonic = monotonic
        self._stale_after_seconds = stale_after.total_seconds()
        self._entries: dict[Target, Revocation] = {}
        # By expiry. An entry whose life was extended stands here twice, and the first of the two is skipped.
        self._expiries: list[tuple[datetime, Target]] = []
        self._created_at = monotonic()
        self._vouched_at: float | None = None
        self._known = asyncio.Event()
        self._subscribers: set[asyncio.Queue[Revocation]] = set()
        self._waiting: defaultdict[Target, set[_Waiting]] = defaultdict(set)

    def replace(self, revocations: Iterable[Revocation]) -> None:
        """Takes a snapshot: these are in force, no others are, and the list is complete now."""
        self._drop_expired()
        before = self._entries
        self._entries, self._expiries = {}, []
        for each in revocations:
            self._insert(each)
        self.heard()
        self._announce(each for each in tuple(self._entries.values()) if _says_more(each, before.get(_target(each))))

    def add(self, revocation: Revocation) -> None:
        """Takes one more, unless it is known or past; the list is complete now."""
        self.heard()
        known = self._entries.get(_target(revocation))
        if self._insert(revocation) and _says_more(revocation, known):
            self._announce([revocation])

    def heard(self) -> None:
        """Takes it that the list is complete now."""
        self._vouched_at = self._monotonic()
        self._known.set()
        self._drop_expired()

    def current(self) -> tuple[Revocation, ...]:
        """Those in force."""
        self._drop_expired()
        return tuple(self._entries.values())

    def covers(self, *, session_id: UUID, user_id: UUID, kid: str, epoch: int = 0) -> bool:
        """Whether a token with these is revoked, as far as is known."""
        if not self._entries:
            return False
        return any(self._in_force(target, session_id, epoch) for target in _targets(session_id, user_id, kid))

    @property
    def known(self) -> bool:
        """Whether there ever was a complete list."""
        return self._vouched_at is not None

    @property
    def count(self) -> int:
        """How many entries are kept. May be asked from any thread."""
        return len(self._entries)

    @property
    def age_seconds(self) -> float:
        """Seconds since the list was last known to be complete, or since it was made. May be asked from any thread."""
        return self._monotonic() - (self._created_at if self._vouched_at is None else self._vouched_at)

    @property
    def overdue(self) -> bool:
        """True once the list has gone unconfirmed for `stale_after`. A new list has that time too before it counts as a fault."""
        return self.age_seconds > self._stale_after_seconds

    @property
    def stale(self) -> bool:
        """True if the list cannot be relied upon: it is overdue, or was never complete."""
        return not self.known or self.overdue

    async def check_known(self) -> None:
        """A health check: answers once there is a list. A replica without one cannot tell whom it must refuse."""
        await self._known.wait()

    async def check_fresh(self) -> None:
        """A health check: raises while the list is stale. At the start it waits for one, which is no failure yet."""
        await self._known.wait()
        if self.stale:
            raise RevocationsUnknown

    def show_in(self, metrics: Metrics) -> None:
        """Shows from now on how many entries are kept and how far the list can be trusted."""
        metrics.gauge("storymesh_revocations_known", "Revocations in force.", lambda: self.count)
        metrics.gauge(
            "storymesh_revocation_feed_age",
            "How long nobody has vouched that the list of revocations is complete.",
            lambda: self.age_seconds,
            unit="s",
        )
        metrics.gauge(
            "storymesh_revocation_feed_stale",
            "1 while writes are refused because revocations are not known.",
            lambda: int(self.stale),
        )

    @contextmanager
    def subscribed(self) -> Iterator[asyncio.Queue[Revocation]]:
        """A queue of every revocation that is new from now on."""
        queue: asyncio.Queue[Revocation] = asyncio.Queue()
        self._subscribers.add(queue)
        try:
            yield queue
        finally:
            self._subscribers.discard(queue)

    @contextmanager
    def calling(
        self, revoked: Callable[[], None], *, session_id: UUID, user_id: UUID, kid: str, epoch: int = 0
    ) -> Iterator[None]:
        """Calls `revoked` when a token with these is revoked while the context is open, or is so already.

        A revocation costs what it ends, however many others wait: unlike with `subscribed`, nobody is woken in vain.
        """
        one = _Waiting(revoked, session_id, epoch)
        with ExitStack() as leaving:
            for target in _targets(session_id, user_id, kid):
                self._waiting[target].add(one)
                leaving.callback(self._leave, target, one)
            if self.covers(session_id=session_id, user_id=user_id, kid=kid, epoch=epoch):
                revoked()
            yield

    def _leave(self, target: Target, one: _Waiting) -> None:
        waiting = self._waiting[target]
        waiting.discard(one)
        if not waiting:
            del self._waiting[target]

    def _insert(self, revocation: Revocation) -> bool:
        """Whether the list has it now and did not say as much, or for as long, before."""
        target = _target(revocation)
        known = self._entries.get(target)
        together = known.extended(revocation) if known else revocation
        if self._past(revocation) or together == known:
            return False
        self._entries[target] = together
        heapq.heappush(self._expiries, (together.expires_at, target))
        return True

    def _announce(self, revocations: Iterable[Revocation]) -> None:
        for revocation in revocations:
            for queue in self._subscribers:
                queue.put_nowait(revocation)
            for one in tuple(self._waiting.get(_target(revocation), ())):
                if revocation.names(one.session_id, one.epoch):
                    one.revoked()

    def _drop_expired(self) -> None:
        gone_before = self._clock() - SKEW
        while self._expiries and self._expiries[0][0] <= gone_before:
            expires_at, target = heapq.heappop(self._expiries)
            known = self._entries.get(target)
            if known and known.expires_at == expires_at:
                del self._entries[target]

    def _in_force(self, target: Target, session_id: UUID, epoch: int) -> bool:
        revocation = self._entries.get(target)
        return revocation is not None and not self._past(revocation) and revocation.names(session_id, epoch)

    def _past(self, revocation: Revocation) -> bool:
        # On this side of the comparison, for an end of time has no later one.
        return revocation.expires_at <= self._clock() - SKEW


def _says_more(revocation: Revocation, known: Revocation | None) -> bool:
    """Whether it names tokens that the known one of its target does not, if there is one."""
    return known is None or _end(revocation) > _end(known)


def _target(revocation: Revocation) -> Target:
    return revocation.kind, revocation.value


def _targets(session_id: UUID, user_id: UUID, kid: str) -> tuple[Target, ...]:
    return (RevocationKind.SESSION, str(session_id)), (RevocationKind.USER, str(user_id)), (RevocationKind.KEY, kid)
