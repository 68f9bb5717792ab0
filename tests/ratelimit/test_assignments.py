"""Envoys that decide by themselves, at the service's own door: what they report, and what they are assigned."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from typing import Any

import grpc
import pytest
from foreign import rlqs_pb2, rlqs_pb2_grpc
from google.protobuf import duration_pb2
from redis.asyncio import Redis

from kit.data import redis as kit_redis
from kit.data.blocking_redis import BlockingRedis
from kit.rpc.server import Server
from kit.runtime.settings import ServiceSettings
from local.harness import Servers
from services.ratelimit.model import Limit
from services.ratelimit.model.holdings import APPLIED_SECONDS, divided, weights
from services.ratelimit.model.matching import DescriptorEntry
from services.ratelimit.model.quotas import Period, Quota
from services.ratelimit.model.rules import Action, OnNoMatch, OnRedisDown, RuleSet
from services.ratelimit.operations import assignments as operations
from services.ratelimit.operations.assignments import Assigned, Assignments, Edge, Usage
from services.ratelimit.operations.buckets import Buckets
from services.ratelimit.operations.terms import Blanket, BucketId, terms_of
from services.ratelimit.servicer.assignments import LONGEST_ID, MOST_ENTRIES, AssignmentStreams
from services.ratelimit.store.withdrawals import RedisWithdrawals, Withdrawal
from tests.kit.transports import TRANSPORTS
from tests.ratelimit.building import DOMAIN, by_address, rule, rule_set
from tests.waiting import until

PATIENT_SECONDS = 10.0
ADDRESS: BucketId = (("class", "default"), ("client_ip", "192.0.2.7/32"))
HOURLY = Limit(requests=10, period_seconds=36_000, burst=10)
"""Slow, so that nothing comes back in a test."""


class Clock:
    """Seconds, as Envoy's reports are apart; Redis has its own time."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


Assigning = Callable[[RuleSet], Assignments]


@pytest.fixture
async def assigning(limiter_redis: Redis, clock: Clock) -> AsyncIterator[Assigning]:
    with closing(BlockingRedis(limiter_redis)) as connection:
        yield lambda rules: Assignments(
            RedisWithdrawals(connection), lambda: rules, redis_seconds=PATIENT_SECONDS, clock=clock
        )


async def reported(
    assignments: Assignments,
    edge: Edge,
    allowed: int,
    refused: int = 0,
    *,
    first: bool = False,
    bucket: BucketId = ADDRESS,
) -> Assigned | None:
    """What the Envoy is told about the bucket."""
    await assignments.report(edge, [Usage(bucket, allowed, refused, first)])
    return edge.take().get(bucket)


def tokens(assigned: Assigned | None) -> int:
    assert assigned is not None
    assert isinstance(assigned.how, int)
    return assigned.how


def by_default(limit: Limit | Quota | None = HOURLY, **more: Any) -> RuleSet:
    return rule_set(rule("default-per-address", limit=limit, **more))


async def test_a_lone_envoy_is_assigned_the_burst_less_what_has_passed(assigning: Assigning) -> None:
    assignments = assigning(by_default())
    assert tokens(await reported(assignments, assignments.connect(DOMAIN), 3, first=True)) == 7


async def test_what_is_assigned_is_no_longer_there_for_checks(
    assigning: Assigning, buckets_for: Callable[[RuleSet], Buckets]
) -> None:
    rules = by_default()
    assignments = assigning(rules)
    await reported(assignments, assignments.connect(DOMAIN), 1, first=True)
    assert not buckets_for(rules).check(DOMAIN, [by_address()], remaining=None).admitted


