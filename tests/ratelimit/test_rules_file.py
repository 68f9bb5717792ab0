"""Reading rules files: what is accepted, and the messages about what is not."""

from __future__ import annotations

import re
from ipaddress import ip_network
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.ratelimit.model import MICROSECONDS, Limit
from services.ratelimit.model.matching import DescriptorEntry
from services.ratelimit.model.quotas import Period, Quota
from services.ratelimit.model.rules import Action, OnNoMatch, OnRedisDown, Rule
from services.ratelimit.store.rules_file import BadRules, load

MATCH = "[{key: class, value: credentials}, {key: client_ip}]"
GOOD = f"""\
domain: storymesh
on_no_match: allow
rules:
  - name: logins
    match: {MATCH}
    rate: 10/min
    burst: 20
    on_redis_down: closed
"""


RATE = "    rate: 10/min\n    burst: 20\n"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rules.yaml"


def test_a_good_file_is_read_whole(path: Path) -> None:
    path.write_text(GOOD)
    (rules,) = load(path).domains
    assert (rules.domain, rules.on_no_match, rules.shadow) == ("storymesh", OnNoMatch.ALLOW, False)
    assert rules.rules == (
        Rule(
            "logins",
            (DescriptorEntry("class", "credentials"), DescriptorEntry("client_ip")),
            Limit(10, 60, 20),
            OnRedisDown.CLOSED,
        ),
    )


def test_a_bound_of_leases_is_read_and_checks_of_calls_know_nothing_of_it(path: Path) -> None:
    path.write_text(GOOD.replace(RATE, "    concurrency: 5\n    ttl: 2min\n"))
    rules = load(path)
    (bound,) = rules.leases
    assert (bound.name, bound.most, bound.ttl_seconds, bound.on_redis_down) == ("logins", 5, 120, OnRedisDown.CLOSED)
    entries = (("class", "credentials"), ("client_ip", "192.0.2.7/32"))
    assert rules.of("storymesh").matching_leases(entries) == (bound,)
    assert rules.matching("storymesh", entries) == rules.rules == ()


def test_a_bound_of_leases_shares_its_names_with_the_other_rules(path: Path) -> None:
    bound = "  - name: logins\n    match: [{key: a}]\n    concurrency: 5\n    ttl: 9s\n    on_redis_down: open\n"
    path.write_text(GOOD + bound)
    with pytest.raises(BadRules, match="logins is the name of the rule in line 4 too"):
        load(path)
    path.write_text(GOOD.replace(RATE, f"{RATE}    replaces: [bound]\n") + bound.replace("logins", "bound"))
    with pytest.raises(BadRules, match="no rule of this domain has the name bound"):
        load(path)


def limit_of(rate: str, path: Path) -> Limit:
    path.write_text(GOOD.replace("10/min", rate))
    limit = load(path).rules[0].limit
    assert isinstance(limit, Limit)
    return limit


@pytest.mark.parametrize(
    ("rate", "requests", "period_seconds"),
    [
        ("10/s", 10, 1),
        ("300/min", 300, 60),
        ("5/15min", 5, 900),
        ("1000/h", 1000, 3600),
        ("1/d", 1, 86_400),
        ("10/90s", 10, 90),
        ("5/2h", 5, 7200),
        ("3/2w", 3, 14 * 86_400),
        ("20/366d", 20, 366 * 86_400),
        ("10/500ms", 20, 1),
        ("1/1500ms", 2, 3),
        ("10000/s", 10_000, 1),
        ("1000000/s", 1_000_000, 1),
        ("2/90min", 2, 5400),
    ],
)
def test_rates_are_requests_per_time(path: Path, rate: str, requests: int, period_seconds: int) -> None:
    limit = limit_of(rate, path)
    assert (limit.requests, limit.period_seconds) == (requests, period_seconds)


