"""Converting rules of envoyproxy/ratelimit: what becomes of each key, and what is told."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from services.ratelimit.__main__ import main
from services.ratelimit.model import Limit
from services.ratelimit.model.rules import Action, Rule
from services.ratelimit.store.foreign_rules import Conversion
from services.ratelimit.store.rules_file import BadRules, load

RULES = """\
---
domain: mongo_cps
descriptors:
  - key: database
    value: users
    rate_limit:
      unit: second
      requests_per_unit: 500
  - key: database
    rate_limit:
      unit: minute
      requests_per_unit: 20
  - key: remote_address
    value: 50.0.0.5
    rate_limit: {unit: second, requests_per_unit: 0}
  - key: internal
    rate_limit: {unlimited: true}
  - key: files
    value: files/*
    share_threshold: true
    rate_limit: {unit: HOUR, requests_per_unit: 10}
  - key: service
    descriptors:
      - key: user
        value: user-a
        rate_limit: {unit: day, requests_per_unit: 10, name: specific_limit}
        shadow_mode: true
      - key: user
        value: "7"
        rate_limit:
          unit: month
          requests_per_unit: 10
          replaces: [{name: specific_limit}]
  - key: healthz
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "foreign.yaml"


def converted(path: Path, text: str) -> tuple[dict[str, Rule], list[str]]:
    path.write_text(text)
    conversion = Conversion(path)
    ours = path.with_name("ours.yaml")
    ours.write_text(conversion.text)
    (domain,) = load(ours).domains
    assert domain.on_no_match == "allow"
    return {" ".join(map(str, rule.match)): rule for rule in domain.rules}, conversion.notices


def test_every_key_has_its_counterpart(path: Path) -> None:
    rules, notices = converted(path, RULES)
    assert {match: rule.limit for match, rule in rules.items()} == {
        "database=users": Limit(500, 1, 500),
        "database=*": Limit(20, 60, 20),
        "remote_address=50.0.0.5": None,
        "internal=*": None,
        "files=files/* (shared)": Limit(10, 3600, 10),
        "service=* user=user-a": Limit(10, 86_400, 10),
        "service=* user=7": Limit(10, 30 * 86_400, 10),
        "healthz=*": None,
    }
    assert rules["remote_address=50.0.0.5"].action is Action.BLOCK
    assert rules["internal=*"].action is rules["healthz=*"].action is Action.UNLIMITED
    assert (rules["service=* user=user-a"].name, rules["service=* user=user-a"].shadow) == ("specific_limit", True)
    assert rules["service=* user=7"].replaces == {"specific_limit"}
    assert {rule.domain for rule in rules.values()} == {"mongo_cps"}
    assert notices == []


def test_a_branch_that_hides_a_general_one_there_does_so_here(path: Path) -> None:
    rules, _ = converted(
        path,
        """\
domain: d
descriptors:
  - {key: a, value: x, descriptors: [{key: b, value: one, rate_limit: {unit: day, requests_per_unit: 1}}]}
  - {key: a, rate_limit: {unit: day, requests_per_unit: 4}, descriptors: [{key: b, rate_limit: {unit: day, requests_per_unit: 3}}]}
""",
    )
    assert {match: rule.action for match, rule in rules.items()} == {
        "a=x b=one": Action.LIMIT,
        "a=x": Action.UNLIMITED,
        "a=x b=*": Action.UNLIMITED,
        "a=*": Action.LIMIT,
        "a=* b=*": Action.LIMIT,
    }


def test_what_cannot_be_kept_is_told_by_line(path: Path) -> None:
    rules, notices = converted(
        path,
        """\
domain: d
descriptors:
  - key: a
    value: v*
    detailed_metric: true
    rate_limit: {unit: day, requests_per_unit: 4}
  - key: a
    value: vv*
    rate_limit: {unit: day, requests_per_unit: 4}
  - key: b
    quota_mode: true
    rate_limit:
      unit: second
      requests_per_unit: 30000
      replaces:
        - name: nobody
""",
    )
    assert notices == [
        f"{path}:5: detailed_metric is not kept: metrics have the names of rules, never values",
        f"{path}:7: never reached, because line 3 matches first; left out",
        f"{path}:11: quota_mode becomes shadow: counted and told, never refused",
        f"{path}:14: 30000 per second cannot be counted exactly; 29412 in its place",
        f"{path}:16: no limit of d has the name nobody, so nothing is replaced",
    ]
    assert list(rules) == ["a=v*", "b=*"]
    assert rules["b=*"].shadow


@pytest.mark.parametrize(
    ("good", "bad", "line", "sentence"),
    [
        ("unit: second", "unit: fortnight", 7, "unit must be one of second, minute, hour, day, week, month, year"),
        ("requests_per_unit: 500", "requests_per_unit: -1", 8, "must be a whole number from 0 to 4294967295"),
        ("requests_per_unit: 500", "requests_per_min: 500", 8, "is not a key that a rate_limit has"),
        ("{unlimited: true}", "{unlimited: true, unit: day}", 17, "says nothing beside unlimited"),
        ("value: files/*", "value: files", 20, "stands beside values that end in * only"),
        ("value: files/*", "value: files/*\n    value: x", 20, "is written twice, first in line 19"),
        ("  - key: internal", "  - value: internal", 16, "has no key; write it, it has no default"),
        ("- key: healthz", "- {key: database, value: users}", 34, "database=users is in line 4 already"),
        ("[{name: specific_limit}]", "[{}]", 33, "has no name"),
        (
            "name: specific_limit}]",
            "nam: specific_limit}]",
            33,
            "is not a key that an item of replaces has; it has name",
        ),
        (
            "domain: mongo_cps",
            "x: y",
            2,
            "is not a key that a file of envoyproxy/ratelimit has; it has domain, descriptors",
        ),
    ],
)
def test_a_file_that_is_refused_there_is_refused_here_with_its_line(
    path: Path, good: str, bad: str, line: int, sentence: str
) -> None:
    assert good in RULES
    path.write_text(RULES.replace(good, bad, 1))
    with pytest.raises(BadRules) as refused:
        Conversion(path)
    told = [each for each in str(refused.value).splitlines() if sentence in each]
    assert len(told) == 1, refused.value
    assert told[0].startswith(f"{path}:{line}: ")


@pytest.mark.parametrize(
    "value", ["a: b", "- x", "#", "yes", "1.0", "'", '"', "{x", "ä", "a*b", " ", "\\t", "null", "~"]
)
def test_odd_values_keep_their_meaning(path: Path, value: str) -> None:
    text = yaml.safe_dump(
        {"domain": "d", "descriptors": [{"key": "k", "value": value, "rate_limit": {"unlimited": True}}]}
    )
    rules, _ = converted(path, text)
    (rule,) = rules.values()
    assert rule.matches((("k", value),))
    assert not rule.matches((("k", f"{value}x"),))


def test_a_file_of_theirs_is_refused_as_ours_with_the_command_that_converts_it(path: Path) -> None:
    path.write_text(RULES)
    with pytest.raises(
        BadRules, match=r":3: descriptors: is of envoyproxy/ratelimit; `python -m services.ratelimit import FILE`"
    ):
        load(path)


def test_the_command_prints_rules_and_tells_apart_what_was_lost(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path.write_text(RULES + "    value_to_metric: true\n")
    main(["import", str(path)])
    printed, told = capsys.readouterr()
    assert "  # Line 4.\n  - name: database_users\n" in printed
    assert told == f"{path}:35: value_to_metric is not kept: metrics have the names of rules, never values\n"
    path.write_text("domain: d\ndescriptors: 7\n")
    with pytest.raises(SystemExit, match=f"{path}:2: descriptors: must be a list, each item after a hyphen"):
        main(["import", str(path)])
