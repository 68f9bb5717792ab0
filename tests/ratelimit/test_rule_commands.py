"""The commands that explain and compare rules."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from services.ratelimit.__main__ import main
from tests.ratelimit.building import PRODUCTION

RULES = """\
domain: d
on_no_match: allow
rules:
  - {name: general, match: [{key: user}], rate: 1/s, burst: 3, on_redis_down: open}
  - {name: ada, match: [{key: user, value: ada}], rate: 1/s, burst: 9, cost: 2, shadow: true, on_redis_down: open}
  - {name: all, match: [{key: user}], rate: 1/s, burst: 100, always: true, on_redis_down: open}
  - {name: instead, match: [{key: team}], unlimited: true, replaces: [general]}
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "rules.yaml"
    path.write_text(RULES)
    return path


def test_explaining_a_call_says_why_each_matching_rule_applies_or_does_not(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["explain", "--domain", "d", str(path), "user=ada", "user=bob", "team=x", "no=rule"])
    assert capsys.readouterr().out.splitlines() == [
        "user=ada",
        "  general does not apply: ada is more specific",
        "  ada applies: 1/s, burst 9, bucket ratelimit:{d}:ada:user=ada",
        "  all applies: 1/s, burst 100, bucket ratelimit:{d}:all:user=ada",
        "user=bob",
        "  general does not apply: instead replaces it",
        "  all applies: 1/s, burst 100, bucket ratelimit:{d}:all:user=bob",
        "team=x",
        "  instead applies: unlimited",
        "no=rule",
        "  no rule matches: on_no_match is allow",
    ]


def test_explaining_needs_descriptors_in_their_form(path: Path) -> None:
    with pytest.raises(SystemExit, match="ada is not a descriptor; write key=value,key=value"):
        main(["explain", str(path), "ada"])


def test_checking_prints_what_each_rule_adds_and_hints_at_rules_that_give_way(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rules.yaml"
    office = "{name: office, match: [{key: class}, {key: client_ip, cidr: 198.51.100.0/24}], unlimited: true}"
    path.write_text(f"{PRODUCTION.read_text()}\n  - {office}\n---\n{RULES}")
    main(["check", str(path)])
    printed = capsys.readouterr().out.splitlines()
    assert (
        "hint: office gives way to credentials-per-address and 7 others; `always: true` makes it apply beside them"
        in printed
    )
    assert f"{path}: 4 rules of the domain d; on_no_match: allow" in printed
    shown = {line.split()[0]: line.split("down")[-1].split() for line in printed if line.startswith("  ")}
    assert (shown["ada"], shown["all"], shown["general"]) == (["2", "tokens", "a", "hit,", "shadow"], ["always"], [])
    assert "instead  team=*    unlimited" in "\n".join(printed)


def recording(path: Path, *calls: tuple[float, str, int]) -> Path:
    lines = [
        json.dumps({"at": at, "domain": "d", "descriptors": [{"entries": [["user", user]], "hits": hits}]})
        for at, user, hits in calls
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_comparing_tells_which_recorded_calls_other_rules_decide_otherwise(
    path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    candidate = tmp_path / "candidate.yaml"
    candidate.write_text(RULES.replace("burst: 3", "burst: 2"))
    calls = recording(tmp_path / "calls", *[(0.1, "bob", 1)] * 3, (0.2, "eve", 2), (5, "bob", 2))
    with pytest.raises(SystemExit) as ended:
        main(["compare", str(path), str(candidate), str(calls)])
    assert ended.value.code == 1
    assert capsys.readouterr().out.splitlines() == [
        f"5 calls: 5 admitted by {path}, 4 by {candidate}; 1 decided otherwise",
        "  1 times admitted by general, then refused by general",
        f"{calls}:3: user=bob: admitted by general, then refused by general",
    ]
    main(["compare", str(path), str(path), str(calls)])
    assert capsys.readouterr().out == f"5 calls: 5 admitted by {path}, 5 by {path}; 0 decided otherwise\n"


@pytest.mark.parametrize(
    "line",
    [
        "",
        "7",
        "{}",
        '{"domain": "d", "descriptors": []}',
        '{"domain": 1, "descriptors": [{"entries": [["a", "b"]]}]}',
        '{"domain": "d", "descriptors": [{"entries": [["a"]]}]}',
        '{"domain": "d", "descriptors": [{"entries": "ab", "hits": -1}]}',
    ],
)
def test_a_line_that_is_no_call_is_named(path: Path, tmp_path: Path, line: str) -> None:
    calls = recording(tmp_path / "calls", (0, "bob", 1))
    calls.write_text(calls.read_text() + "\n" + (line or "{"))
    with pytest.raises(SystemExit, match=rf"{calls}:3: is not a call; one is "):
        main(["compare", str(path), str(path), str(calls)])
