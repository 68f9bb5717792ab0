"""Calls that pass by plain rules are answered without a decision; their answers and counts are those of the decision."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from foreign import rls_pb2
from hypothesis import given, settings
from hypothesis import strategies as st

from kit.errors import MeshError
from kit.rpc.batches import Answer, BatchedCall
from services.ratelimit.model import Limit
from services.ratelimit.model.decisions import Decision
from services.ratelimit.model.rules import RuleSet
from services.ratelimit.operations.buckets import Asking, Buckets
from services.ratelimit.operations.planning import Passed
from services.ratelimit.operations.rule_counts import VERDICTS, RuleCounts
from services.ratelimit.servicer import RateLimits
from services.ratelimit.store import BucketStore
from services.ratelimit.store.memory import MemoryBucketStore
from tests.ratelimit.building import asking, described, rule, rule_set

NAMES = ("first", "second", "third")


class WorkedOut(Buckets):
    """Works the decision of every call out, and counts each by itself."""

    def __init__(self, store: BucketStore, rules: Callable[[], RuleSet], **settings: Any) -> None:
        super().__init__(store, rules, **settings)
        self.each = RuleCounts(rules)

    def check_many(self, asking: Sequence[Asking]) -> list[Passed | Decision | MeshError]:
        answers = super().check_many(asking)
        decisions = [each.decision() if isinstance(each, Passed) else each for each in answers]
        for decision in decisions:
            if isinstance(decision, Decision):
                self.each.add(decision)
        return list(decisions)


class Clock:
    """A clock in microseconds that the test moves."""

    def __init__(self) -> None:
        self.at = 1_800_000_000_000_000

    def __call__(self) -> int:
        return self.at


def answers(service: RateLimits, requests: Sequence[rls_pb2.RateLimitRequest]) -> list[Answer]:
    return service.answer([BatchedCall(request.SerializeToString(), (), None, "") for request in requests])


limits = st.builds(
    Limit,
    requests=st.sampled_from([1, 3, 10, 997, 1_000_000]),
    period_seconds=st.sampled_from([1, 13, 3600]),
    burst=st.integers(1, 6),
)
# A rule without a limit only passes; two rules that are always on apply to one descriptor.
rule_sets = st.lists(st.one_of(limits, st.none()), min_size=3, max_size=3)
requests = st.lists(
    st.tuples(st.sampled_from(["class", "user", "other"]), st.integers(0, 3)),
    min_size=1,
    max_size=3,
    unique_by=lambda e: e[0],
)
batches = st.lists(
    st.tuples(st.lists(requests, min_size=1, max_size=6), st.integers(0, 5_000_000)), min_size=1, max_size=3
)


@settings(max_examples=300, deadline=None)
@given(rule_sets, batches)
def test_a_call_that_passes_is_answered_as_its_decision_says(
    chosen: list[Limit | None], asked: list[tuple[list[list[tuple[str, int]]], int]]
) -> None:
    rules = rule_set(
        *(
            rule(name, match, limit=limit, always=True)
            for name, match, limit in zip(NAMES, ("class", "class", "user"), chosen, strict=True)
            if limit is not None
        )
    )
    clock = Clock()
    plain, worked_out = (
        kind(MemoryBucketStore(clock), lambda: rules, redis_seconds=0.5, clock=clock) for kind in (Buckets, WorkedOut)
    )
    assert isinstance(worked_out, WorkedOut)
    services = RateLimits(plain), RateLimits(worked_out)
    for calls, later in asked:
        batch = [asking(*(described(f"{key}=x", hits=hits) for key, hits in call)) for call in calls]
        first, second = (answers(service, batch) for service in services)
        assert first == second
        clock.at += later
    for each in rules.rules:
        for verdict in VERDICTS:
            assert plain.counts.of(each, verdict) == worked_out.each.of(each, verdict)