@pytest.mark.parametrize(
    ("bucket", "left"),
    [
        ((("class=default client_ip", "192.0.2.7/32"),), 7),
        # Of a rule with three entries, two of which are fixed.
        ((("class=default tier=free client_ip", "192.0.2.7/32"),), 4),
        # The value of a call is taken as it is, and so is a key that holds no fixed entries.
        ((("class=default client_ip", "tier=free 192.0.2.8/32"),), 7),
        ((("a client_ip", "192.0.2.7/32"),), 2),
    ],
)
async def test_a_key_may_hold_entries_whose_values_are_fixed(assigning: Assigning, bucket: BucketId, left: int) -> None:
    rules = rule_set(
        rule("default-per-address", limit=HOURLY),
        rule("free", "class=default tier=free client_ip", limit=replace(HOURLY, burst=7)),
        replace(rule("odd", limit=replace(HOURLY, burst=5)), match=(DescriptorEntry("a client_ip"),)),
    )
    assignments = assigning(rules)
    edge = assignments.connect(DOMAIN)
    assert tokens(await reported(assignments, edge, 3, first=True, bucket=bucket)) == left


async def test_ids_that_say_the_same_draw_on_one_bucket(assigning: Assigning) -> None:
    """An Envoy of the version before has two entries."""
    assignments = assigning(by_default())
    edges = [assignments.connect(DOMAIN) for _ in range(2)]
    assert tokens(await reported(assignments, edges[0], 0, first=True)) == 5
    compact = (("class=default client_ip", "192.0.2.7/32"),)
    assert tokens(await reported(assignments, edges[1], 8, first=True, bucket=compact)) == 0


async def test_two_envoys_are_assigned_parts_of_what_is_there(assigning: Assigning) -> None:
    assignments = assigning(by_default())
    edges = [assignments.connect(DOMAIN) for _ in range(2)]
    given = [tokens(await reported(assignments, edge, 0, first=True)) for edge in edges]
    assert given == [5, 5]


async def test_what_comes_back_is_divided_among_those_that_refuse(assigning: Assigning, clock: Clock) -> None:
    assignments = assigning(by_default(Limit(requests=1000, period_seconds=1, burst=1000)))
    edges = [assignments.connect(DOMAIN) for _ in range(2)]
    for edge in edges:
        await reported(assignments, edge, 0, first=True)
    clock.now += 5
    # One is asked ten times as often as the other, and both more than there is.
    for edge, refused in zip(edges, (50_000, 500_000), strict=True):
        await reported(assignments, edge, 1000, refused)
    clock.now += 1

    for edge in edges:
        edge.take()

    async def both_were_told() -> bool:
        await assignments.turn()
        return all(edge.changed.is_set() for edge in edges)

    await until(both_were_told)
    first, second = [tokens(edge.take()[ADDRESS]) for edge in edges]
    assert abs(first - second) <= 1


async def test_an_idle_bucket_is_let_go_when_what_it_holds_has_come_back(assigning: Assigning, clock: Clock) -> None:
    assignments = assigning(by_default(Limit(requests=1, period_seconds=1, burst=8)))
    edge = assignments.connect(DOMAIN)
    await reported(assignments, edge, 0, first=True)
    clock.now += 5
    assert tokens(await reported(assignments, edge, 0)) == 8
    clock.now += 5
    assert await reported(assignments, edge, 0) == Assigned(None)


async def test_a_bucket_that_another_limiter_assigned_is_not_charged_twice(assigning: Assigning) -> None:
    assignments = assigning(by_default())
    assert tokens(await reported(assignments, assignments.connect(DOMAIN), 9, first=False)) == 10


async def test_tokens_that_can_no_longer_be_spent_are_given_back(assigning: Assigning, clock: Clock) -> None:
    assignments = assigning(by_default(Limit(requests=100, period_seconds=360_000, burst=100)))
    edge = assignments.connect(DOMAIN)
    await reported(assignments, edge, 0, first=True)
    other = assignments.connect(DOMAIN)
    clock.now += 5
    # Of 100 tokens 60 are spent, and its part is half: what is left is enough.
    assert tokens(await reported(assignments, edge, 60)) == 100
    assert tokens(await reported(assignments, other, 0, first=True)) == 0


