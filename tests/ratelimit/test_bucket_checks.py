"""Checks of whole calls, with Redis up and down."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import pytest
from redis.asyncio import Redis

from kit.data import redis as kit_redis
from kit.data.blocking_redis import BlockingRedis
from kit.errors import DeadlineExceeded, Internal, InvalidArgument
from local.harness import Servers
from services.ratelimit.errors import BucketsUnreachable
from services.ratelimit.model import Call, Limit, Taken
from services.ratelimit.model.decisions import Decision, tightest
from services.ratelimit.model.rules import DomainRules, Entries, OnNoMatch, OnRedisDown, Rule, RuleSet
from services.ratelimit.operations.buckets import Asking, Buckets
from services.ratelimit.operations.planning import Check, Passed
from services.ratelimit.store import BucketStore
from services.ratelimit.store.buckets import RedisBucketStore
from services.ratelimit.store.memory import MemoryBucketStore
from tests.ratelimit.building import DOMAIN, BucketsFor, by_address, by_user, descriptor, rule, rule_set

ADDRESSES = rule("addresses", "class=default client_ip", limit=Limit(60, 60, burst=5))
USERS = rule("users", "class=default user", limit=Limit(60, 60, burst=2))


def remaining(decision: Decision) -> dict[str, int]:
    outcomes = [outcome for answer in decision.answers for outcome in answer.outcomes]
    return {outcome.rule.name: outcome.verdict.remaining for outcome in outcomes if outcome.verdict is not None}


async def test_a_refused_call_costs_none_of_its_buckets_anything(buckets_for: BucketsFor) -> None:
    buckets = buckets_for(rule_set(ADDRESSES, USERS))
    decisions = [buckets.check(DOMAIN, [by_address(), by_user()], remaining=None) for _ in range(4)]
    assert [decision.admitted for decision in decisions] == [True, True, False, False]
    assert remaining(decisions[-1]) == {"addresses": 3, "users": 0}
    assert [answer.admitted for answer in decisions[-1].answers] == [True, False]


async def test_every_rule_that_matches_applies(buckets_for: BucketsFor) -> None:
    daily = rule("daily", "class=default user", limit=Limit(10, 86_400, burst=1))
    decision = buckets_for(rule_set(USERS, daily)).check(DOMAIN, [by_user()], remaining=None)
    assert remaining(decision) == {"users": 1, "daily": 0}


async def test_other_addresses_and_other_users_have_buckets_of_their_own(buckets_for: BucketsFor) -> None:
    buckets = buckets_for(rule_set(ADDRESSES))
    for address in ("192.0.2.7/32", "2001:db8:1:2::/64"):
        assert remaining(buckets.check(DOMAIN, [by_address(address)], remaining=None)) == {"addresses": 4}


async def test_descriptors_that_mean_one_bucket_need_tokens_for_both(buckets_for: BucketsFor) -> None:
    buckets = buckets_for(rule_set(USERS))
    assert remaining(buckets.check(DOMAIN, [by_user(), by_user()], remaining=None)) == {"users": 0}
    assert not buckets.check(DOMAIN, [by_user(hits=2), by_user("other")], remaining=None).admitted


async def test_hits_are_what_a_call_costs_and_none_is_a_look(buckets_for: BucketsFor) -> None:
    buckets = buckets_for(rule_set(ADDRESSES))
    costs = [buckets.check(DOMAIN, [by_address(hits=hits)], remaining=None) for hits in (3, 0, 3, 0, 2, 0)]
    assert [decision.admitted for decision in costs] == [True, True, False, True, True, False]
    assert [remaining(decision)["addresses"] for decision in costs] == [2, 2, 2, 2, 0, 0]


async def test_a_descriptor_without_a_rule_gets_what_the_file_says(buckets_for: BucketsFor, redis: Redis) -> None:
    call = [by_address(), descriptor(("tenant", "a"))]
    allowed = buckets_for(rule_set(ADDRESSES)).check(DOMAIN, call, remaining=None)
    assert allowed.admitted
    await redis.flushdb()
    denied = buckets_for(rule_set(ADDRESSES, on_no_match=OnNoMatch.DENY)).check(DOMAIN, call, remaining=None)
    assert [answer.admitted for answer in denied.answers] == [True, False]
    assert await redis.keys() == []


async def test_the_tightest_is_the_longest_refusal_else_the_emptiest_bucket(buckets_for: BucketsFor) -> None:
    slow = rule("slow", "class=default client_ip", limit=Limit(1, 60, burst=2))
    buckets = buckets_for(rule_set(ADDRESSES, USERS, slow))
    names = []
    for _ in range(3):
        decision = buckets.check(DOMAIN, [by_user(), by_address()], remaining=None)
        found = tightest([outcome for answer in decision.answers for outcome in answer.outcomes])
        names.append(found and (found.rule.name, found.admits))
    assert names == [("users", True), ("users", True), ("slow", False)]


async def test_a_call_without_domain_or_descriptors_is_invalid(buckets_for: BucketsFor) -> None:
    with pytest.raises(InvalidArgument) as refused:
        buckets_for(rule_set()).check("", [], remaining=None)
    assert [violation.field for violation in refused.value.violations] == ["domain", "descriptors"]


async def test_nothing_is_debited_for_a_caller_that_is_gone(buckets_for: BucketsFor, redis: Redis) -> None:
    with pytest.raises(DeadlineExceeded):
        buckets_for(rule_set(ADDRESSES)).check(DOMAIN, [by_address()], remaining=0.005)
    assert await redis.keys() == []


OPEN_AND_CLOSED = rule_set(
    rule("reading", "class=default client_ip", on_redis_down=OnRedisDown.OPEN),
    rule("logins", "class=credentials client_ip", on_redis_down=OnRedisDown.CLOSED),
)


@dataclass
class Timed:
    """A store that notes how many calls it was asked, and how long it might take."""

    store: BucketStore
    asked: list[tuple[int, float]] = field(default_factory=list)

    def take(self, calls: Sequence[Call], *, seconds: float) -> list[Taken]:
        self.asked.append((len(calls), seconds))
        return self.store.take(calls, seconds=seconds)


READING, LOGIN = [by_address()], [by_address(rate_limit_class="credentials")]


@pytest.fixture
async def fragile(stoppable_redis: Servers) -> AsyncIterator[Buckets]:
    async with kit_redis.connect(stoppable_redis.service_redis_url("ratelimit")) as client:
        await stoppable_redis.healthy("redis")
        with closing(BlockingRedis(client)) as connection:
            yield Buckets(RedisBucketStore(connection), lambda: OPEN_AND_CLOSED, redis_seconds=0.5)


async def answers_again(buckets: Buckets) -> None:
    async with asyncio.timeout(20):
        while True:
            decision = buckets.check(DOMAIN, READING, remaining=None)
            if decision.answers[0].outcomes:
                return
            await asyncio.sleep(0.02)


async def test_a_dead_redis_stops_what_is_closed_and_lets_pass_what_is_open_until_it_is_back(
    fragile: Buckets, stoppable_redis: Servers, caplog: pytest.LogCaptureFixture
) -> None:
    fragile.check(DOMAIN, LOGIN, remaining=None)
    dead = stoppable_redis.pid("redis")
    stoppable_redis.kill("redis")
    await stoppable_redis.stop("redis")
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            decision = fragile.check(DOMAIN, READING, remaining=None)
            assert decision.admitted
            assert decision.answers[0].outcomes == ()
            with pytest.raises(BucketsUnreachable):
                fragile.check(DOMAIN, LOGIN, remaining=None)
            with pytest.raises(BucketsUnreachable):
                fragile.check(DOMAIN, [*READING, *LOGIN], remaining=None)
        await stoppable_redis.start("redis")
        assert await stoppable_redis.healthy("redis", not_pid=dead) != dead
        await answers_again(fragile)
    assert fragile.check(DOMAIN, LOGIN, remaining=None).answers[0].outcomes
    told = [record.levelname for record in caplog.records if record.name == "services.ratelimit.operations.buckets"]
    assert told == ["ERROR", "INFO"]


async def test_a_restarted_redis_costs_no_call(fragile: Buckets, stoppable_redis: Servers) -> None:
    fragile.check(DOMAIN, LOGIN, remaining=None)
    await stoppable_redis.restart("redis")
    assert fragile.check(DOMAIN, LOGIN, remaining=None).answers[0].outcomes


async def test_a_redis_that_hangs_holds_a_call_no_longer_than_its_deadline(
    fragile: Buckets, stoppable_redis: Servers
) -> None:
    fragile.check(DOMAIN, READING, remaining=None)
    stoppable_redis.kill("redis", signal.SIGSTOP)
    try:
        began = asyncio.get_running_loop().time()
        decision = fragile.check(DOMAIN, READING, remaining=0.1)
        took = asyncio.get_running_loop().time() - began
    finally:
        stoppable_redis.kill("redis", signal.SIGCONT)
    assert decision.admitted
    assert took < 0.45
    await answers_again(fragile)


async def test_a_redis_that_hangs_holds_no_call_of_a_batch_past_its_deadline(
    fragile: Buckets, stoppable_redis: Servers
) -> None:
    """Calls with far deadlines wait no longer than twice as long as those with near ones."""
    fragile.check(DOMAIN, READING, remaining=None)
    reading, login = Check(DOMAIN, READING), Check(DOMAIN, LOGIN)
    batch = [
        Asking(reading, 0.06),
        Asking(login, 5.0),
        Asking(reading, None),
        Asking(reading, 0.005),
        Asking(login, 0.1),
    ]
    stoppable_redis.kill("redis", signal.SIGSTOP)
    try:
        began = asyncio.get_running_loop().time()
        answers = fragile.check_many(batch)
        took = asyncio.get_running_loop().time() - began
    finally:
        stoppable_redis.kill("redis", signal.SIGCONT)
    kinds = [type(answer) for answer in answers]
    assert kinds == [Decision, BucketsUnreachable, Decision, DeadlineExceeded, BucketsUnreachable]
    assert took < 0.95
    await answers_again(fragile)


def test_a_near_deadline_takes_no_time_from_the_other_calls_of_its_batch() -> None:
    store = Timed(MemoryBucketStore(lambda: 1_800_000_000_000_000))
    buckets = Buckets(store, lambda: rule_set(ADDRESSES), redis_seconds=0.5)
    deadlines = [None, 0.06, 2.0, 0.4, 0.1, 0.05]
    answers = buckets.check_many(
        [Asking(Check(DOMAIN, [by_address(f"192.0.2.{number}")]), left) for number, left in enumerate(deadlines)]
    )
    assert all(isinstance(answer, Passed) for answer in answers)
    assert [(calls, round(seconds, 1)) for calls, seconds in store.asked] == [(2, 0.0), (1, 0.1), (3, 0.4)]


def test_one_call_that_cannot_be_dealt_with_fails_alone(caplog: pytest.LogCaptureFixture) -> None:
    class Poisoned(DomainRules):
        def matching(self, entries: Entries) -> tuple[Rule, ...]:
            if entries[0][0] == "poison":
                raise ZeroDivisionError
            return super().matching(entries)

    rules = RuleSet((Poisoned(DOMAIN, OnNoMatch.ALLOW, (USERS,)),))
    buckets = Buckets(MemoryBucketStore(lambda: 1_800_000_000_000_000), lambda: rules, redis_seconds=0.5)
    calls = [[by_user()], [descriptor(("poison", ""))], [], [by_user()], [by_user()]]
    answers = buckets.check_many([Asking(Check(DOMAIN, call), None) for call in calls])
    assert [type(answer) for answer in answers] == [Passed, Internal, InvalidArgument, Passed, Decision]
    assert [answer.admitted for answer in answers if isinstance(answer, Decision)] == [False]


def test_a_call_with_more_buckets_than_a_store_takes_is_invalid() -> None:
    rules = rule_set(*(rule(f"rule-{number}", "class=default user") for number in range(16)))
    buckets = Buckets(MemoryBucketStore(lambda: 1_800_000_000_000_000), lambda: rules, redis_seconds=0.5)
    few, many = ([by_user(str(number)) for number in range(count)] for count in (15, 16))
    assert buckets.check(DOMAIN, few, remaining=None).admitted
    with pytest.raises(InvalidArgument):
        buckets.check(DOMAIN, many, remaining=None)


async def test_only_the_rules_in_force_are_asked(store: BucketStore) -> None:
    in_force: list[RuleSet] = [rule_set(ADDRESSES)]
    buckets = Buckets(store, lambda: in_force[-1], redis_seconds=5)
    assert remaining(buckets.check(DOMAIN, [by_address()], remaining=None)) == {"addresses": 4}
    in_force.append(rule_set(rule("addresses", "class=default client_ip", limit=Limit(60, 60, burst=10))))
    assert remaining(buckets.check(DOMAIN, [by_address()], remaining=None)) == {"addresses": 8}