@given(st.integers(1, 3_000_000))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_rate_is_counted_to_one_percent_or_refused_with_one_that_is(path: Path, requests: int) -> None:
    try:
        counted = MICROSECONDS / limit_of(f"{requests}/s", path).interval
    except BadRules as refused:
        for nearest in re.findall(r"(\d+)/s", str(refused).partition("write")[2]):
            assert 0.5 * nearest_count(requests) <= MICROSECONDS / limit_of(f"{nearest}/s", path).interval
    else:
        assert 0.99 * requests <= counted <= requests


def nearest_count(requests: int) -> int:
    return min(requests, MICROSECONDS)


@pytest.mark.parametrize(
    ("good", "bad", "line", "sentence"),
    [
        ("10/min", "10/year", 6, "rules[0].rate: '10/year' is not a rate; write requests per time, such as 10/s"),
        ("10/min", "0/s", 6, "rules[0].rate: lets nothing pass; write block: true in place of rate and burst"),
        ("10/min", "0", 6, "rules[0].rate: lets nothing pass; write block: true in place of rate and burst"),
        ("10/min", "10", 6, "rules[0].rate: '10' is not a rate"),
        ("10/min", "[]", 6, "rules[0].rate: '' is not a rate"),
        ("10/min", "-1/s", 6, "rules[0].rate: '-1/s' is not a rate"),
        ("10/min", "1/0s", 6, "rules[0].rate: '1/0s' is not a rate"),
        ("10/min", "1.5/s", 6, "rules[0].rate: '1.5/s' is not a rate"),
        ("10/min", "30000/s", 6, "whole microseconds; write 29412/s or 30304/s"),
        ("10/min", "2000000/s", 6, "microseconds; write 1000000/s"),
        ("10/min", "1/367d", 6, "rules[0].rate: '1/367d' spans more than 366 days; choose a shorter time"),
        ("burst: 20", "burst: 0", 7, "rules[0].burst: must be a whole number from 1 to 1000000000"),
        ("burst: 20", "burst: many", 7, "rules[0].burst: must be a whole number from 1 to 1000000000"),
        ("burst: 20", "burst: 2.0", 7, "rules[0].burst: must be a whole number from 1 to 1000000000"),
        ("burst: 20", "burst: 1000000000", 7, "rules[0].burst: a burst this large takes more than a year"),
        ("    burst: 20\n", "", 4, "rules[0]: has no burst; write it, it has no default"),
        ("on_no_match: allow\n", "", 1, "has no on_no_match; write it, it has no default"),
        ("allow", "maybe", 2, "on_no_match: must be allow or deny"),
        ("closed", "maybe", 8, "rules[0].on_redis_down: must be open, closed or local"),
        ("closed", "local", 4, "rules[0]: has no local_share; write it, it has no default"),
        ("closed", "local\n    local_share: 2", 9, "rules[0].local_share: must be a part such as 0.25, from 0.001 to 1"),
        ("closed", "closed\n    local_share: 0.5", 9, "local_share: says nothing without on_redis_down: local"),
        ("burst: 20", "burst: 20\n    brust: 1", 8, "rules[0].brust: is not a key that a rule has; it has name, "),
        ("burst: 20", "burst: 20\n    cost: 0", 8, "rules[0].cost: must be a whole number from 1 to 1000000"),
        ("burst: 20", "burst: 20\n    shadow: maybe", 8, "rules[0].shadow: must be true or false"),
        ("burst: 20", "burst: 20\n    block: true", 4, "one of rate, quota, concurrency, unlimited, block, not rate and block"),
        (RATE, "    block: true\n", 7, "on_redis_down: says nothing beside block; remove it"),
        (RATE + "    on_redis_down: closed\n", "", 4, "rules[0]: must have one of rate, quota, concurrency, unlimited, block"),
        ("rate: 10/min", "quota: 10/week", 6, "'10/week' is not a quota; write calls per calendar period"),
        ("rate: 10/min", "quota: 0/day", 6, "rules[0].quota: '0/day' is not a quota"),
        (RATE, "    concurrency: 5\n", 4, "rules[0]: has no ttl; write it, it has no default"),
        (RATE, "    concurrency: 0\n    ttl: 30s\n", 6, "concurrency: must be a whole number from 1 to 1000000"),
        (RATE, "    concurrency: 5\n    ttl: 30\n", 7, "'30' is not a time; write one such as 30s or 5min"),
        (RATE, "    concurrency: 5\n    ttl: 2d\n", 7, "'2d' is longer than a day"),
        (RATE, "    concurrency: 5\n    ttl: 9s\n    cost: 2\n", 8, "cost: says nothing beside concurrency; remove it"),
        (RATE, "    concurrency: 5\n    ttl: 9s\n    shadow: true\n", 8, "shadow: says nothing beside concurrency"),
        (RATE, "    concurrency: 5\n    ttl: 9s\n    rate: 1/s\n", 4, "quota, concurrency, unlimited, block, not rate and conc"),
        (RATE + "    on_redis_down: closed", "    concurrency: 5\n    ttl: 9s\n    on_redis_down: local", 8, "open or closed"),
        ("burst: 20", "burst: 20\n    ttl: 9s", 8, "rules[0].ttl: says nothing beside rate; remove it"),
        ("rate: 10/min", "quota: 10/day", 7, "rules[0].burst: says nothing beside quota; remove it"),
        ("burst: 20", "burst: 20\n    time_zone: UTC", 8, "rules[0].time_zone: says nothing beside rate; remove it"),
        (RATE, "    quota: 10/day\n    time_zone: Europe/Nowhere\n", 7, "there is no time zone 'Europe/Nowhere'"),
        (RATE, "    quota: 10/day\n    time_zone: ../../etc/passwd\n", 7, "there is no time zone"),
        (RATE + "    on_redis_down: closed\n", "    unlimited: false\n", 6, "unlimited: may only be true; leave the key out"),
        ("burst: 20", "burst: 20\n    replaces: [nobody]", 8, "rules[0].replaces[0]: no rule of this domain has the name nobody"),
        ("burst: 20", "burst: 20\n    replaces: [logins]", 8, "rules[0].replaces[0]: a rule cannot replace itself"),
        ("value: credentials", "value: 7", 5, "rules[0].match[0].value: must be text; put it in quotes"),
        ("value: credentials", "value: on", 5, "rules[0].match[0].value: must be text; put it in quotes"),
        ("value: credentials", "value: 2026-99-99", 5, "rules[0].match[0].value: must be text; put it in quotes"),
        ("value: credentials", "value:", 5, "rules[0].match[0].value: is empty; leave the key out to match any value"),
        ("value: credentials", "value: a*b", 5, "'a*b' has a * before its end, where none is a wildcard"),
        ("value: credentials", "cidr: 10.0.0.1/8", 5, "'10.0.0.1/8' has bits beyond its length; write 10.0.0.0/8"),
        ("value: credentials", "cidr: 10.0.0.0/33", 5, "'10.0.0.0/33' is not an address or network; write one such as"),
        ("value: credentials", "value: a, cidr: 10.0.0.0/8", 5, "rules[0].match[0]: has value and cidr; choose one"),
        ("value: credentials", "value: a, shared: true", 5, "shared: says nothing beside one exact value; remove it"),
        ("value: credentials", "valeu: a", 5, "match[0].valeu: is not a key that an entry of match has; it has key, "),
        ("key: class, ", 'key: "", ', 5, "rules[0].match[0].key: is empty; a descriptor's key never is"),
        ("name: logins", "name: Log ins", 4, "rules[0].name: may have letters, digits and _ . - only"),
        ("domain: storymesh", "domain: a b", 1, "domain: may have letters, digits and _ . - / only"),
        (MATCH, "[]", 5, "rules[0].match: must have at least one item"),
        (MATCH, "class", 5, "rules[0].match: must be a list, each item after a hyphen"),
        ("    burst: 20\n", "    burst: 20\n    burst: 30\n", 8, "rules[0].burst: is written twice, first in line 7"),
        ("domain: storymesh", "domain: [", 3, "is not YAML: while parsing"),
        (GOOD, "", 1, "must be a mapping of keys to values"),
        (GOOD, "[a]: b", 1, "is not a key that a file of rules has; it has domain, "),
        ("rules:", "descriptors:", 3, "`python -m services.ratelimit import FILE` writes these as rules"),
    ],
)  # fmt: skip
def test_a_mistake_gets_a_sentence_with_its_file_and_line(
    path: Path, good: str, bad: str, line: int, sentence: str
) -> None:
    assert good in GOOD
    path.write_text(GOOD.replace(good, bad, 1))
    with pytest.raises(BadRules) as refused:
        load(path)
    told = [each for each in str(refused.value).splitlines() if sentence in each]
    assert len(told) == 1, refused.value
    assert told[0].startswith(f"{path}:{line}: ")


