"""What answers tell clients and the edge: headers that agree with each other, metadata, and no promise that is not kept."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from foreign import rls_pb2
from google.protobuf import json_format
from hypothesis import given
from hypothesis import strategies as st

from kit.rpc.batches import BatchedCall
from services.ratelimit.model import MICROSECONDS, Limit
from services.ratelimit.model.rules import Action, DomainRules, OnNoMatch, Rule, RuleSet
from services.ratelimit.operations.buckets import Buckets
from services.ratelimit.servicer import RateLimits
from services.ratelimit.store.memory import MemoryBucketStore
from tests.ratelimit.building import BY_ADDRESS, asking, described, rule, rule_set

Response = rls_pb2.RateLimitResponse
BY_USER = described("class=default", "user=a")
_SECONDS_OF_UNITS = {Response.RateLimit.SECOND: 1, Response.RateLimit.MINUTE: 60, Response.RateLimit.HOUR: 3600}
_SECONDS_OF_UNITS |= {Response.RateLimit.DAY: 86_400}


class Door:
    """The service's answers, by a clock that stands still unless it is set."""

    def __init__(self, *rules: Rule, on_no_match: OnNoMatch = OnNoMatch.ALLOW, shadow: bool = False) -> None:
        in_force: RuleSet = rule_set(*rules, on_no_match=on_no_match, shadow=shadow)
        self.now = 1_800_000_000 * MICROSECONDS
        store = MemoryBucketStore(lambda: self.now)
        self._limits = RateLimits(Buckets(store, lambda: in_force, redis_seconds=5, clock=lambda: self.now))

    def ask(self, *descriptors: rls_pb2.RateLimitDescriptor) -> rls_pb2.RateLimitResponse:
        call = BatchedCall(asking(*descriptors).SerializeToString(), (), None, "peer")
        (answer,) = self._limits.answer([call])
        assert isinstance(answer, bytes), answer
        return Response.FromString(answer)


def added(response: rls_pb2.RateLimitResponse) -> dict[str, str]:
    return {header.key: header.value for header in response.response_headers_to_add}


def metadata(response: rls_pb2.RateLimitResponse) -> dict[str, object]:
    return dict(json_format.MessageToDict(response.dynamic_metadata))


def shown_by_envoy(response: rls_pb2.RateLimitResponse) -> dict[str, int]:
    """The x-ratelimit-* fields as Envoy 1.40 makes them: of the first status with the fewest that remain."""
    limited = [status for status in response.statuses if status.HasField("current_limit")]
    if not limited:
        return {}
    least = min(limited, key=lambda status: status.limit_remaining)
    shown = {
        "limit": least.current_limit.requests_per_unit,
        "remaining": least.limit_remaining,
        "reset": least.duration_until_reset.seconds,
    }
    if window := _SECONDS_OF_UNITS.get(least.current_limit.unit):
        shown["window"] = window
    return shown


def shown_by_us(response: rls_pb2.RateLimitResponse) -> dict[str, int]:
    """The fields of the IETF's draft, by the same names."""
    fields = added(response)
    if "RateLimit" not in fields:
        return {}
    policy = re.fullmatch(r'"[\w.-]+";q=(\d+);w=(\d+)', fields["RateLimit-Policy"])
    state = re.fullmatch(r'"[\w.-]+";r=(\d+);t=(\d+)', fields["RateLimit"])
    assert policy
    assert state
    return {
        "limit": int(policy[1]),
        "remaining": int(state[1]),
        "reset": int(state[2]),
        "window": int(policy[2]),
    }


def test_a_limit_with_a_burst_shows_the_burst_from_which_what_remains_is_taken() -> None:
    response = Door(rule("users", "class=default user", limit=Limit(10, 60, burst=20))).ask(BY_USER)
    assert shown_by_envoy(response) == {"limit": 20, "remaining": 19, "reset": 6}
    assert added(response) == {"RateLimit-Policy": '"users";q=20;w=120', "RateLimit": '"users";r=19;t=6'}


