"""Lets Envoys decide by themselves: takes tokens for them from the same buckets as checks, and learns later what became of them.

An Envoy reports a new bucket at once and each bucket every five seconds, which Envoy 1.40 has built in. In between it is told of
more tokens each second where it had to refuse. What it may admit was debited before, so all Envoys together stay within the limit.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import ceil
from random import uniform
from time import monotonic, time_ns
from typing import NamedTuple

import redis.exceptions
from opentelemetry.metrics import CallbackOptions, Observation

from kit.runtime.loops import every
from kit.runtime.metrics import Metrics
from kit.runtime.own_thread import OwnThread

from ..errors import TooManyEdges
from ..model import Limit
from ..model.holdings import Holding, divided, weights
from ..model.rules import RuleSet
from ..store.withdrawals import RedisWithdrawals, Withdrawal
from .terms import Blanket, BucketId, Terms, terms_of

log = logging.getLogger(__name__)

MOST_EDGES = 64
"""Envoys that are connected at a time."""

MOST_BUCKETS = 8_000
"""Buckets of one Envoy. It is told to forget those beyond, whose calls pass: the first call of each would pass anyway."""

_MOST_REPORTED = 1_000_000
"""Calls of a report that count, far beyond any Envoy's five seconds; more would only make numbers that are not exact."""

_PAUSE_SECONDS = 0.5
_LONGEST_JITTER_SECONDS = 1.0
"""Between turns: of several limiters on one Redis, each is as often the first after a token has come back."""

_TURN_SECONDS = 1.0

_BOOKED_AT_ONCE = 200
"""Usages, before other streams and health checks have their turn."""


class Usage(NamedTuple):
    """What an Envoy did with a bucket since its last report."""

    bucket: BucketId
    allowed: int
    refused: int
    first: bool
    """Whether Envoy has just made the bucket. If not, and we do not know it, another limiter or none has assigned its tokens."""


@dataclass(frozen=True)
class Assigned:
    """How Envoy is to decide: with so many tokens, at a steady rate, or alike for all. `None`: it is to forget the bucket."""

    how: int | Limit | Blanket | None
    fresh: bool = False
    """Whether these are new tokens, which take the place of what is left. If not, the assignment before lasts longer."""


@dataclass
class _Kept:
    terms: Terms
    holding: Holding
    assigned: Assigned | None = None


@dataclass(eq=False)
class Edge:
    """One connected Envoy."""

    domain: str
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _kept: dict[BucketId, _Kept] = field(default_factory=dict)
    _told: dict[BucketId, Assigned] = field(default_factory=dict)

    def tell(self, bucket: BucketId, assigned: Assigned) -> None:
        before = self._told.get(bucket)
        if before is None or not before.fresh or before.how != assigned.how:
            self._told[bucket] = assigned
        self.changed.set()

    def take(self) -> dict[BucketId, Assigned]:
        """What is to be told to Envoy, the latest of each bucket."""
        told, self._told = self._told, {}
        self.changed.clear()
        return told