@pytest.mark.parametrize("seed", range(5))
async def test_envoys_together_never_admit_more_than_burst_and_rate(
    assigning: Assigning, clock: Clock, seed: int
) -> None:
    """Envoys that spend at the worst moments, answers that come late, buckets that are let go, and reports in any order."""
    chance = random.Random(seed)
    limit = Limit(requests=1, period_seconds=3600, burst=200)
    assignments = assigning(by_default(limit))
    edges = [assignments.connect(DOMAIN) for _ in range(3)]
    envoys = [Envoy() for _ in edges]
    for _ in range(200):
        number = chance.randrange(3)
        for _ in range(chance.randrange(20)):
            envoys[number].call()
        passed = chance.choice([0.0, 0.1, 1.0, 5.0])
        clock.now += passed
        if chance.random() < 0.3:
            await assignments.turn()
        else:
            await assignments.report(edges[number], envoys[number].usages())
        for each, edge in zip(envoys, edges, strict=True):
            # Answers may be late, but not for longer than a report may be early.
            if passed >= APPLIED_SECONDS or chance.random() < 0.7:
                each.apply(edge.take().get(ADDRESS))
    # The first call of a bucket passes before anything is assigned, and an empty bucket cannot be charged for it.
    assert sum(each.admitted for each in envoys) <= limit.burst + sum(each.made for each in envoys)
    assert sum(each.admitted for each in envoys) > limit.burst / 2


class Envoy:
    """Decides as Envoy 1.40 does, as one who sends calls one after the other sees it."""

    def __init__(self) -> None:
        self.admitted = self.made = self._allowed = self._refused = 0
        self._assigned: Assigned | None = None
        self._left = 0
        self._known = self._new = False

    def call(self) -> None:
        if not self._known:
            self._known = self._new = True
            self.made += 1
        elif self._assigned is None:
            return
        elif self._left == 0:
            self._refused += 1
            return
        else:
            self._left -= 1
        self.admitted += 1
        self._allowed += 1

    def usages(self) -> list[Usage]:
        if not self._known:
            return []
        usage = Usage(ADDRESS, self._allowed, self._refused, self._new)
        self._allowed = self._refused = 0
        self._new = False
        return [usage]

    def apply(self, assigned: Assigned | None) -> None:
        if assigned is None or (assigned.how is not None and not assigned.fresh):
            return
        if assigned.how is None:
            self._assigned, self._known, self._allowed, self._refused = None, False, 0, 0
        else:
            self._assigned, self._left = assigned, tokens(assigned)


async def test_rules_that_do_not_count_are_kept_by_envoy(assigning: Assigning) -> None:
    for rules, how in (
        (by_default(None, action=Action.BLOCK), Blanket.REFUSE),
        (by_default(None, action=Action.UNLIMITED), Blanket.ADMIT),
        (by_default(shadow=True), Blanket.ADMIT),
        (rule_set(on_no_match=OnNoMatch.DENY), Blanket.REFUSE),
        (rule_set(on_no_match=OnNoMatch.ALLOW), Blanket.ADMIT),
        (rule_set(on_no_match=OnNoMatch.DENY, shadow=True), Blanket.ADMIT),
    ):
        assignments = assigning(rules)
        assert await reported(assignments, assignments.connect(DOMAIN), 1, first=True) == Assigned(how)


async def test_other_rules_take_the_place_of_what_an_envoy_holds(assigning: Assigning, limiter_redis: Redis) -> None:
    """As do bans and grants, which are rules too."""
    rules = by_default()
    with closing(BlockingRedis(limiter_redis)) as connection:
        assignments = Assignments(RedisWithdrawals(connection), lambda: rules, redis_seconds=PATIENT_SECONDS)
        edge = assignments.connect(DOMAIN)
        assert tokens(await reported(assignments, edge, 0, first=True)) == 10
        rules = rule_set(rule("another", limit=Limit(requests=4, period_seconds=36_000, burst=4)))
        assert tokens(await reported(assignments, edge, 3)) == 4
        rules = by_default(None, action=Action.BLOCK)
        assert await reported(assignments, edge, 1) == Assigned(Blanket.REFUSE)
        rules = by_default()
        assert tokens(await reported(assignments, edge, 0, 5)) == 0


