"""The rules files of the repository."""

from __future__ import annotations

import re
from itertools import product
from pathlib import Path

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from storymesh.options.v1 import policy_pb2

from mesh import contract
from mesh.contract import Contract
from services.ratelimit.model import MICROSECONDS, Limit
from services.ratelimit.model.rules import OnNoMatch, OnRedisDown, RuleSet
from services.ratelimit.operations.buckets import Buckets
from services.ratelimit.operations.classes import load_fitting, misfits
from services.ratelimit.store.rules_file import BadRules, load
from tests.ratelimit.building import LOCAL, PRODUCTION, RULES_FOLDER, BucketsFor, by_address, by_user

pytestmark = pytest.mark.slow

DESCRIBE = {"client_ip": by_address, "user": by_user}

CLASSES = contract.read().rate_limit_classes


def test_these_are_all_files() -> None:
    assert set(RULES_FOLDER.iterdir()) == {PRODUCTION, LOCAL}


@pytest.mark.parametrize("path", [PRODUCTION, LOCAL], ids=lambda path: path.stem)
def test_every_class_is_limited_by_address_and_by_user_and_what_is_unknown_is_denied(path: Path) -> None:
    rules = load(path)
    assert rules.of("storymesh").on_no_match is OnNoMatch.DENY
    for rate_limit_class, describe in product(CLASSES, DESCRIBE.values()):
        assert rules.matching("storymesh", describe(rate_limit_class=rate_limit_class).entries), rate_limit_class


@pytest.mark.parametrize("path", [PRODUCTION, LOCAL], ids=lambda path: path.stem)
def test_the_contract_finds_no_fault_with_them(path: Path) -> None:
    load_fitting(path)


def with_class(name: str) -> Contract:
    """The contract with one more rate-limit class, which ListStories then has."""
    descriptors = FileDescriptorSet.FromString(contract.DESCRIPTORS.read_bytes())
    files = {file.name: file for file in descriptors.file}
    classes = next(e for e in files["storymesh/options/v1/policy.proto"].enum_type if e.name == "RateLimitClass")
    classes.value.add(name=f"RATE_LIMIT_CLASS_{name.upper()}", number=100)
    methods = files["storymesh/story/v1/story_service.proto"].service[0].method
    options = next(method for method in methods if method.name == "ListStories").options
    # The enum is open, so this process's own stubs accept the new number.
    options.Extensions[policy_pb2.policy].rate_limit_class = 100  # type: ignore[assignment]
    return contract.of(descriptors)


def test_a_new_class_takes_one_line_of_the_contract_and_its_rules(tmp_path: Path) -> None:
    known = with_class("search")
    limit = "rate: 1/s, burst: 9, on_redis_down: open"
    by_address = f"{{name: search-address, match: [{{key: class, value: search}}, {{key: client_ip}}], {limit}}}"
    by_user = f"{{name: search-user, match: [{{key: class, value: search}}, {{key: user}}], {limit}}}"
    path = tmp_path / "rules.yaml"

    path.write_text(PRODUCTION.read_text())
    without_any = list(misfits(load(path), known))
    assert [re.findall(r"class search by (\w+), which then is refused; write one", each) for each in without_any] == [
        ["client_ip"],
        ["user"],
    ]
    path.write_text(f"{PRODUCTION.read_text()}\n  - {by_address}\n")
    assert len(list(misfits(load(path), known))) == 1
    path.write_text(f"{PRODUCTION.read_text()}\n  - {by_address}\n  - {by_user}\n")
    assert list(misfits(load(path), known)) == []
    with pytest.raises(
        BadRules, match=r"rules.yaml: search-address: the contract has no rate-limit class search; it has"
    ):
        load_fitting(path)


