"""What each kind of rule does with calls, by a clock of the tests' own."""

from __future__ import annotations

import logging
from collections.abc import Sequence

import pytest
from redis.exceptions import ConnectionError as NotConnected

from kit.errors import MeshError
from kit.runtime.metrics import Metrics
from services.ratelimit.errors import BucketsUnreachable
from services.ratelimit.model import MICROSECONDS, Call, Charge, Limit, Taken
from services.ratelimit.model.decisions import Decision
from services.ratelimit.model.rules import Action, OnNoMatch, OnRedisDown, Rule, RuleSet
from services.ratelimit.operations.buckets import Asking, Buckets
from services.ratelimit.operations.planning import Check
from services.ratelimit.store.local_buckets import LocalBuckets
from services.ratelimit.store.memory import MemoryBucketStore
from tests.kit.numbers import fetch
from tests.ratelimit.building import DOMAIN, by_address, by_user, descriptor, rule, rule_set

ADDRESSES = rule("addresses", "class=default client_ip", limit=Limit(60, 60, burst=5))
USERS = rule("users", "class=default user", limit=Limit(60, 60, burst=2))


async def text_of(metrics: Metrics) -> str:
    async with metrics.exposed("127.0.0.1:0") as url:
        return await fetch(url)


class Limiter:
    """The limiter over buckets in memory. `away` takes the buckets away, as if Redis were down."""

    def __init__(self, *rules: Rule, on_no_match: OnNoMatch = OnNoMatch.ALLOW, shadow: bool = False) -> None:
        self.rules: RuleSet = rule_set(*rules, on_no_match=on_no_match, shadow=shadow)
        self.now = 1_800_000_000 * MICROSECONDS
        self.away = False
        self.asked: list[Call] = []
        self._memory = MemoryBucketStore(lambda: self.now)
        self.buckets = Buckets(self, lambda: self.rules, redis_seconds=5, clock=lambda: self.now)

    def take(self, calls: Sequence[Call], *, seconds: float) -> list[Taken]:
        if self.away:
            raise NotConnected("away")
        self.asked += calls
        return self._memory.take(calls, seconds=seconds)

    def check(self, *descriptors: object) -> Decision:
        return self.buckets.check(DOMAIN, descriptors or [by_address()], remaining=None)  # type: ignore[arg-type]

    def admitted(self, *descriptors: object, times: int) -> int:
        return sum(self.check(*descriptors).admitted for _ in range(times))

    def counted(self, name: str) -> dict[str, int]:
        (found,) = (each for each in self.rules.rules if each.name == name)
        return {verdict: self.buckets.counts.of(found, verdict) for verdict in ("admitted", "refused", "shadow")}


def test_a_more_specific_rule_gives_one_address_a_higher_limit_and_another_none() -> None:
    limiter = Limiter(
        ADDRESSES,
        rule("office", "class=default client_ip~198.51.100.0/24", limit=Limit(60, 60, burst=50)),
        rule("partner", "class=default client_ip~198.51.100.7", action=Action.UNLIMITED),
        rule("abuser", "class=default client_ip~203.0.113.0/24", action=Action.BLOCK),
    )
    assert limiter.admitted(by_address(), times=10) == 5
    assert limiter.admitted(by_address("198.51.100.9/32"), times=60) == 50
    assert limiter.admitted(by_address("198.51.100.7/32"), times=100) == 100
    assert limiter.admitted(by_address("203.0.113.5/32"), times=10) == 0


def test_an_unlimited_rule_asks_no_bucket_and_is_no_missing_match() -> None:
    limiter = Limiter(rule("free", "class=default user", action=Action.UNLIMITED), on_no_match=OnNoMatch.DENY)
    assert limiter.check(by_user()).admitted
    assert limiter.asked == []
    assert limiter.counted("free") == {"admitted": 1, "refused": 0, "shadow": 0}


def test_a_blocked_call_is_refused_for_ever_and_costs_its_other_buckets_nothing() -> None:
    limiter = Limiter(ADDRESSES, rule("banned", "class=default user=eve", action=Action.BLOCK))
    decision = limiter.check(by_address(), by_user("eve"))
    assert (decision.admitted, decision.permanent) == (False, True)
    assert [answer.admitted for answer in decision.answers] == [True, False]
    assert limiter.asked == []
    limiter.now += 10**15
    assert not limiter.check(by_address(), by_user("eve")).admitted


def test_a_cost_above_what_the_limit_holds_is_refused_for_ever_and_says_so() -> None:
    limiter = Limiter(USERS)
    assert limiter.check(by_user(hits=3)).permanent
    limiter.check(by_user(hits=2))
    emptied = limiter.check(by_user(hits=2))
    assert (emptied.admitted, emptied.permanent) == (False, False)