def test_rules_may_not_share_a_name(path: Path) -> None:
    path.write_text(GOOD + GOOD.partition("rules:\n")[2])
    with pytest.raises(BadRules, match="logins is the name of the rule in line 4 too; they would share their buckets"):
        load(path)


def test_every_mistake_is_told_at_once_whatever_its_kind(path: Path) -> None:
    again = GOOD.partition("rules:\n")[2].replace("cred", "x*")
    path.write_text(GOOD.replace("10/min", "fast").replace("20", "-1").replace("storymesh", "a b") + again)
    with pytest.raises(BadRules) as refused:
        load(path)
    lines = [int(line.removeprefix(f"{path}:").partition(":")[0]) for line in str(refused.value).splitlines()]
    assert lines == [1, 6, 7, 9, 10]


def test_kinds_of_rules_and_what_they_add(path: Path) -> None:
    path.write_text(
        """\
domain: mongo_cps
on_no_match: deny
shadow: true
rules:
  - name: Office_1.v2
    match:
      - {key: ip, cidr: "2001:db8::/32"}
      - {key: file, value: "a*", shared: true}
      - {key: odd, exact: "a*"}
      - {key: all, value: "*"}
    rate: 5/2h
    burst: 7
    cost: 3
    on_redis_down: local
    local_share: 0.25
    shadow: true
    always: true
    replaces: [banned]
  - name: banned
    match: [{key: ip, cidr: 192.0.2.1}]
    block: true
  - name: friends
    match: [{key: user, value: ada}]
    unlimited: true
"""
    )
    (rules,) = load(path).domains
    office, banned, friends = rules.rules
    assert (rules.domain, rules.on_no_match, rules.shadow) == ("mongo_cps", OnNoMatch.DENY, True)
    assert office == Rule(
        "Office_1.v2",
        (
            DescriptorEntry("ip", network=ip_network("2001:db8::/32")),
            DescriptorEntry("file", prefix="a", shared=True),
            DescriptorEntry("odd", "a*"),
            DescriptorEntry("all"),
        ),
        Limit(5, 7200, 7),
        OnRedisDown.LOCAL,
        cost=3,
        shadow=True,
        always=True,
        replaces=frozenset({"banned"}),
        local_share=0.25,
        domain="mongo_cps",
    )
    assert (banned.action, banned.limit, str(banned.match[0])) == (Action.BLOCK, None, "ip=192.0.2.1/32")
    assert (friends.action, friends.limit) == (Action.UNLIMITED, None)