async def test_several_rules_are_all_debited_and_the_tightest_decides(assigning: Assigning) -> None:
    narrow = rule("narrow", limit=Limit(requests=4, period_seconds=36_000, burst=4), cost=2)
    assignments = assigning(rule_set(rule("wide", limit=HOURLY), narrow))
    edge = assignments.connect(DOMAIN)
    assert tokens(await reported(assignments, edge, 0, first=True)) == 2


async def test_a_quota_of_the_calendar_is_handed_out_too(assigning: Assigning, redis: Redis) -> None:
    assignments = assigning(by_default(Quota(50, Period.DAY)))
    assert tokens(await reported(assignments, assignments.connect(DOMAIN), 5, first=True)) == 45
    (key,) = await redis.keys("*")
    assert str(await redis.get(key)).rstrip("'").endswith(":50")


@pytest.mark.parametrize("counts", [(2**64 - 1, 0), (0, 2**64 - 1), (2**64 - 1, 2**64 - 1)])
async def test_impossible_counts_empty_a_bucket_and_no_more(
    assigning: Assigning, clock: Clock, redis: Redis, counts: tuple[int, int]
) -> None:
    limit = Limit(requests=60, period_seconds=60, burst=5)
    assignments = assigning(by_default(limit))
    edge = assignments.connect(DOMAIN)
    await reported(assignments, edge, 0, first=True)
    for _ in range(3):
        clock.now += 5
        await reported(assignments, edge, *counts)
        await assignments.turn()
    for key in await redis.keys("*"):
        assert await redis.pttl(key) <= 1000 * limit.burst + 1


async def test_more_buckets_than_are_kept_are_forgotten(assigning: Assigning, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operations, "MOST_BUCKETS", 10)
    assignments = assigning(by_default())
    edge = assignments.connect(DOMAIN)
    ids: list[BucketId] = [(("class", "default"), ("client_ip", f"192.0.2.{number}/32")) for number in range(30)]
    await assignments.report(edge, [Usage(bucket, 1, 0, True) for bucket in ids])
    told = edge.take()
    assert [tokens(told[bucket]) for bucket in ids[:10]] == [9] * 10
    assert {told[bucket] for bucket in ids[10:]} == {Assigned(None)}


async def test_thousands_of_buckets_are_debited_in_scripts_of_bounded_size(limiter_redis: Redis) -> None:
    rules = by_default()
    with closing(BlockingRedis(limiter_redis)) as connection:
        withdrawals = [
            Withdrawal(
                terms_of(
                    (("class", "default"), ("client_ip", f"10.0.{number // 250}.{number % 250}/32")),
                    DOMAIN,
                    rules,
                    0,
                ).charges,
                number % 20,
            )
            for number in range(2000)
        ]
        taken = RedisWithdrawals(connection).take(withdrawals, seconds=PATIENT_SECONDS)
    assert taken == [min(number % 20, 10) for number in range(2000)]


async def test_while_redis_is_away_each_rule_says_what_holds_and_afterwards_tokens_are_assigned(
    stoppable_redis: Servers, clock: Clock
) -> None:
    def named(name: str) -> BucketId:
        return (("class", name), ("client_ip", "192.0.2.7/32"))

    rules = rule_set(
        rule("open", "class=a client_ip", limit=HOURLY),
        rule("closed", "class=b client_ip", limit=HOURLY, on_redis_down=OnRedisDown.CLOSED),
        rule("local", "class=c client_ip", limit=HOURLY, on_redis_down=OnRedisDown.LOCAL, local_share=0.5),
    )
    async with kit_redis.connect(stoppable_redis.service_redis_url("ratelimit")) as client:
        with closing(BlockingRedis(client)) as connection:
            assignments = Assignments(RedisWithdrawals(connection), lambda: rules, redis_seconds=2.0, clock=clock)
            edge = assignments.connect(DOMAIN)
            await stoppable_redis.stop("redis")
            try:
                await assignments.report(edge, [Usage(named(name), 1, 0, True) for name in "abc"])
                told = edge.take()
                assert told[named("a")] == Assigned(Blanket.ADMIT)
                assert told[named("b")] == Assigned(Blanket.REFUSE)
                local = told[named("c")].how
                assert isinstance(local, Limit)
                assert (local.burst, local.requests / local.period_seconds) == (5, 5 / 36_000)
            finally:
                await stoppable_redis.start("redis")

            async def assigned() -> bool:
                await assignments.turn()
                return edge.changed.is_set()

            await until(assigned)
            told = edge.take()
            assert {tokens(told[named(name)]) for name in "abc"} == {9}


