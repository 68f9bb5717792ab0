"""What every store of buckets promises, over each of them, compared with the arithmetic."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from kit.data.blocking_redis import BlockingRedis
from services.ratelimit.model import MICROSECONDS, Charge, Limit, State, Taken, take_in_order
from services.ratelimit.store import MOST_BUCKETS_OF_A_CALL, BucketStore
from services.ratelimit.store.buckets import MOST_CALLS, MOST_CHARGES, RedisBucketStore
from services.ratelimit.store.memory import MemoryBucketStore

Open = Callable[[], BucketStore]
"""Opens the store for one more thread."""

SECONDS = 10.0
SLOW = Limit(requests=1, period_seconds=3600, burst=30)
WIDE = Limit(requests=1, period_seconds=3600, burst=100_000)
FAST = Limit(requests=1000, period_seconds=1, burst=20)


@pytest.fixture(params=["memory", "redis"])
def open_store(request: pytest.FixtureRequest) -> Iterator[Open]:
    if request.param == "memory":
        in_memory = _OneAtATime(MemoryBucketStore(lambda: time.time_ns() // 1000))
        yield lambda: in_memory
        return
    client: Redis = request.getfixturevalue("limiter_redis")
    with ExitStack() as connections:
        yield lambda: RedisBucketStore(connections.enter_context(closing(BlockingRedis(client))))


class _OneAtATime:
    """A store in memory is for one thread at a time; Redis sees to that itself."""

    def __init__(self, store: MemoryBucketStore) -> None:
        self._store = store
        self._lock = threading.Lock()

    def take(self, calls, *, seconds):  # type: ignore[no-untyped-def]  # as the store's
        with self._lock:
            return self._store.take(calls, seconds=seconds)


def bucket(name: str, limit: Limit = SLOW, hits: int = 1, *, domain: str = "t") -> Charge:
    return Charge(f"ratelimit:{{{domain}}}:{name}", limit, hits)


examples = itertools.count()
"""Keeps the buckets of an example apart from those of the one before."""

limits = st.builds(
    Limit,
    # Intervals that do not divide evenly, so that rounding shows.
    requests=st.sampled_from([1, 3, 7, 11, 997, 9973]),
    period_seconds=st.sampled_from([1, 13, 3600, 86_400]),
    burst=st.integers(1, 20),
)
hits = st.one_of(st.integers(0, 3), st.integers(0, 25), st.just(2**64 - 1))
# Few buckets, so that calls share them; and one bucket under several limits, as while rules change.
names = st.sampled_from(["a", "b", "c", "d", "e"])
calls = st.lists(st.tuples(names, limits, hits), min_size=1, max_size=4, unique_by=lambda charge: charge[0])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.lists(calls, min_size=1, max_size=12), min_size=1, max_size=4))
def test_batches_are_decided_as_the_arithmetic_decides_their_calls_in_order(
    open_store: Open, batches: list[list[list[tuple[str, Limit, int]]]]
) -> None:
    store, example = open_store(), next(examples)
    full_at: dict[str, State] = {}
    for batch in batches:
        charges = [[bucket(f"{example}:{name}", limit, hit) for name, limit, hit in call] for call in batch]
        taken = store.take(charges, seconds=SECONDS)
        assert len({each.at for each in taken}) == 1
        assert taken == take_in_order(charges, full_at, at=taken[0].at)


def test_a_bucket_that_calls_of_a_batch_share_serves_the_first_of_them(open_store: Open) -> None:
    taken = open_store().take([[bucket("shared")] for _ in range(40)], seconds=SECONDS)
    assert [each.admitted for each in taken] == [True] * 30 + [False] * 10
    assert [each.verdicts[0].remaining for each in taken[:30]] == list(range(29, -1, -1))


def test_a_refused_call_leaves_its_tokens_to_the_next_of_the_batch(open_store: Open) -> None:
    taken = open_store().take(
        [[bucket("a", hits=31), bucket("b", hits=30)], [bucket("b", hits=30)], [bucket("a", hits=30), bucket("b")]],
        seconds=SECONDS,
    )
    assert [each.admitted for each in taken] == [False, True, False]


def test_many_threads_get_exactly_the_burst_and_never_one_bucket_without_the_other(open_store: Open) -> None:
    both = [bucket("narrow"), bucket("wide", WIDE)]
    stores = [open_store() for _ in range(8)]

    def four_batches(store: BucketStore) -> list[Taken]:
        """In one thread, as a store is for one at a time."""
        return [each for _ in range(4) for each in store.take([both] * 50, seconds=SECONDS)]

    with ThreadPoolExecutor(8) as threads:
        taken = [each for of_store in threads.map(four_batches, stores) for each in of_store]
    assert sum(each.admitted for each in taken) == 30
    (look,) = open_store().take([[bucket("wide", WIDE, 0)]], seconds=SECONDS)
    assert look.verdicts[0].remaining == 100_000 - 30


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=20), min_size=64, max_size=64),
    st.randoms(use_true_random=False),
)
def test_64_clients_of_one_bucket_never_pass_more_than_its_burst_and_what_came_back(
    open_store: Open, costs: list[list[int]], order: object
) -> None:
    """Each client sends its calls in batches of a random schedule, some at the same time."""
    name, stores = f"{next(examples)}:crowded", [open_store() for _ in range(4)]
    batches = [[[bucket(name, FAST, hit)] for hit in each] for each in costs]
    order.shuffle(batches)  # type: ignore[attr-defined]  # a Random
    with ThreadPoolExecutor(4) as threads:
        shares = threads.map(
            lambda turn: [stores[turn].take(batch, seconds=SECONDS) for batch in batches[turn::4]], range(4)
        )
        results = [results for share in shares for results in share]
    admitted = sum(
        charge[0].hits
        for batch, taken in zip([b for turn in range(4) for b in batches[turn::4]], results, strict=True)
        for charge, each in zip(batch, taken, strict=True)
        if each.admitted
    )
    times = [each.at for taken in results for each in taken]
    assert admitted <= FAST.burst + (max(times) - min(times)) * FAST.requests / (FAST.period_seconds * MICROSECONDS)


@pytest.mark.parametrize(
    ("calls_in_all", "charges_each"),
    [(0, 1), (1, MOST_BUCKETS_OF_A_CALL), (MOST_CALLS, 1), (MOST_CALLS + 1, 1), (3 * MOST_CHARGES // 200 + 1, 200)],
)
def test_more_calls_and_charges_than_one_script_takes_are_decided_in_their_order(
    open_store: Open, calls_in_all: int, charges_each: int
) -> None:
    one_left = Limit(requests=1, period_seconds=3600, burst=max(calls_in_all - 1, 1))
    batch = [
        [bucket("shared", one_left), *(bucket(f"{call}:{place}") for place in range(charges_each - 1))]
        for call in range(calls_in_all)
    ]
    taken = open_store().take(batch, seconds=SECONDS)
    assert [each.admitted for each in taken] == [call < one_left.burst for call in range(calls_in_all)]


def test_calls_of_several_domains_may_share_a_batch(open_store: Open) -> None:
    batch = [[bucket("a", domain=f"domain-{number % 3}", hits=number)] for number in range(12)]
    taken = open_store().take(batch, seconds=SECONDS)
    assert [each.verdicts[0].remaining for each in taken] == [30, 29, 28, 27, 25, 23, 21, 18, 15, 12, 8, 4]


def test_a_look_or_a_refusal_costs_nothing(open_store: Open) -> None:
    store = open_store()
    for _ in range(2):
        look, refused = store.take([[bucket("a", hits=0)], [bucket("a", hits=31)]], seconds=SECONDS)
        assert (look.verdicts[0].remaining, refused.verdicts[0].remaining) == (30, 30)
        assert not refused.admitted
