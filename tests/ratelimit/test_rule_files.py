"""The rule files that the repository carries."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import pytest
from storymesh.options.v1 import policy_pb2

from services.ratelimit.model import MICROSECONDS
from services.ratelimit.model.rules import OnNoMatch, OnRedisDown, RuleSet
from services.ratelimit.operations.buckets import Buckets
from services.ratelimit.store.rules_file import load
from tests.ratelimit.building import LOCAL, PRODUCTION, RULES_FOLDER, BucketsFor, by_address, by_user

DESCRIBE = {"client_ip": by_address, "user": by_user}

CLASSES = [
    name.removeprefix("RATE_LIMIT_CLASS_").lower()
    for name, number in policy_pb2.RateLimitClass.items()
    if number != policy_pb2.RATE_LIMIT_CLASS_UNSPECIFIED
]


def test_these_are_all_files() -> None:
    assert set(RULES_FOLDER.iterdir()) == {PRODUCTION, LOCAL}


@pytest.mark.parametrize("path", [PRODUCTION, LOCAL], ids=lambda path: path.stem)
def test_every_class_is_limited_by_address_and_by_user_and_what_is_unknown_is_denied(path: Path) -> None:
    rules = load(path)
    assert rules.on_no_match is OnNoMatch.DENY
    for rate_limit_class, describe in product(CLASSES, DESCRIBE.values()):
        assert rules.matching("storymesh", describe(rate_limit_class=rate_limit_class).entries), rate_limit_class


@pytest.mark.parametrize("path", [PRODUCTION, LOCAL], ids=lambda path: path.stem)
def test_only_reading_goes_on_while_redis_is_down(path: Path) -> None:
    for rule in load(path).rules:
        costly = rule.match[0].value in ("credentials", "generation")
        assert rule.on_redis_down is (OnRedisDown.CLOSED if costly else OnRedisDown.OPEN), rule.name


def test_production_lets_nobody_guess_passwords_or_generate_without_end() -> None:
    limits = {rule.name: rule.limit for rule in load(PRODUCTION).rules}
    for name, most_in_an_hour in {
        "credentials-per-address": 700,
        "credentials-per-user": 400,
        "generation-per-user": 400,
        "generation-per-user-daily": 60,
    }.items():
        limit = limits[name]
        assert limit.burst + 3600 * MICROSECONDS // limit.interval <= most_in_an_hour, name


async def test_an_office_of_a_thousand_devices_refreshes_and_guessing_takes_nothing_from_it(
    buckets_for: BucketsFor,
) -> None:
    buckets = buckets_for(load(PRODUCTION))
    for _ in range(100):
        await buckets.check("storymesh", [by_address(rate_limit_class="credentials")], remaining=None)
    refreshes = [
        await buckets.check("storymesh", [by_address(rate_limit_class="refresh")], remaining=None) for _ in range(1000)
    ]
    assert all(decision.admitted for decision in refreshes)
    # And no refresh from a sign-in, which a colleague of the guesser's at another address makes.
    office = by_address("198.51.100.7/32", rate_limit_class="refresh")
    for _ in range(3000):
        await buckets.check("storymesh", [office], remaining=None)
    sign_in = by_address("198.51.100.7/32", rate_limit_class="credentials")
    assert (await buckets.check("storymesh", [sign_in], remaining=None)).admitted


def test_local_is_production_with_wider_numbers_only() -> None:
    strict, loose = load(PRODUCTION), load(LOCAL)
    assert [(rule.name, rule.match) for rule in loose.rules] == [(rule.name, rule.match) for rule in strict.rules]
    for narrow, wide in zip(strict.rules, loose.rules, strict=True):
        assert wide.limit.interval < narrow.limit.interval
        assert wide.limit.burst > narrow.limit.burst


async def admitted(buckets: Buckets, rate_limit_class: str, calls: int) -> int:
    descriptors = [describe(rate_limit_class=rate_limit_class) for describe in DESCRIBE.values()]
    decisions = [await buckets.check("storymesh", descriptors, remaining=None) for _ in range(calls)]
    return sum(decision.admitted for decision in decisions)


@pytest.mark.parametrize("rate_limit_class", CLASSES)
async def test_a_benchmark_from_one_address_is_not_throttled_locally(
    buckets_for: BucketsFor, rate_limit_class: str
) -> None:
    assert await admitted(buckets_for(load(LOCAL)), rate_limit_class, 300) == 300


@pytest.mark.parametrize("rate_limit_class", CLASSES)
async def test_one_user_with_one_address_is_throttled_in_production(
    buckets_for: BucketsFor, rate_limit_class: str
) -> None:
    rules: RuleSet = load(PRODUCTION)
    assert await admitted(buckets_for(rules), rate_limit_class, 100) < 100