def test_a_call_that_no_rule_matches_is_refused_for_ever_where_the_file_denies() -> None:
    decision = Limiter(ADDRESSES, on_no_match=OnNoMatch.DENY).check(descriptor(("tenant", "a")))
    assert (decision.admitted, decision.permanent) == (False, True)


def test_a_rules_cost_is_that_of_each_hit_and_no_hits_only_ask() -> None:
    limiter = Limiter(rule("tokens", "class=default user", limit=Limit(60, 60, burst=10), cost=3))
    remaining = []
    for hits in (1, 0, 2, 1, 0):
        (outcome,) = limiter.check(by_user(hits=hits)).answers[0].outcomes
        assert outcome.verdict is not None
        remaining.append((outcome.admits, outcome.verdict.remaining))
    assert remaining == [(True, 7), (True, 7), (True, 1), (False, 1), (True, 1)]


def test_a_rule_in_shadow_mode_counts_and_tells_and_never_refuses(caplog: pytest.LogCaptureFixture) -> None:
    limiter = Limiter(ADDRESSES, rule("tried", "class=default user", limit=Limit(60, 60, burst=2), shadow=True))
    with caplog.at_level(logging.INFO):
        assert limiter.admitted(by_address(), by_user(), times=5) == 5
    assert limiter.counted("tried") == {"admitted": 2, "refused": 0, "shadow": 3}
    assert [record.getMessage() for record in caplog.records] == [
        "shadow mode: rule tried of domain storymesh would have refused 1 calls since it was last told"
    ]
    # A call that another rule refuses costs the shadowed bucket nothing.
    limiter.now += 2 * MICROSECONDS
    assert limiter.admitted(by_address(hits=4), by_user(), times=1) == 0
    assert limiter.counted("tried") == {"admitted": 2, "refused": 0, "shadow": 3}


def test_the_log_tells_of_a_rule_in_shadow_mode_once_a_minute_with_the_number_of_calls(
    caplog: pytest.LogCaptureFixture,
) -> None:
    limiter = Limiter(rule("tried", "class=default user", shadow=True, action=Action.BLOCK))
    now = [0.0]
    limiter.buckets.counts._clock = lambda: now[0]
    with caplog.at_level(logging.INFO):
        for now[0] in (0, 1, 59, 61, 62, 300):
            limiter.check(by_user())
    assert [record.getMessage().split("refused ")[1].split()[0] for record in caplog.records] == ["1", "3", "2"]
    assert not any("a-user" in record.getMessage() for record in caplog.records)


def test_a_domain_in_shadow_mode_refuses_nothing_and_counts_what_it_would() -> None:
    limiter = Limiter(
        USERS,
        rule("banned", "class=default client_ip", action=Action.BLOCK),
        on_no_match=OnNoMatch.DENY,
        shadow=True,
    )
    assert limiter.admitted(by_user(), times=5) == 5
    assert limiter.admitted(by_address(), times=2) == 2
    assert limiter.admitted(descriptor(("tenant", "a")), times=2) == 2
    assert limiter.counted("users") == {"admitted": 2, "refused": 0, "shadow": 3}
    assert limiter.counted("banned") == {"admitted": 0, "refused": 0, "shadow": 2}
    limiter.away = True
    assert limiter.check(by_user()).admitted


def test_rules_that_are_replaced_are_not_debited_and_the_call_counts_as_matched() -> None:
    limiter = Limiter(
        rule("general", "class=default client_ip", limit=Limit(60, 60, burst=1)),
        rule("member", "class=default user", limit=Limit(60, 60, burst=4), replaces=frozenset({"general"})),
        on_no_match=OnNoMatch.DENY,
    )
    assert limiter.admitted(by_address(), by_user(), times=6) == 4
    assert limiter.admitted(by_address(), times=3) == 1


LOCAL = rule(
    "local", "class=default user", limit=Limit(60, 60, burst=8), on_redis_down=OnRedisDown.LOCAL, local_share=0.25
)


def test_without_redis_a_local_rule_admits_its_share_of_the_limit() -> None:
    limiter = Limiter(LOCAL, ADDRESSES)
    limiter.check(by_user())
    limiter.away = True
    assert limiter.admitted(by_user(), times=5) == 2
    assert limiter.admitted(by_user("another"), times=5) == 2
    assert limiter.admitted(by_address(), times=20) == 20
    limiter.away = False
    assert limiter.admitted(by_user(), times=10) == 7


def test_without_redis_a_closed_rule_refuses_also_what_a_local_one_would_admit_unless_it_is_in_shadow_mode() -> None:
    closed = rule("closed", "class=default client_ip", on_redis_down=OnRedisDown.CLOSED)
    limiter = Limiter(LOCAL, closed)
    limiter.away = True
    with pytest.raises(BucketsUnreachable):
        limiter.check(by_user(), by_address())
    shadowed = rule("closed", "class=default client_ip", on_redis_down=OnRedisDown.CLOSED, shadow=True)
    limiter = Limiter(LOCAL, shadowed)
    limiter.away = True
    assert limiter.check(by_user(), by_address()).admitted


