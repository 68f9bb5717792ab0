"""Reservations at the service's door."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from redis.asyncio import Redis
from storymesh.ratelimit.v1 import reservation_service_pb2 as pb
from storymesh.ratelimit.v1.reservation_service_pb2_grpc import ReservationServiceStub

from kit.data import redis as kit_redis
from kit.errors import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound, ResourceExhausted, Unavailable
from local.harness import Servers
from services.ratelimit.model.rules import RuleSet
from services.ratelimit.store.rules_file import load
from tests.ratelimit.limiter import calling, limiter, reserving

if TYPE_CHECKING:
    from storymesh.ratelimit.v1.reservation_service_pb2_grpc import ReservationServiceAsyncStub

RULES = """\
domain: storymesh
on_no_match: deny
rules:
  - name: tokens-a-day
    match: [{key: spend, value: tokens}, {key: user}]
    quota: 100/day
    on_redis_down: open
  - name: tokens-an-hour
    match: [{key: spend, value: tokens}, {key: user}]
    rate: 50/h
    burst: 80
    on_redis_down: open
  - name: blocked
    match: [{key: spend, value: tokens}, {key: user, value: eve}]
    block: true
  - name: careful
    match: [{key: careful}]
    quota: 100/month
    on_redis_down: closed
  - name: shared
    match: [{key: shared}]
    rate: 1/h
    burst: 10
    on_redis_down: local
    local_share: 0.5
  - name: tried
    match: [{key: tried}]
    quota: 1/day
    shadow: true
    on_redis_down: open
  - name: dear
    match: [{key: dear}]
    quota: 100/day
    cost: 10
    on_redis_down: open