def test_the_window_is_shown_where_the_protocol_has_its_unit() -> None:
    response = Door(rule("users", "class=default user", limit=Limit(10, 60, burst=10))).ask(BY_USER)
    assert shown_by_envoy(response) == {"limit": 10, "remaining": 9, "reset": 6, "window": 60}


limits = st.builds(
    Limit,
    requests=st.sampled_from([1, 3, 10, 60]),
    period_seconds=st.sampled_from([1, 60, 3600]),
    burst=st.sampled_from([1, 2, 10, 60]),
)


@given(
    st.tuples(limits, limits, limits),
    st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.floats(0, 30)), min_size=1, max_size=15),
)
def test_both_kinds_of_headers_agree_and_what_they_promise_is_kept(
    of: Sequence[Limit], costs: Sequence[int], calls: list[tuple[int, int, float]]
) -> None:
    door = Door(
        rule("addresses", "class=default client_ip", limit=of[0], cost=costs[0]),
        rule("users", "class=default user", limit=of[1], cost=costs[1]),
        rule("slowly", "class=default user", limit=of[2], cost=costs[2]),
    )
    for address_hits, user_hits, pause in calls:
        door.now += int(pause * MICROSECONDS)
        call = (
            described("class=default", "client_ip=192.0.2.7/32", hits=address_hits),
            described("class=default", "user=a", hits=user_hits),
        )
        response = door.ask(*call)
        envoys, ours = shown_by_envoy(response), shown_by_us(response)
        assert envoys == {name: ours[name] for name in envoys}
        assert ours["remaining"] <= ours["limit"]
        told = added(response)
        if response.overall_code == Response.OK:
            assert "Retry-After" not in told
            assert metadata(response)["verdict"] == "admitted"
        elif "Retry-After" in told:
            assert int(told["Retry-After"]) >= ours["reset"] > 0
            door.now += int(told["Retry-After"]) * MICROSECONDS
            assert door.ask(*call).overall_code == Response.OK
        else:
            assert metadata(response)["reason"] == "RATE_LIMIT_UNSATISFIABLE"
            door.now += 10**15
            assert door.ask(*call).overall_code == Response.OVER_LIMIT


def test_a_refusal_shows_the_rule_that_decides_though_another_has_less_left() -> None:
    door = Door(
        rule("addresses", "class=default client_ip", limit=Limit(60, 60, burst=3)),
        rule("users", "class=default user", limit=Limit(60, 60, burst=5)),
    )
    door.ask(described("class=default", "client_ip=192.0.2.7/32", hits=2))
    response = door.ask(BY_ADDRESS, described("class=default", "user=a", hits=5))
    assert response.overall_code == Response.OK
    door.now += 3 * MICROSECONDS
    response = door.ask(BY_ADDRESS, described("class=default", "user=a", hits=4))
    assert [status.HasField("current_limit") for status in response.statuses] == [False, True]
    assert shown_by_envoy(response)["remaining"] == 3
    assert added(response)["RateLimit"] == '"users";r=3;t=1'
    assert added(response)["Retry-After"] == "1"


@pytest.mark.parametrize(
    ("rules", "hits"),
    [
        ([rule("banned", "class=default user", action=Action.BLOCK)], 1),
        ([rule("small", "class=default user", limit=Limit(1, 1, burst=3))], 4),
        ([rule("costly", "class=default user", limit=Limit(1, 1, burst=3), cost=4)], 1),
        ([rule("costly", "class=default user", limit=Limit(1, 1, burst=3), cost=2)], 2**63),
        ([rule("other", "class=default", limit=Limit(1, 1, burst=3))], 1),
    ],
    ids=["blocked", "more hits than the burst", "a cost above the burst", "countless hits", "no rule"],
)
def test_a_call_that_can_never_pass_says_so_and_gets_no_time_to_retry(rules: list[Rule], hits: int) -> None:
    response = Door(*rules, on_no_match=OnNoMatch.DENY).ask(described("class=default", "user=a", hits=hits))
    assert response.overall_code == Response.OVER_LIMIT
    assert "Retry-After" not in added(response)
    told = metadata(response)
    assert (told["verdict"], told["reason"]) == ("refused", "RATE_LIMIT_UNSATISFIABLE")
    assert told.get("rule") == (None if rules[0].name == "other" else rules[0].name)


