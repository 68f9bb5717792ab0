"""The arithmetic of token buckets, with which the store must agree."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from services.ratelimit.model import MICROSECONDS, Charge, Limit, take
from services.ratelimit.store.memory import MemoryBucketStore

NOW = 1_800_000_000 * MICROSECONDS

limits = st.builds(
    Limit,
    requests=st.integers(1, 1000),
    period_seconds=st.sampled_from([1, 7, 60, 900, 86_400]),
    burst=st.integers(1, 500),
)


def charge(limit: Limit, hits: int = 1, key: str = "a") -> Charge:
    return Charge(key, limit, hits)


def test_a_new_bucket_holds_its_burst_and_no_more() -> None:
    limit = Limit(requests=10, period_seconds=60, burst=3)
    state, remaining = None, []
    for _ in range(3):
        verdict = take([charge(limit)], [state], at=NOW).verdicts[0]
        assert verdict.admits
        state = NOW + verdict.debt
        remaining.append(verdict.remaining)
    refusal = take([charge(limit)], [state], at=NOW).verdicts[0]
    assert remaining == [2, 1, 0]
    assert not refusal.admits
    assert refusal.wait == 6 * MICROSECONDS


@given(limits, st.integers(0, 600), st.floats(0, 1.2))
def test_a_refused_charge_passes_exactly_when_it_was_told_to_return(limit: Limit, hits: int, used: float) -> None:
    hits = min(hits, limit.burst)
    refusal = take([charge(limit, hits)], [NOW + int(used * limit.capacity)], at=NOW).verdicts[0]
    assume(not refusal.admits)
    assert take([charge(limit, hits)], [NOW + refusal.debt], at=NOW + refusal.wait).admitted
    assert not take([charge(limit, hits)], [NOW + refusal.debt], at=NOW + refusal.wait - 1).admitted


@given(limits, st.lists(st.tuples(st.integers(0, 10**8), st.integers(0, 5)), max_size=60))
def test_no_stretch_of_time_admits_more_than_the_burst_and_what_came_back(
    limit: Limit, calls: list[tuple[int, int]]
) -> None:
    at, state, admitted = NOW, None, 0
    for pause, hits in calls:
        at += pause
        taken = take([charge(limit, hits)], [state], at=at)
        if taken.admitted:
            admitted += hits
        state = at + taken.verdicts[0].debt
    elapsed = at - NOW
    assert admitted <= limit.burst + elapsed * limit.requests / (limit.period_seconds * MICROSECONDS)


@given(limits, limits, st.integers(0, 10**11), st.integers(0, 10**11))
def test_a_call_is_charged_to_all_its_buckets_or_to_none(
    first: Limit, second: Limit, one_debt: int, other_debt: int
) -> None:
    charges = [charge(first, key="a"), charge(second, key="b")]
    debts = [min(one_debt, first.capacity), min(other_debt, second.capacity)]
    taken = take(charges, [NOW + debt for debt in debts], at=NOW)
    after = [verdict.debt for verdict in taken.verdicts]
    if taken.admitted:
        assert after == [debt + each.limit.interval for debt, each in zip(debts, charges, strict=True)]
    else:
        assert after == debts


@given(
    limits, st.lists(st.tuples(st.integers(-(10**10), 10**10), st.integers(0, 10**7), st.integers(1, 3)), max_size=40)
)
def test_a_clock_that_jumps_refills_a_bucket_at_most_once_a_jump_and_blocks_nobody_longer_than_an_empty_one(
    limit: Limit, steps: list[tuple[int, int, int]]
) -> None:
    """Each step is a jump of the clock (backward where negative), true time that passes, and the hits of a call."""
    clock = [NOW]
    store = MemoryBucketStore(lambda: clock[0])
    admitted = jumps = passed = 0
    for jump, pause, hits in steps:
        clock[0] += jump + pause
        jumps += jump != 0
        passed += pause
        (taken,) = store.take([[charge(limit, hits)]], seconds=0)
        admitted += hits if taken.admitted else 0
        if hits <= limit.burst:
            assert taken.verdicts[0].wait <= limit.capacity
    assert admitted <= limit.burst * (1 + jumps) + passed * limit.requests / (limit.period_seconds * MICROSECONDS)


def test_a_store_in_memory_forgets_the_buckets_that_are_full() -> None:
    clock = [NOW]
    store = MemoryBucketStore(lambda: clock[0])
    limit = Limit(requests=1, period_seconds=1, burst=1)
    for number in range(10_000):
        clock[0] += MICROSECONDS // 100
        store.take([[charge(limit, key=str(number))]], seconds=0)
    assert len(store) < 3000


@given(limits, st.integers(1, 500))
def test_the_time_until_more_is_the_time_until_one_token_more(limit: Limit, hits: int) -> None:
    verdict = take([charge(limit, min(hits, limit.burst))], [None], at=NOW).verdicts[0]
    look = charge(limit, 0)
    before = take([look], [NOW + verdict.debt], at=NOW + verdict.more_after - 1).verdicts[0]
    after = take([look], [NOW + verdict.debt], at=NOW + verdict.more_after).verdicts[0]
    assert (before.remaining, after.remaining) == (verdict.remaining, verdict.remaining + 1)


def test_a_look_costs_nothing_and_tells_whether_one_call_would_pass() -> None:
    limit = Limit(requests=1, period_seconds=1, burst=1)
    full = take([charge(limit, 0)], [None], at=NOW).verdicts[0]
    empty = take([charge(limit, 0)], [NOW + limit.capacity], at=NOW).verdicts[0]
    assert (full.admits, full.debt, full.more_after) == (True, 0, 0)
    assert (empty.admits, empty.debt, empty.wait) == (False, limit.capacity, limit.interval)


@pytest.mark.parametrize("hits", [4, 2**32 - 1, 2**64 - 1])
def test_more_hits_than_the_burst_never_pass(hits: int) -> None:
    limit = Limit(requests=1, period_seconds=1, burst=3)
    assert not take([charge(limit, hits)], [None], at=NOW).admitted


def test_a_state_beyond_a_whole_bucket_counts_as_empty_and_no_worse() -> None:
    limit = Limit(requests=1, period_seconds=1, burst=5)
    verdict = take([charge(limit)], [NOW + 3600 * MICROSECONDS], at=NOW).verdicts[0]
    assert (verdict.remaining, verdict.wait) == (0, limit.interval)


@pytest.mark.parametrize(
    ("requests", "period_seconds", "interval"),
    [(10, 1, 100_000), (7, 1, 142_858), (300, 60, 200_000), (1, 86_400, 86_400 * MICROSECONDS)],
)
def test_an_interval_is_never_shorter_than_the_rate_allows(requests: int, period_seconds: int, interval: int) -> None:
    assert Limit(requests, period_seconds, burst=1).interval == interval