def test_without_redis_a_local_rule_in_shadow_mode_counts_and_tells_without_refusing() -> None:
    """Only what passes the other rules counts against it, as with Redis."""
    tried = rule(
        "tried", "class=default user", limit=Limit(60, 60, burst=2), shadow=True, on_redis_down=OnRedisDown.LOCAL
    )
    strict = rule("strict", "class=default client_ip", limit=Limit(60, 60, burst=5), on_redis_down=OnRedisDown.LOCAL)
    limiter = Limiter(tried, strict)
    limiter.away = True
    assert limiter.admitted(by_user(), by_address(), times=8) == 5
    assert limiter.counted("tried") == {"admitted": 2, "refused": 0, "shadow": 3}
    assert limiter.counted("strict") == {"admitted": 5, "refused": 3, "shadow": 0}


def test_without_redis_open_and_closed_rules_count_nothing_whether_they_are_in_shadow_mode_or_not() -> None:
    rules = [
        rule("open", "class=default user"),
        rule("open-tried", "class=default user", shadow=True),
        rule("closed-tried", "class=default user", shadow=True, on_redis_down=OnRedisDown.CLOSED),
    ]
    limiter = Limiter(*rules)
    limiter.away = True
    assert limiter.admitted(by_user(), times=8) == 8
    assert [sum(limiter.counted(each.name).values()) for each in rules] == [0, 0, 0]


def test_a_blocked_call_is_refused_without_redis_too() -> None:
    limiter = Limiter(rule("banned", "class=default user", action=Action.BLOCK))
    limiter.away = True
    assert not limiter.check(by_user()).admitted


def test_buckets_in_the_process_are_bounded_and_the_emptiest_are_kept() -> None:
    now = 1_800_000_000 * MICROSECONDS
    buckets = LocalBuckets(lambda: now, most=100)
    limit = Limit(1, 3600, burst=3)
    for _ in range(3):
        buckets.take([Charge("guesser", limit, 1)])
    for number in range(1000):
        buckets.take([Charge(f"other-{number}", limit, 1)])
        assert len(buckets) <= 101
    assert not buckets.take([Charge("guesser", limit, 1)])[0].admits


def test_the_least_share_of_a_limit_is_one_token() -> None:
    assert Limit(10, 60, burst=3).share(0.1).burst == 1
    assert Limit(10, 60, burst=3).share(1).interval == Limit(10, 60, burst=3).interval
    assert Limit(10, 60, burst=30).share(0.5) == Limit(5000, 60_000, burst=15)


def test_one_batch_may_hold_calls_with_and_without_buckets_and_with_rules_in_shadow_mode() -> None:
    shadowed = rule("tried", "class=default user", limit=Limit(60, 60, burst=1), shadow=True)
    limiter = Limiter(ADDRESSES, shadowed, rule("free", "class=page user", action=Action.UNLIMITED))
    calls = [
        [by_user()],
        [by_address(hits=5)],
        [by_user(), by_address()],
        [by_user(rate_limit_class="page")],
        [by_user()],
    ]
    answers = limiter.buckets.check_many([Asking(Check(DOMAIN, each), None) for each in calls])
    assert [not isinstance(each, MeshError) and each.admitted for each in answers] == [True, True, False, True, True]
    assert limiter.counted("tried") == {"admitted": 1, "refused": 0, "shadow": 1}


async def test_metrics_name_the_rules_in_force_from_the_start_and_nothing_that_callers_send() -> None:
    limiter = Limiter(USERS, on_no_match=OnNoMatch.DENY)
    metrics = Metrics()
    limiter.buckets.counts.show_in(metrics)
    limiter.admitted(by_user("eve"), times=3)
    limiter.check(descriptor(("tenant", "eve")))
    limiter.buckets.check("made-up", [by_user("eve")], remaining=None)
    text = await text_of(metrics)
    assert 'storymesh_rate_limit_decisions_total{domain="storymesh",rule="users",verdict="admitted"} 2.0' in text
    assert 'storymesh_rate_limit_decisions_total{domain="storymesh",rule="users",verdict="refused"} 1.0' in text
    assert 'storymesh_rate_limit_decisions_total{domain="storymesh",rule="users",verdict="shadow"} 0.0' in text
    assert 'storymesh_rate_limit_unmatched_total{domain="storymesh"} 1.0' in text
    assert 'storymesh_rate_limit_unmatched_total{domain=""} 1.0' in text
    assert "eve" not in text
    assert "made-up" not in text
    limiter.rules = rule_set(ADDRESSES)
    assert "users" not in await text_of(metrics)
