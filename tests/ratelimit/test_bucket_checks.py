"""Checks of whole calls, with Redis up and down."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from kit.data import redis as kit_redis
from kit.errors import DeadlineExceeded, InvalidArgument
from local.harness import Servers
from services.ratelimit.errors import BucketsUnreachable
from services.ratelimit.model import Limit
from services.ratelimit.model.rules import OnNoMatch, OnRedisDown, RuleSet
from services.ratelimit.operations.buckets import Buckets, Decision, tightest
from services.ratelimit.store.buckets import BucketStore, retrying_once
from tests.ratelimit.building import DOMAIN, BucketsFor, by_address, by_user, descriptor, rule, rule_set

ADDRESSES = rule("addresses", "class=default client_ip", limit=Limit(60, 60, burst=5))
USERS = rule("users", "class=default user", limit=Limit(60, 60, burst=2))


def remaining(decision: Decision) -> dict[str, int]:
    return {outcome.rule.name: outcome.verdict.remaining for answer in decision.answers for outcome in answer.outcomes}


async def test_a_refused_call_costs_none_of_its_buckets_anything(buckets_for: BucketsFor) -> None:
    buckets = buckets_for(rule_set(ADDRESSES, USERS))
    decisions = [await buckets.check(DOMAIN, [by_address(), by_user()], remaining=None) for _ in range(4)]
    assert [decision.admitted for decision in decisions] == [True, True, False, False]
    assert remaining(decisions[-1]) == {"addresses": 3, "users": 0}
    assert [answer.admitted for answer in decisions[-1].answers] == [True, False]


async def test_every_rule_that_matches_applies(buckets_for: BucketsFor) -> None:
    daily = rule("daily", "class=default user", limit=Limit(10, 86_400, burst=1))
    decision = await buckets_for(rule_set(USERS, daily)).check(DOMAIN, [by_user()], remaining=None)
    assert remaining(decision) == {"users": 1, "daily": 0}


async def test_other_addresses_and_other_users_have_buckets_of_their_own(buckets_for: BucketsFor) -> None:
    buckets = buckets_for(rule_set(ADDRESSES))
    for address in ("192.0.2.7/32", "2001:db8:1:2::/64"):
        assert remaining(await buckets.check(DOMAIN, [by_address(address)], remaining=None)) == {"addresses": 4}


async def test_descriptors_that_mean_one_bucket_need_tokens_for_both(buckets_for: BucketsFor) -> None:
    buckets = buckets_for(rule_set(USERS))
    assert remaining(await buckets.check(DOMAIN, [by_user(), by_user()], remaining=None)) == {"users": 0}
    assert not (await buckets.check(DOMAIN, [by_user(hits=2), by_user("other")], remaining=None)).admitted


async def test_hits_are_what_a_call_costs_and_none_is_a_look(buckets_for: BucketsFor) -> None:
    buckets = buckets_for(rule_set(ADDRESSES))
    costs = [await buckets.check(DOMAIN, [by_address(hits=hits)], remaining=None) for hits in (3, 0, 3, 0, 2, 0)]
    assert [decision.admitted for decision in costs] == [True, True, False, True, True, False]
    assert [remaining(decision)["addresses"] for decision in costs] == [2, 2, 2, 2, 0, 0]


async def test_a_descriptor_without_a_rule_gets_what_the_file_says(buckets_for: BucketsFor, redis: Redis) -> None:
    call = [by_address(), descriptor(("tenant", "a"))]
    allowed = await buckets_for(rule_set(ADDRESSES)).check(DOMAIN, call, remaining=None)
    assert allowed.admitted
    await redis.flushdb()
    denied = await buckets_for(rule_set(ADDRESSES, on_no_match=OnNoMatch.DENY)).check(DOMAIN, call, remaining=None)
    assert [answer.admitted for answer in denied.answers] == [True, False]
    assert await redis.keys() == []


async def test_the_tightest_is_the_longest_refusal_else_the_emptiest_bucket(buckets_for: BucketsFor) -> None:
    slow = rule("slow", "class=default client_ip", limit=Limit(1, 60, burst=2))
    buckets = buckets_for(rule_set(ADDRESSES, USERS, slow))
    names = []
    for _ in range(3):
        decision = await buckets.check(DOMAIN, [by_user(), by_address()], remaining=None)
        found = tightest([outcome for answer in decision.answers for outcome in answer.outcomes])
        names.append(found and (found.rule.name, found.verdict.admits))
    assert names == [("users", True), ("users", True), ("slow", False)]


async def test_a_call_without_domain_or_descriptors_is_invalid(buckets_for: BucketsFor) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await buckets_for(rule_set()).check("", [], remaining=None)
    assert [violation.field for violation in refused.value.violations] == ["domain", "descriptors"]


async def test_nothing_is_debited_for_a_caller_that_is_gone(buckets_for: BucketsFor, redis: Redis) -> None:
    with pytest.raises(DeadlineExceeded):
        await buckets_for(rule_set(ADDRESSES)).check(DOMAIN, [by_address()], remaining=0.005)
    assert await redis.keys() == []


OPEN_AND_CLOSED = rule_set(
    rule("reading", "class=default client_ip", on_redis_down=OnRedisDown.OPEN),
    rule("logins", "class=credentials client_ip", on_redis_down=OnRedisDown.CLOSED),
)
READING, LOGIN = [by_address()], [by_address(rate_limit_class="credentials")]


@pytest.fixture
async def fragile(stoppable_redis: Servers) -> AsyncIterator[Buckets]:
    async with retrying_once(kit_redis.connect(stoppable_redis.service_redis_url("ratelimit"))) as client:
        await stoppable_redis.healthy("redis")
        yield Buckets(BucketStore(client), lambda: OPEN_AND_CLOSED, redis_seconds=0.5)


async def answers_again(buckets: Buckets) -> None:
    async with asyncio.timeout(20):
        while True:
            decision = await buckets.check(DOMAIN, READING, remaining=None)
            if decision.answers[0].outcomes:
                return
            await asyncio.sleep(0.02)


async def test_a_dead_redis_stops_what_is_closed_and_lets_pass_what_is_open_until_it_is_back(
    fragile: Buckets, stoppable_redis: Servers, caplog: pytest.LogCaptureFixture
) -> None:
    await fragile.check(DOMAIN, LOGIN, remaining=None)
    dead = stoppable_redis.pid("redis")
    stoppable_redis.kill("redis")
    await stoppable_redis.stop("redis")
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            decision = await fragile.check(DOMAIN, READING, remaining=None)
            assert decision.admitted
            assert decision.answers[0].outcomes == ()
            with pytest.raises(BucketsUnreachable):
                await fragile.check(DOMAIN, LOGIN, remaining=None)
            with pytest.raises(BucketsUnreachable):
                await fragile.check(DOMAIN, [*READING, *LOGIN], remaining=None)
        await stoppable_redis.start("redis")
        assert await stoppable_redis.healthy("redis", not_pid=dead) != dead
        await answers_again(fragile)
    assert (await fragile.check(DOMAIN, LOGIN, remaining=None)).answers[0].outcomes
    told = [record.levelname for record in caplog.records if record.name == "services.ratelimit.operations.buckets"]
    assert told == ["ERROR", "INFO"]


async def test_a_restarted_redis_costs_no_call(fragile: Buckets, stoppable_redis: Servers) -> None:
    await fragile.check(DOMAIN, LOGIN, remaining=None)
    await stoppable_redis.restart("redis")
    assert (await fragile.check(DOMAIN, LOGIN, remaining=None)).answers[0].outcomes


async def test_a_redis_that_hangs_holds_a_call_no_longer_than_its_deadline(
    fragile: Buckets, stoppable_redis: Servers
) -> None:
    await fragile.check(DOMAIN, READING, remaining=None)
    stoppable_redis.kill("redis", signal.SIGSTOP)
    try:
        began = asyncio.get_running_loop().time()
        decision = await fragile.check(DOMAIN, READING, remaining=0.1)
        took = asyncio.get_running_loop().time() - began
    finally:
        stoppable_redis.kill("redis", signal.SIGCONT)
    assert decision.admitted
    assert took < 0.45
    await answers_again(fragile)


async def test_only_the_rules_in_force_are_asked(store: BucketStore) -> None:
    in_force: list[RuleSet] = [rule_set(ADDRESSES)]
    buckets = Buckets(store, lambda: in_force[-1], redis_seconds=5)
    assert remaining(await buckets.check(DOMAIN, [by_address()], remaining=None)) == {"addresses": 4}
    in_force.append(rule_set(rule("addresses", "class=default client_ip", limit=Limit(60, 60, burst=10))))
    assert remaining(await buckets.check(DOMAIN, [by_address()], remaining=None)) == {"addresses": 8}