def test_a_quota_has_a_period_of_the_calendar_in_utc_or_another_zone(path: Path) -> None:
    path.write_text(GOOD.replace(RATE, "    quota: 1000/month\n"))
    assert load(path).rules[0].limit == Quota(1000, Period.MONTH, "UTC")
    path.write_text(GOOD.replace(RATE, "    quota: 5/day\n    time_zone: Europe/Berlin\n"))
    assert load(path).rules[0].limit == Quota(5, Period.DAY, "Europe/Berlin")


def test_rules_that_stand_in_a_group_match_what_the_group_does_and_then_their_own(path: Path) -> None:
    limit = "rate: 1/s, burst: 1, on_redis_down: open"
    path.write_text(
        f"""\
domain: d
on_no_match: allow
rules:
  - match: [{{key: a, value: x}}]
    rules:
      - {{name: b, match: [{{key: b}}], {limit}}}
      - match: [{{key: c}}]
        rules:
          - {{name: d, match: [{{key: d}}], {limit}}}
"""
    )
    assert [" ".join(map(str, rule.match)) for rule in load(path).rules] == ["a=x b=*", "a=x c=* d=*"]
    path.write_text(path.read_text().replace("- match: [{key: c}]", "- name: x\n        match: [{key: c}]"))
    with pytest.raises(
        BadRules, match=r"7: rules\[0\].rules\[1\].name: stands beside rules; a group has match and rules only"
    ):
        load(path)