class Assignments:
    """Assigns tokens to the Envoys that are connected to this process."""

    def __init__(
        self,
        store: RedisWithdrawals,
        rules: Callable[[], RuleSet],
        *,
        redis_seconds: float,
        clock: Callable[[], float] = monotonic,
        wall: Callable[[], int] = lambda: time_ns() // 1000,
    ) -> None:
        """`clock` counts seconds; `wall` returns microseconds since 1970, to find the period of a quota."""
        self._store = store
        self._rules = rules
        self._redis_seconds = redis_seconds
        self._clock = clock
        self._wall = wall
        self._edges: dict[str, list[Edge]] = {}
        self._one_at_a_time = asyncio.Lock()
        self._thread = OwnThread("assignments")
        self._redis_answers = True
        self._counts = Counter[tuple[str, str, str]]()
        self._forgotten = 0

    def connect(self, domain: str) -> Edge:
        """Raises TooManyEdges."""
        if sum(map(len, self._edges.values())) >= MOST_EDGES:
            raise TooManyEdges()
        edge = Edge(domain)
        self._edges.setdefault(domain, []).append(edge)
        return edge

    def leave(self, edge: Edge) -> None:
        """What the Envoy holds is not given back: it may go on with it until its assignments end."""
        edges = self._edges[edge.domain]
        edges.remove(edge)
        if not edges:
            del self._edges[edge.domain]

    async def report(self, edge: Edge, usages: Iterable[Usage]) -> None:
        """Book a report, and tell the Envoy how each of its buckets goes on."""
        async with self._one_at_a_time:
            wanting: list[tuple[BucketId, _Kept, int]] = []
            for number, usage in enumerate(usages):
                if number % _BOOKED_AT_ONCE == _BOOKED_AT_ONCE - 1:
                    await asyncio.sleep(0)
                kept = self._book(edge, usage)
                if kept is None:
                    continue
                wanted = self._wanted(edge, usage.bucket, kept)
                if wanted or kept.holding.owed:
                    wanting.append((usage.bucket, kept, wanted))
                elif kept.assigned:
                    # Tells it again, which lengthens the assignment.
                    edge.tell(usage.bucket, kept.assigned)
            taken = await self._withdraw(
                [Withdrawal(kept.terms.charges, wanted, kept.holding.owed) for _, kept, wanted in wanting]
            )
            for place, (bucket, kept, wanted) in enumerate(wanting):
                if taken is None:
                    self._assign_without_redis(edge, bucket, kept)
                    continue
                holding, tokens = kept.holding, taken[place]
                holding.owed = 0
                spends = kept.assigned is not None and isinstance(kept.assigned.how, int)
                if wanted and (not spends or holding.refused or holding.left == 0 or tokens > holding.left):
                    self._assign(edge, bucket, kept, tokens)
                elif kept.assigned:
                    # A smaller bucket would take the place of a fuller one.
                    holding.owed = -tokens
                    edge.tell(bucket, kept.assigned)

    async def turn(self) -> None:
        """Hand out what has come back to the Envoys that had to refuse, in fair parts, and try again where Redis was away."""
        async with self._one_at_a_time:
            waiting: dict[tuple[str, BucketId], list[tuple[Edge, _Kept, int]]] = {}
            for domain, edges in self._edges.items():
                for edge in edges:
                    for bucket, kept in edge._kept.items():
                        if wanted := self._wanted_at_once(edge, bucket, kept):
                            waiting.setdefault((domain, bucket), []).append((edge, kept, wanted))
            if not waiting:
                return
            groups = list(waiting.items())
            taken = await self._withdraw(
                [
                    Withdrawal(
                        group[0][1].terms.charges,
                        sum(wanted for *_, wanted in group),
                        sum(kept.holding.owed for _, kept, _ in group),
                    )
                    for _, group in groups
                ]
            )
            for ((_, bucket), group), tokens in zip(groups, taken or (), strict=False):
                parts = divided(tokens, [wanted for *_, wanted in group])
                for (edge, kept, _), part in zip(group, parts, strict=True):
                    kept.holding.owed = 0
                    if part:
                        self._assign(edge, bucket, kept, part)

    async def follow(self, stopping: asyncio.Event) -> None:
        """Take turns until `stopping` is set."""

        async def turn() -> None:
            await asyncio.sleep(uniform(0, _LONGEST_JITTER_SECONDS))  # noqa: S311  # no secret
            await self.turn()

        await every(_PAUSE_SECONDS, stopping, turn, failure="no tokens were handed out in this turn")

    def show_in(self, metrics: Metrics) -> None:
        """Show the connected Envoys, their buckets, and what they decided by themselves."""
        metrics.gauge(
            "storymesh_rate_limit_edges",
            "Envoys that decide by themselves, connected to this process.",
            lambda: sum(map(len, self._edges.values())),
        )
        metrics.gauge(
            "storymesh_rate_limit_edge_buckets",
            "Buckets of these Envoys.",
            lambda: sum(len(edge._kept) for edges in self._edges.values() for edge in edges),
        )
        metrics.meter.create_observable_counter(
            "storymesh_rate_limit_edge_buckets_forgotten",
            [lambda _options: [Observation(self._forgotten)]],
            description="Buckets that an Envoy was told to forget because it had too many, or because their ids are too long.",
        )
        metrics.meter.create_observable_counter(
            "storymesh_rate_limit_edge_decisions",
            [self._observe],
            description="Calls that Envoys decided by themselves, by rule, as they report them.",
        )

    def _observe(self, _options: CallbackOptions) -> Iterable[Observation]:
        names = dict.fromkeys(rule.counted_as for rule in self._rules().rules)
        return [
            Observation(self._counts[domain, name, verdict], {"domain": domain, "rule": name, "verdict": verdict})
            for domain, name in names
            for verdict in ("admitted", "refused")
        ]

    def forget(self, edge: Edge, bucket: BucketId) -> None:
        """Tell the Envoy to forget a bucket that we do not keep: it would keep it for good."""
        self._forgotten += 1
        edge._kept.pop(bucket, None)
        edge.tell(bucket, Assigned(None))

    def _book(self, edge: Edge, usage: Usage) -> _Kept | None:
        """Book the usage. None if the bucket needs no tokens: it is let go, or all its calls are decided alike."""
        now, bucket = self._clock(), usage.bucket
        allowed, refused = min(usage.allowed, _MOST_REPORTED), min(usage.refused, _MOST_REPORTED)
        charged = allowed
        kept = edge._kept.get(bucket)
        if kept is None:
            if not usage.first and not allowed and not refused:
                edge.tell(bucket, Assigned(None))
                return None
            if len(edge._kept) >= MOST_BUCKETS:
                self.forget(edge, bucket)
                return None
            kept = edge._kept[bucket] = _Kept(self._terms(bucket, edge.domain), Holding(now, now))
            if usage.first:
                kept.holding.report(allowed, refused, now=now)
        else:
            if kept.terms.rules is not self._rules() or kept.terms.ends <= self._wall():
                before, kept.terms = kept.terms, self._terms(bucket, edge.domain)
                if [each.key for each in before.charges] != [each.key for each in kept.terms.charges]:
                    # Tokens of other buckets, which are spent or lost.
                    kept.holding, kept.assigned = Holding(kept.holding.at, kept.holding.active_at), None
                    charged = 0
            spends = kept.assigned is None or isinstance(kept.assigned.how, int)
            # What passes without tokens, because Redis is away or no rule counts it, is not charged afterwards.
            kept.holding.report(charged if spends else 0, refused, now=now)
            if allowed:
                kept.holding.active_at = now
        for rule in kept.terms.counting:
            self._counts[*rule.counted_as, "admitted"] += allowed
            self._counts[*rule.counted_as, "refused"] += refused
        if kept.holding.idle(kept.terms.charges, now=now):
            del edge._kept[bucket]
            edge.tell(bucket, Assigned(None))
            return None
        if kept.terms.blanket is not None:
            kept.assigned = Assigned(kept.terms.blanket)
            edge.tell(bucket, kept.assigned)
            return None
        return kept

    def _terms(self, bucket: BucketId, domain: str) -> Terms:
        return terms_of(bucket, domain, self._rules(), self._wall())

    def _share(self, edge: Edge, bucket: BucketId, kept: _Kept) -> int:
        """The Envoy's part of the burst, by the calls that it and the others report."""
        edges = self._edges[edge.domain]
        demands = [
            each._kept[bucket].holding.demand
            if bucket in each._kept
            else (None if kept.holding.demand is None else 0.0)
            for each in edges
        ]
        return max(1, round(kept.terms.burst * weights(demands)[edges.index(edge)]))

    def _wanted(self, edge: Edge, bucket: BucketId, kept: _Kept) -> int:
        """The tokens to take after a report: nothing while more than half of its part is left."""
        share = self._share(edge, bucket, kept)
        holding = kept.holding
        if kept.assigned is None or not isinstance(kept.assigned.how, int) or holding.left <= share // 2:
            return share
        return 0

    def _wanted_at_once(self, edge: Edge, bucket: BucketId, kept: _Kept) -> int:
        """The tokens to take between reports, for about a second: only where calls were refused or are, as nothing was assigned."""
        if not kept.terms.charges or kept.assigned is None:
            return 0
        if not isinstance(kept.assigned.how, int):
            return self._share(edge, bucket, kept)
        if not (kept.holding.refused or kept.holding.latest == 0):
            return 0
        share = self._share(edge, bucket, kept)
        return min(share, max(1, ceil(1.25 * _TURN_SECONDS * (kept.holding.demand or share))))

    def _assign(self, edge: Edge, bucket: BucketId, kept: _Kept, tokens: int) -> None:
        kept.holding.assign(tokens, now=self._clock())
        kept.assigned = Assigned(tokens)
        edge.tell(bucket, Assigned(tokens, fresh=True))

    def _assign_without_redis(self, edge: Edge, bucket: BucketId, kept: _Kept) -> None:
        """What is left goes on to be spent by rules that are closed; others pass at once, or a part of their rate."""
        how = kept.terms.without_redis
        if isinstance(how, Limit):
            how = how.share(1 / len(self._edges[edge.domain]))
        kept.assigned = Assigned(how)
        edge.tell(bucket, kept.assigned)

    async def _withdraw(self, withdrawals: Sequence[Withdrawal]) -> list[int] | None:
        """The tokens taken; None if Redis does not answer in time."""
        if not withdrawals:
            return []
        try:
            taken = await self._thread.run(self._store.take, withdrawals, seconds=self._redis_seconds)
        except (redis.exceptions.RedisError, OSError) as error:
            if self._redis_answers:
                log.error("no tokens can be taken for Envoys, each rule's on_redis_down applies: %s", error)
            self._redis_answers = False
            return None
        if not self._redis_answers:
            log.info("tokens can be taken for Envoys again")
        self._redis_answers = True
        return taken