"""


@pytest.fixture
def rules(tmp_path: Path) -> RuleSet:
    path = tmp_path / "rules.yaml"
    path.write_text(RULES)
    return load(path)


@asynccontextmanager
async def serving(redis: Redis, rules: RuleSet) -> AsyncIterator[ReservationServiceAsyncStub]:
    async with limiter(redis, lambda: rules, redis_seconds=2) as address, calling(address) as channel:
        yield ReservationServiceStub(channel)


@pytest.fixture
async def stub(limiter_redis: Redis, rules: RuleSet) -> AsyncIterator[ReservationServiceAsyncStub]:
    async with serving(limiter_redis, rules) as made:
        yield made


def commit(key: str, amount: int) -> pb.CommitRequest:
    return pb.CommitRequest(domain="storymesh", key=key, amount=amount)


def refund(key: str) -> pb.RefundRequest:
    return pb.RefundRequest(domain="storymesh", key=key)


async def test_what_is_reserved_is_held_back_and_what_was_not_used_comes_back(
    stub: ReservationServiceAsyncStub,
) -> None:
    assert (await stub.Reserve(reserving("a", 60))).reserved
    with pytest.raises(ResourceExhausted) as refused:
        await stub.Reserve(reserving("b", 30))
    assert refused.value.reason == "RATE_LIMITED"
    assert refused.value.metadata["rule"] == "tokens-an-hour"
    assert refused.value.retry_after
    assert refused.value.retry_after <= timedelta(minutes=12)
    await stub.Commit(commit("a", 20))
    assert (await stub.Reserve(reserving("b", 60))).reserved


async def test_using_more_than_was_reserved_counts_too(stub: ReservationServiceAsyncStub) -> None:
    await stub.Reserve(reserving("a", 10))
    await stub.Commit(commit("a", 500))
    with pytest.raises(ResourceExhausted):
        await stub.Reserve(reserving("b", 1))


async def test_every_call_may_be_repeated(stub: ReservationServiceAsyncStub) -> None:
    for _ in range(3):
        assert (await stub.Reserve(reserving("a", 50))).reserved
    for _ in range(3):
        await stub.Commit(commit("a", 30))
    await stub.Reserve(reserving("b", 50))
    for _ in range(3):
        await stub.Refund(refund("b"))
    assert (await stub.Reserve(reserving("c", 50))).reserved


async def test_what_contradicts_an_earlier_call_is_refused(stub: ReservationServiceAsyncStub) -> None:
    await stub.Reserve(reserving("a", 50))
    for other in (reserving("a", 40), reserving("a", 50, "spend=tokens", "user=bob")):
        with pytest.raises(AlreadyExists) as reused:
            await stub.Reserve(other)
        assert reused.value.reason == "RESERVATION_KEY_REUSED"
    await stub.Commit(commit("a", 30))
    for settled in (stub.Commit(commit("a", 31)), stub.Refund(refund("a")), stub.Reserve(reserving("a", 50))):
        with pytest.raises(FailedPrecondition) as refused:
            await settled
        assert (refused.value.reason, refused.value.metadata["stage"]) == ("RESERVATION_SETTLED", "committed")


async def test_what_has_expired_or_never_was_is_not_found_and_stays_spent(
    stub: ReservationServiceAsyncStub, redis: Redis
) -> None:
    await stub.Reserve(reserving("a", 70))
    for key in await redis.keys("ratelimit:*%reservation*"):
        await redis.delete(key)
    for lost in (stub.Refund(refund("a")), stub.Commit(commit("a", 1)), stub.Refund(refund("never"))):
        with pytest.raises(NotFound) as refused:
            await lost
        assert refused.value.reason == "RESERVATION_NOT_FOUND"
    with pytest.raises(ResourceExhausted):
        await stub.Reserve(reserving("b", 20))


async def test_what_no_wait_makes_possible_has_a_reason_of_its_own(stub: ReservationServiceAsyncStub) -> None:
    for request, rule in (
        (reserving("a", 101), {"tokens-a-day", "tokens-an-hour"}),
        (reserving("b", 1, "spend=tokens", "user=eve"), {"blocked"}),
    ):
        with pytest.raises(ResourceExhausted) as refused:
            await stub.Reserve(request)
        assert refused.value.reason == "RATE_LIMIT_UNSATISFIABLE"
        assert refused.value.metadata["rule"] in rule
        assert refused.value.retry_after is None


async def test_what_no_rule_matches_is_not_reserved(stub: ReservationServiceAsyncStub) -> None:
    assert not (await stub.Reserve(reserving("a", 10**9, "other=thing"))).reserved


async def test_descriptors_that_no_rule_matches_leave_the_others_counted(stub: ReservationServiceAsyncStub) -> None:
    request = reserving("a", 101)
    request.descriptors.add(entries=[{"key": "other", "value": "thing"}])
    with pytest.raises(ResourceExhausted):
        await stub.Reserve(request)


async def test_a_rule_in_shadow_mode_refuses_nothing(stub: ReservationServiceAsyncStub) -> None:
    assert (await stub.Reserve(reserving("a", 1, "tried=x"))).reserved
    assert (await stub.Reserve(reserving("b", 5, "tried=x"))).reserved
    await stub.Commit(commit("b", 5))


async def test_a_rules_cost_counts_for_what_is_reserved_and_what_is_given_back(
    stub: ReservationServiceAsyncStub,
) -> None:
    await stub.Reserve(reserving("a", 10, "dear=x"))
    await stub.Commit(commit("a", 4))
    with pytest.raises(ResourceExhausted):
        await stub.Reserve(reserving("b", 7, "dear=x"))
    assert (await stub.Reserve(reserving("c", 6, "dear=x"))).reserved


async def test_64_callers_at_two_replicas_get_no_more_than_there_is(limiter_redis: Redis, rules: RuleSet) -> None:
    async with serving(limiter_redis, rules) as one, serving(limiter_redis, rules) as other:

        async def spend(number: int) -> int:
            stub = (one, other)[number % 2]
            try:
                await stub.Reserve(reserving(str(number), 7))
            except ResourceExhausted:
                return 0
            used = number % 4
            await asyncio.gather(one.Commit(commit(str(number), used)), other.Commit(commit(str(number), used)))
            return used

        used = sum(await asyncio.gather(*map(spend, range(64))))
        assert used <= 80
        with pytest.raises(ResourceExhausted):
            await one.Reserve(reserving("more", 81 - used))
        # What a refund leaves out, because it may have come back by itself, is less than a token here.
        assert (await one.Reserve(reserving("rest", 79 - used))).reserved


async def test_without_redis_each_rule_says_what_is_reserved(stoppable_redis: Servers, rules: RuleSet) -> None:
    url = stoppable_redis.service_redis_url("ratelimit")
    async with kit_redis.connect(url) as client, serving(client, rules) as stub:
        await stub.Reserve(reserving("a", 10))
        await stoppable_redis.stop("redis")
        try:
            assert not (await stub.Reserve(reserving("b", 10))).reserved
            assert not (await stub.Reserve(reserving("c", 5, "shared=x"))).reserved
            with pytest.raises(ResourceExhausted):
                await stub.Reserve(reserving("d", 5, "shared=x"))
            for closed in (
                stub.Reserve(reserving("e", 1, "careful=x")),
                stub.Commit(commit("a", 1)),
                stub.Refund(refund("a")),
            ):
                with pytest.raises(Unavailable) as refused:
                    await closed
                assert refused.value.reason == "RATE_LIMIT_BUCKETS_UNREACHABLE"
        finally:
            await stoppable_redis.start("redis")


async def test_requests_are_checked(stub: ReservationServiceAsyncStub) -> None:
    eternal = reserving("a", 1)
    eternal.ttl.seconds = 8 * 86_400
    for bad in (reserving("", 1), reserving("a", 0), reserving("a", -1), reserving("a", 10**9 + 1), eternal):
        with pytest.raises(InvalidArgument):
            await stub.Reserve(bad)
    with pytest.raises(InvalidArgument):
        await stub.Commit(commit("a", -1))
