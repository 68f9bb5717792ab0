"""Quotas per calendar day and month: their periods, their counts in every store, and what clients are told."""

from __future__ import annotations

import itertools
import time
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from services.ratelimit.model import MICROSECONDS, Charge, Limit, State, Window, take_in_order
from services.ratelimit.model.quotas import Period, Quota
from services.ratelimit.model.rules import OnRedisDown
from services.ratelimit.operations.planning import Check
from services.ratelimit.store import BucketStore
from services.ratelimit.store.memory import MemoryBucketStore
from tests.ratelimit.building import by_user, described, rule, rule_set
from tests.ratelimit.test_answers import Door, added, shown_by_envoy, shown_by_us
from tests.ratelimit.test_rule_kinds import Limiter

SECONDS = 10.0
HOUR = 3600 * MICROSECONDS


def instant(text: str) -> int:
    return int(datetime.fromisoformat(text).timestamp()) * MICROSECONDS


def as_text(at: int) -> str:
    return datetime.fromtimestamp(at // MICROSECONDS, UTC).isoformat().removesuffix("+00:00")


@pytest.mark.parametrize(
    ("period", "zone", "at", "starts", "ends", "after"),
    [
        ("day", "UTC", "2026-11-30T23:59:59Z", "2026-11-30T00:00:00", "2026-12-01T00:00:00", "2026-12-02T00:00:00"),
        ("day", "UTC", "2026-11-30T00:00:00Z", "2026-11-30T00:00:00", "2026-12-01T00:00:00", "2026-12-02T00:00:00"),
        ("month", "UTC", "2028-02-29T12:00:00Z", "2028-02-01T00:00:00", "2028-03-01T00:00:00", "2028-04-01T00:00:00"),
        ("month", "UTC", "2026-12-31T23:00:00Z", "2026-12-01T00:00:00", "2027-01-01T00:00:00", "2027-02-01T00:00:00"),
        # A day of 23 hours, one of 25, and one whose midnight does not exist.
        ("day", "Europe/Berlin", "2026-03-29T10:00:00Z", "2026-03-28T23:00:00", "2026-03-29T22:00:00", "2026-03-30T22:00:00"),
        ("day", "Europe/Berlin", "2026-10-24T23:30:00Z", "2026-10-24T22:00:00", "2026-10-25T23:00:00", "2026-10-26T23:00:00"),
        ("day", "Africa/Cairo", "2026-04-24T12:00:00Z", "2026-04-23T22:00:00", "2026-04-24T21:00:00", "2026-04-25T21:00:00"),
        ("month", "Asia/Tokyo", "2026-01-31T15:00:00Z", "2026-01-31T15:00:00", "2026-02-28T15:00:00", "2026-03-31T15:00:00"),
        ("day", "Pacific/Kiritimati", "2026-11-30T10:00:00Z", "2026-11-30T10:00:00", "2026-12-01T10:00:00", "2026-12-02T10:00:00"),
    ],
)  # fmt: skip
def test_a_period_is_the_calendars_in_its_zone(
    period: str, zone: str, at: str, starts: str, ends: str, after: str
) -> None:
    window = Quota(5, Period(period), zone).window(instant(at))
    assert [as_text(each) for each in (window.starts, window.ends, window.after)] == [starts, ends, after]


def test_a_store_whose_clock_differs_a_little_counts_in_the_period_that_it_is_in() -> None:
    window = Quota(5, Period.DAY).window(instant("2026-11-30T12:00:00Z"))
    assert window.stop(window.starts - 1) == window.starts
    assert window.stop(window.starts) == window.stop(window.ends - 1) == window.ends
    assert window.stop(window.ends) == window.after


DAILY = rule(
    "daily", "class=default user", limit=Quota(3, Period.DAY), on_redis_down=OnRedisDown.LOCAL, local_share=0.7
)


def test_a_quota_is_used_up_until_the_day_ends_and_whole_again_then() -> None:
    limiter = Limiter(DAILY)
    limiter.now = instant("2026-11-30T10:00:00Z")
    assert limiter.admitted(by_user(), times=5) == 3
    limiter.now = instant("2026-11-30T23:59:59Z")
    assert limiter.admitted(by_user(), times=5) == 0
    limiter.now = instant("2026-12-01T00:00:00Z")
    assert limiter.admitted(by_user(), times=5) == 3
    limiter.away = True
    assert limiter.admitted(by_user(), times=5) == 2
    limiter.now = instant("2026-12-02T00:00:00Z")
    assert limiter.admitted(by_user(), times=5) == 2


def test_clients_are_told_of_a_quota_when_its_period_ends() -> None:
    door = Door(DAILY)
    door.now = instant("2026-11-30T23:00:00Z")
    call = described("class=default", "user=a", hits=2)
    first, second = door.ask(call), door.ask(call)
    assert shown_by_envoy(first) == shown_by_us(first) == {"limit": 3, "remaining": 1, "reset": 3600, "window": 86_400}
    assert added(first)["RateLimit-Policy"] == '"daily";q=3;w=86400'
    assert (added(second)["Retry-After"], shown_by_us(second)["reset"]) == ("3600", 3600)
    assert "Retry-After" not in added(door.ask(described("class=default", "user=a", hits=4)))


def test_a_quota_and_a_bucket_are_debited_together_or_not_at_all() -> None:
    limiter = Limiter(DAILY, rule("burst", "class=default user", limit=Limit(1, 1, burst=2)))
    assert limiter.admitted(by_user(), times=5) == 2
    limiter.now += 100 * MICROSECONDS
    assert limiter.admitted(by_user(), times=5) == 1


def periods(at: int) -> list[Window]:
    """Windows around an instant: it is in the present period, the one before and the next."""
    return [
        Window(requests, at + shift * HOUR, at + (shift + 2) * HOUR, at + (shift + 4) * HOUR)
        for requests in (1, 3, 10)
        for shift in (-3, -1, 1)
    ]


examples = itertools.count()
calls = st.lists(
    st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(0, 8), st.integers(0, 12)),
    min_size=1,
    max_size=3,
    unique_by=lambda charge: charge[0],
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(calls, min_size=1, max_size=8), min_size=1, max_size=4))
def test_redis_and_memory_count_quotas_as_the_arithmetic_does(
    store: BucketStore, batches: list[list[list[tuple[str, int, int]]]]
) -> None:
    begun, example = time.time_ns() // 1000, next(examples)
    windows = periods(begun)
    states: dict[str, State] = {}
    now = [begun]
    memory = MemoryBucketStore(lambda: now[0])
    slow = Limit(1, 3600, burst=5)
    for batch in batches:
        charges = [
            [
                # A bucket stands among the quotas of each call.
                Charge(f"ratelimit:{{t}}:{example}:bucket", slow, 1),
                *[Charge(f"ratelimit:{{t}}:{example}:{name}", windows[which], hits) for name, which, hits in call],
            ]
            for call in batch
        ]
        taken = store.take(charges, seconds=SECONDS)
        now[0] = taken[0].at
        assert taken == take_in_order(charges, states, at=now[0]) == memory.take(charges, seconds=SECONDS)