# At the door of gRPC.


@pytest.fixture(params=TRANSPORTS)
def transport(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@asynccontextmanager
async def served(assignments: Assignments, transport: str) -> AsyncIterator[tuple[grpc.aio.Channel, Server]]:
    settings = ServiceSettings(
        listen="127.0.0.1:0", mesh_key="A" * 43, metrics_listen="", drain_seconds=0.5, grpc_server=transport
    )
    server = Server(settings, required={})
    server.add_foreign(
        rlqs_pb2_grpc.add_RateLimitQuotaServiceServicer_to_server,
        AssignmentStreams(assignments, server.stopping),
        traced=False,
    )
    running = asyncio.create_task(server.run())
    try:
        async with grpc.aio.insecure_channel(await server.address) as channel:
            yield channel, server
    finally:
        server.stopping.set()
        await running


async def _read(stream: Any) -> rlqs_pb2.RateLimitQuotaResponse:
    answer = await stream.read()
    assert isinstance(answer, rlqs_pb2.RateLimitQuotaResponse)
    return answer


def report(
    *ids: dict[str, str], allowed: int = 1, elapsed: int = 0, domain: str = DOMAIN
) -> rlqs_pb2.RateLimitQuotaUsageReports:
    usages = [
        rlqs_pb2.RateLimitQuotaUsageReports.BucketQuotaUsage(
            bucket_id=rlqs_pb2.BucketId(bucket=each),
            time_elapsed=duration_pb2.Duration(seconds=elapsed),
            num_requests_allowed=allowed,
        )
        for each in ids
    ]
    return rlqs_pb2.RateLimitQuotaUsageReports(domain=domain, bucket_quota_usages=usages)


async def test_new_tokens_come_behind_a_rule_so_that_envoy_begins_with_a_full_bucket(
    assigning: Assigning, transport: str
) -> None:
    """It keeps the level of a bucket that another bucket follows, which is how an assignment is made to last longer."""
    async with served(assigning(by_default()), transport) as (channel, _):
        stream = rlqs_pb2_grpc.RateLimitQuotaServiceStub(channel).StreamRateLimitQuotas()
        told = []
        for allowed, elapsed in ((1, 0), (2, 5), (7, 5)):
            await stream.write(report(dict(ADDRESS), allowed=allowed, elapsed=elapsed))
            actions = (await _read(stream)).bucket_action
            assert {tuple(sorted(each.bucket_id.bucket.items())) for each in actions} == {ADDRESS}
            assert {each.quota_assignment_action.assignment_time_to_live.seconds for each in actions} == {15}
            told.append([each.quota_assignment_action.rate_limit_strategy for each in actions])
        await stream.done_writing()
    refuse = rlqs_pb2.RateLimitStrategy(blanket_rule=rlqs_pb2.RateLimitStrategy.DENY_ALL)
    (before, bucket), again, spent = told
    assert before == refuse
    assert bucket.token_bucket.max_tokens == 9
    assert again == [bucket]
    assert spent == [refuse]


async def test_reports_that_cannot_be_used_end_the_stream_or_are_forgotten(
    assigning: Assigning, transport: str
) -> None:
    async with served(assigning(by_default()), transport) as (channel, _):
        stub = rlqs_pb2_grpc.RateLimitQuotaServiceStub(channel)
        nameless = stub.StreamRateLimitQuotas()
        await nameless.write(report(dict(ADDRESS), domain=""))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await nameless.read()
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        stream = stub.StreamRateLimitQuotas()
        long = {"class": "default", "client_ip": "1" * LONGEST_ID}
        many = {f"key-{number}": "x" for number in range(MOST_ENTRIES + 1)}
        await stream.write(report({}, long, many, dict(ADDRESS)))
        told: dict[BucketId, rlqs_pb2.RateLimitQuotaResponse.BucketAction] = {}
        while len(told) < 3:
            for each in (await _read(stream)).bucket_action:
                told[tuple(sorted(each.bucket_id.bucket.items()))] = each
        assert {bucket for bucket, each in told.items() if each.HasField("abandon_action")} == {
            tuple(sorted(long.items())),
            tuple(sorted(many.items())),
        }
        assert told[ADDRESS].quota_assignment_action.rate_limit_strategy.token_bucket.max_tokens == 9
        await stream.write(report(dict(ADDRESS), domain="another"))
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stream.read()
        assert error.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_too_many_envoys_are_refused_and_a_place_is_free_when_one_leaves(
    assigning: Assigning, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "MOST_EDGES", 1)
    async with served(assigning(by_default()), transport) as (channel, _):
        stub = rlqs_pb2_grpc.RateLimitQuotaServiceStub(channel)
        first = stub.StreamRateLimitQuotas()
        await first.write(report(dict(ADDRESS)))
        await first.read()

        async def answered() -> bool:
            stream = stub.StreamRateLimitQuotas()
            try:
                await stream.write(report(dict(ADDRESS)))
                await stream.read()
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                codes.append(await stream.code())
                return False
            return True

        codes: list[grpc.StatusCode] = []
        assert not await answered()
        assert codes == [grpc.StatusCode.RESOURCE_EXHAUSTED]
        first.cancel()
        await until(answered)


async def test_all_places_are_free_again_when_many_envoys_leave_at_once(
    assigning: Assigning, transport: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operations, "MOST_EDGES", 40)
    async with served(assigning(by_default()), transport) as (channel, _):
        stub = rlqs_pb2_grpc.RateLimitQuotaServiceStub(channel)

        async def come(number: int) -> Any:
            """The stream, when its Envoy has been answered, which is with all the others."""
            stream = stub.StreamRateLimitQuotas()
            try:
                await stream.write(report({"class": "default", "client_ip": f"192.0.2.{number}/32"}))
                return stream if isinstance(await stream.read(), rlqs_pb2.RateLimitQuotaResponse) else None
            except (grpc.aio.AioRpcError, asyncio.InvalidStateError):
                return None

        async def all_come_and_go() -> bool:
            streams = await asyncio.gather(*map(come, range(40)))
            for place, stream in enumerate(streams):
                if stream:
                    if place % 2:
                        # Ended by its own end as well as by the cancellation.
                        await stream.done_writing()
                    stream.cancel()
            return all(streams)

        for _ in range(3):
            await until(all_come_and_go)


async def test_streams_end_when_the_server_drains(assigning: Assigning, transport: str) -> None:
    async with served(assigning(by_default()), transport) as (channel, server):
        stream = rlqs_pb2_grpc.RateLimitQuotaServiceStub(channel).StreamRateLimitQuotas()
        await stream.write(report(dict(ADDRESS)))
        await stream.read()
        server.stopping.set()
        with pytest.raises(grpc.aio.AioRpcError) as error:
            await stream.read()
        assert error.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("tokens", "wanted", "parts"),
    [
        (10, [100, 100], [5, 5]),
        (10, [2, 100], [2, 8]),
        (1, [5, 5], [1, 0]),
        (10, [3, 3], [3, 3]),
        (0, [3], [0]),
        (7, [0, 1, 9], [0, 1, 6]),
    ],
)
def test_tokens_are_divided_so_that_nobody_has_more_than_one_who_wants_more(
    tokens: int, wanted: Sequence[int], parts: list[int]
) -> None:
    assert divided(tokens, wanted) == parts


def test_parts_follow_demand_and_nobody_is_left_out() -> None:
    assert weights([None, None]) == [0.5, 0.5]
    busy, idle = weights([100.0, 0.0])
    assert busy > 0.9
    assert idle > 0
    assert weights([0.0, 0.0]) == [0.5, 0.5]