def test_a_file_has_a_document_for_each_domain_and_a_folder_has_files(tmp_path: Path) -> None:
    (tmp_path / "b.yaml").write_text(GOOD + "---\n" + GOOD.replace("storymesh", "other"))
    (tmp_path / "a.yml").write_text(GOOD.replace("storymesh", "first"))
    (tmp_path / "readme.txt").write_text("no rules")
    rules = load(tmp_path)
    assert [each.domain for each in rules.domains] == ["first", "storymesh", "other"]
    entries = (("class", "credentials"), ("client_ip", "x"))
    assert [each.domain for domain in ("first", "other") for each in rules.matching(domain, entries)] == [
        "first",
        "other",
    ]
    assert len({each.bucket(entries) for each in rules.rules}) == 3
    (tmp_path / "c.yaml").write_text("# A comment.\n" + GOOD.replace("20", "-1"))
    with pytest.raises(BadRules) as refused:
        load(tmp_path)
    assert f"{tmp_path}/c.yaml:2: the domain storymesh has rules in {tmp_path}/b.yaml:1 already" in str(refused.value)
    assert f"{tmp_path}/c.yaml:8: rules[0].burst: must be" in str(refused.value)


def test_an_empty_folder_has_no_rules(tmp_path: Path) -> None:
    with pytest.raises(BadRules, match=f"{tmp_path} has no file whose name ends in .yaml"):
        load(tmp_path)


def test_parts_that_repeat_may_be_written_once(path: Path) -> None:
    path.write_text(
        """\
domain: d
on_no_match: allow
rules:
  - &first {name: a, match: [{key: a}], rate: 1/s, burst: 1, on_redis_down: open}
  - {<<: *first, name: b, match: [{key: b}]}
"""
    )
    assert [(rule.name, str(rule.match[0]), rule.limit) for rule in load(path).rules] == [
        ("a", "a=*", Limit(1, 1, 1)),
        ("b", "b=*", Limit(1, 1, 1)),
    ]


def test_aliases_that_make_a_short_file_long_are_refused(path: Path) -> None:
    layers = "\n".join(f"x{n}: &x{n} [{', '.join([f'*x{n - 1}'] * 10)}]" for n in range(1, 9))
    path.write_text(f"x0: &x0 [a]\n{layers}\n{GOOD}")
    with pytest.raises(BadRules, match="more than 200000 values, aliases followed"):
        load(path)


def test_a_missing_file_is_named(path: Path) -> None:
    with pytest.raises(BadRules, match=f"{path} cannot be read: No such file or directory"):
        load(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=40), st.text(":-[]{}&*?|>!%@#'\" \nab0", max_size=30).map(str.encode)))
def test_no_content_fails_in_another_way(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(BadRules):
        load(path)