def test_a_rule_for_a_part_of_a_class_does_not_limit_the_class(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(PRODUCTION.read_text().replace("{key: client_ip}", "{key: client_ip, value: 192.0.2.7/32}"))
    with pytest.raises(BadRules, match=r"class default by client_ip"):
        load_fitting(path)


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        (
            "key: client_ip, value: 192.0.2.7",
            "counted by networks, so the value 192.0.2.7 matches none; write cidr: 192.0.2.7",
        ),
        ('key: client_ip, value: "2001:db8::1"', "the value 2001:db8::1 matches none; write cidr: 2001:db8::1"),
        (
            'key: client_ip, cidr: "2001:db8::1"',
            "IPv6 clients are counted by their /64, so 2001:db8::1/128 matches none",
        ),
        (
            'key: client_ip, cidr: "2001:db8::/65"',
            "IPv6 clients are counted by their /64, so 2001:db8::/65 matches none",
        ),
        ("key: client_ip, cidr: 192.0.2.7", ""),
        ("key: client_ip, value: 192.0.2.7/32", ""),
        ('key: client_ip, cidr: "2001:db8::/64"', ""),
    ],
)
def test_an_address_in_a_form_that_the_edge_never_sends_is_refused(tmp_path: Path, entry: str, sentence: str) -> None:
    path = tmp_path / "rules.yaml"
    special = f"{{name: special, match: [{{key: class, value: default}}, {{{entry}}}], unlimited: true}}"
    path.write_text(f"{PRODUCTION.read_text()}\n  - {special}\n")
    faults = list(misfits(load(path), contract.read()))
    assert [sentence in fault for fault in faults] == ([True] if sentence else [])


def test_rules_of_other_domains_need_not_fit_the_contract(tmp_path: Path) -> None:
    other = "domain: other\non_no_match: allow\nrules: [{name: a, match: [{key: class, value: no-such}], unlimited: true}]\n"
    (tmp_path / "edge.yaml").write_text(PRODUCTION.read_text())
    (tmp_path / "other.yaml").write_text(other)
    assert [each.domain for each in load_fitting(tmp_path).domains] == ["storymesh", "other"]
    (tmp_path / "edge.yaml").unlink()
    with pytest.raises(BadRules, match="no rule matches every call of the rate-limit class default by client_ip"):
        load_fitting(tmp_path)


def test_a_prefix_of_classes_limits_each_of_them(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(PRODUCTION.read_text().replace("value: stream", "value: str*"))
    load_fitting(path)
    path.write_text(PRODUCTION.read_text().replace("value: stream", "value: strange*"))
    with pytest.raises(BadRules, match=r"the contract has no rate-limit class strange\*"):
        load_fitting(path)


@pytest.mark.parametrize("path", [PRODUCTION, LOCAL], ids=lambda path: path.stem)
def test_only_reading_goes_on_while_redis_is_down(path: Path) -> None:
    for rule in load(path).rules:
        costly = rule.match[0].value in ("credentials", "generation")
        assert rule.on_redis_down is (OnRedisDown.CLOSED if costly else OnRedisDown.OPEN), rule.name


def limits_of(path: Path) -> dict[str, Limit]:
    return {rule.name: rule.limit for rule in load(path).rules if isinstance(rule.limit, Limit)}


def test_production_lets_nobody_guess_passwords_or_generate_without_end() -> None:
    limits = limits_of(PRODUCTION)
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
        buckets.check("storymesh", [by_address(rate_limit_class="credentials")], remaining=None)
    refreshes = [
        buckets.check("storymesh", [by_address(rate_limit_class="refresh")], remaining=None) for _ in range(1000)
    ]
    assert all(decision.admitted for decision in refreshes)
    # Nor do refreshes take anything from a sign-in, here at another address than the guesser uses.
    office = by_address("198.51.100.7/32", rate_limit_class="refresh")
    for _ in range(3000):
        buckets.check("storymesh", [office], remaining=None)
    sign_in = by_address("198.51.100.7/32", rate_limit_class="credentials")
    assert (buckets.check("storymesh", [sign_in], remaining=None)).admitted


def test_local_is_production_with_wider_numbers_only() -> None:
    strict, loose = load(PRODUCTION), load(LOCAL)
    assert [(rule.name, rule.match) for rule in loose.rules] == [(rule.name, rule.match) for rule in strict.rules]
    for narrow, wide in zip(limits_of(PRODUCTION).values(), limits_of(LOCAL).values(), strict=True):
        assert wide.interval < narrow.interval
        assert wide.burst > narrow.burst


async def admitted(buckets: Buckets, rate_limit_class: str, calls: int) -> int:
    descriptors = [describe(rate_limit_class=rate_limit_class) for describe in DESCRIBE.values()]
    decisions = [buckets.check("storymesh", descriptors, remaining=None) for _ in range(calls)]
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
