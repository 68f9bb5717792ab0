"""Reading rules files: what is accepted, and the messages about what is not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.ratelimit.model import Limit
from services.ratelimit.model.rules import DescriptorEntry, OnNoMatch, OnRedisDown, Rule
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


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rules.yaml"


def test_a_good_file_is_read_whole(path: Path) -> None:
    path.write_text(GOOD)
    rules = load(path)
    assert (rules.domain, rules.on_no_match) == ("storymesh", OnNoMatch.ALLOW)
    assert rules.rules == (
        Rule(
            "logins",
            (DescriptorEntry("class", "credentials"), DescriptorEntry("client_ip")),
            Limit(10, 60, 20),
            OnRedisDown.CLOSED,
        ),
    )


@pytest.mark.parametrize(
    ("rate", "requests", "period_seconds"),
    [("10/s", 10, 1), ("300/min", 300, 60), ("5/15min", 5, 900), ("1000/h", 1000, 3600), ("1/d", 1, 86_400)],
)
def test_rates_are_requests_per_time(path: Path, rate: str, requests: int, period_seconds: int) -> None:
    path.write_text(GOOD.replace("10/min", rate))
    limit = load(path).rules[0].limit
    assert (limit.requests, limit.period_seconds) == (requests, period_seconds)


@pytest.mark.parametrize(
    ("good", "bad", "sentence"),
    [
        ("10/min", "10/year", "rules[0].rate: '10/year' is not a rate; write requests per time, such as 10/s, 300/min or 5/15min"),
        ("10/min", "0/s", "rules[0].rate: '0/s' is not a rate"),
        ("10/min", "10", "rules[0].rate: 10 is not a rate"),
        ("10/min", "10001/s", "rules[0].rate: '10001/s' is more than 10000 in a second; choose a lower rate"),
        ("10/min", "1/31d", "rules[0].rate: '1/31d' spans more than 30 days; choose a shorter time"),
        ("burst: 20", "burst: 0", "rules[0].burst: Input should be greater than or equal to 1"),
        ("burst: 20", "burst: many", "rules[0].burst: Input should be a valid integer"),
        ("burst: 20", "burst: 1000000000", "a burst this large takes more than a year to come back; lower burst or raise rate"),
        ("    burst: 20\n", "", "rules[0].burst: is missing; write it, nothing here has a default"),
        ("on_no_match: allow\n", "", "on_no_match: is missing; write it, nothing here has a default"),
        ("closed", "maybe", "rules[0].on_redis_down: Input should be 'open' or 'closed'"),
        ("burst: 20", "burst: 20\n    brust: 1", "rules[0].brust: is not a key that rules have; remove it or correct its spelling"),
        ("value: credentials", "value: 7", "rules[0].match[0].value: must be text; put it in quotes"),
        ("value: credentials", "value:", "rules[0].match[0]: value is empty; leave the key out to match any value"),
        ("name: logins", "name: Log ins", "rules[0].name: may have small letters, digits and hyphens only"),
        (MATCH, "[]", "rules[0].match: must have at least one item"),
        (MATCH, "class", "rules[0].match: must be a list, each item after a hyphen"),
        ("    burst: 20\n", "    burst: 20\n    burst: 30\n", "is not YAML: 'burst' is written twice"),
        ("domain: storymesh", "domain: [", "is not YAML: while parsing"),
        ("value: credentials", "value: 2026-99-99", "is not YAML: month must be in 1..12"),
        (GOOD, "", "must be a mapping of keys to values"),
        (GOOD, "[a]: b", "is not YAML: while constructing a mapping"),
    ],
)  # fmt: skip
def test_a_mistake_gets_a_sentence_with_its_place(path: Path, good: str, bad: str, sentence: str) -> None:
    path.write_text(GOOD.replace(good, bad))
    with pytest.raises(BadRules) as refused:
        load(path)
    (line,) = str(refused.value).splitlines()
    assert line.startswith(str(path))
    assert sentence in line


def test_rules_may_not_share_a_name(path: Path) -> None:
    path.write_text(GOOD + GOOD.partition("rules:\n")[2])
    with pytest.raises(BadRules, match="rules share the name logins; rules with one name would share their buckets"):
        load(path)


def test_every_mistake_is_told_at_once(path: Path) -> None:
    path.write_text(GOOD.replace("10/min", "fast").replace("20", "-1"))
    with pytest.raises(BadRules) as refused:
        load(path)
    assert len(str(refused.value).splitlines()) == 2


def test_a_missing_file_is_named(path: Path) -> None:
    with pytest.raises(BadRules, match=f"{path} cannot be read: No such file or directory"):
        load(path)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.one_of(st.binary(max_size=40), st.text(":-[]{}&*?|>!%@#'\" \nab0", max_size=30).map(str.encode)))
def test_no_content_fails_in_another_way(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(BadRules):
        load(path)