def test_of_two_refusals_the_one_that_no_wait_ends_is_told() -> None:
    door = Door(
        rule("slow", "class=default client_ip", limit=Limit(1, 3600, burst=1)),
        rule("small", "class=default user", limit=Limit(1, 1, burst=1)),
    )
    door.ask(BY_ADDRESS)
    response = door.ask(BY_ADDRESS, described("class=default", "user=a", hits=2))
    assert metadata(response) == {"verdict": "refused", "rule": "small", "reason": "RATE_LIMIT_UNSATISFIABLE"}
    assert "Retry-After" not in added(response)


def test_metadata_name_the_rule_that_decided_and_no_value_of_a_descriptor() -> None:
    door = Door(
        rule("addresses", "class=default client_ip", limit=Limit(60, 60, burst=9)),
        rule("users", "class=default user", limit=Limit(60, 60, burst=2)),
        rule("tried", "class=page user", limit=Limit(60, 60, burst=1), shadow=True),
        rule("free", "class=free user", action=Action.UNLIMITED),
    )
    assert metadata(door.ask(BY_ADDRESS, BY_USER)) == {"verdict": "admitted", "rule": "users"}
    door.ask(BY_USER)
    assert metadata(door.ask(BY_ADDRESS, BY_USER)) == {"verdict": "refused", "rule": "users"}
    tried = described("class=page", "user=a")
    assert metadata(door.ask(BY_ADDRESS, tried)) == {"verdict": "admitted", "rule": "addresses"}
    assert metadata(door.ask(BY_ADDRESS, tried)) == {"verdict": "shadow", "rule": "tried"}
    assert metadata(door.ask(described("class=free", "user=a"))) == {"verdict": "admitted", "rule": "free"}
    assert metadata(door.ask(described("nobody=knows"))) == {}


def test_rules_in_shadow_mode_show_a_client_nothing() -> None:
    door = Door(rule("tried", "class=default user", limit=Limit(60, 60, burst=1), shadow=True))
    for response in (door.ask(BY_USER), door.ask(BY_USER)):
        assert (response.overall_code, added(response), shown_by_envoy(response)) == (Response.OK, {}, {})
    door = Door(rule("users", "class=default user", limit=Limit(60, 60, burst=1)), shadow=True)
    for response in (door.ask(BY_USER), door.ask(BY_USER)):
        assert (response.overall_code, added(response), shown_by_envoy(response)) == (Response.OK, {}, {})
    assert metadata(response) == {"verdict": "shadow", "rule": "users"}


def test_rules_of_one_name_in_two_domains_answer_with_their_own_limits() -> None:
    domains = [
        DomainRules(
            name, OnNoMatch.DENY, (rule("users", "class=default user", limit=Limit(60, 60, burst), domain=name),)
        )
        for name, burst in (("storymesh", 5), ("other", 9))
    ]
    limits_of = RateLimits(Buckets(MemoryBucketStore(lambda: 0), lambda: RuleSet(tuple(domains)), redis_seconds=5))
    requests = [asking(BY_USER), rls_pb2.RateLimitRequest(domain="other", descriptors=[BY_USER])] * 2
    answers = limits_of.answer([BatchedCall(each.SerializeToString(), (), None, "peer") for each in requests])
    remaining = [Response.FromString(each).statuses[0].limit_remaining for each in answers if isinstance(each, bytes)]
    assert remaining == [4, 8, 3, 7]