async def test_a_quotas_state_ends_with_its_period(store: BucketStore, redis: Redis) -> None:
    at = time.time_ns() // 1000
    window = Window(10, at - HOUR, at + HOUR, at + 2 * HOUR)
    charge = Charge("ratelimit:{t}:quota", window, 4)
    (first,) = store.take([[charge]], seconds=SECONDS)
    assert (first.verdicts[0].remaining, first.verdicts[0].ends) == (6, window.ends - first.at)
    assert await redis.get("ratelimit:{t}:quota") in (f"{window.ends}:4", f"{window.ends}:4".encode())
    assert await redis.pexpiretime("ratelimit:{t}:quota") == -(-window.ends // 1000)
    (refused,) = store.take([[Charge("ratelimit:{t}:quota", window, 7)]], seconds=SECONDS)
    assert not refused.admitted
    assert (refused.verdicts[0].remaining, refused.verdicts[0].more_after) == (6, window.ends - refused.at)


async def test_a_large_quota_is_counted_to_the_last_call(store: BucketStore) -> None:
    at = time.time_ns() // 1000
    window = Window(999_999_999_999, at - HOUR, at + HOUR, at + 2 * HOUR)
    (first,) = store.take([[Charge("ratelimit:{t}:large", window, 999_999_999_998)]], seconds=SECONDS)
    second, third = store.take([[Charge("ratelimit:{t}:large", window, 1)]] * 2, seconds=SECONDS)
    assert [each.admitted for each in (first, second, third)] == [True, True, False]
    assert second.verdicts[0].remaining == 0


def test_a_checks_plan_is_made_anew_for_the_next_period() -> None:
    check, rules = Check("storymesh", [by_user()]), rule_set(DAILY)
    noon = instant("2026-11-30T12:00:00Z")
    plan = check.plan(rules, noon)
    assert check.plan(rules, noon + HOUR) is plan
    tomorrow = check.plan(rules, noon + 12 * HOUR)
    assert tomorrow is not plan
    assert check.plan(rules, noon) is not tomorrow
