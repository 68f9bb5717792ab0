"""The command `python -m local logs` on the logs of several components."""

import io
import json
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from local.failures import LocalError
from local.layout import Layout
from local.terminal.log_lines import trace_id
from local.terminal.logs import Selection, show

TRACE = "bb0dad572b9d2ed5d1be8c136c01b2c6"


def _ecs(second: str, message: str, trace: str = "", **fields: object) -> str:
    document = {"@timestamp": f"2026-11-29T20:45:{second}Z", "log.level": "info", "message": message, **fields}
    return json.dumps(document | ({"trace": {"id": trace}} if trace else {}))


AUTH = [
    _ecs(
        "29.414",
        "CreateSession UNAUTHENTICATED",
        TRACE,
        error={"code": "INVALID_CREDENTIALS"},
        event={"duration": 155494335},
    ),
    _ecs("31.000", "it broke", error={"stack_trace": "Traceback:\n  ValueError"}),
]
ENVOY = [
    "a word of the C core",
    _ecs("29.247", "POST /v1/sessions 401", TRACE),
    _ecs("30.500", "GET /\x1b[2J 404", "0" * 31 + "1"),
]
POSTGRES = ["2026-11-29 20:45:29.300 UTC [7] ERROR:  no such table", "\tof a statement in two lines"]
REDIS = ["9556:M 29 Nov 2026 20:45:30.100 * Ready to accept connections tcp"]
MAIL = ["2026-11-29 20:45:30,600 UTC stored 1.eml"]


@pytest.fixture(autouse=True)
def in_new_york(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("TZ", "America/New_York")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture
def logged(layout: Layout) -> Layout:
    layout.create()
    for name, lines in {"auth": AUTH, "envoy": ENVOY, "postgres": POSTGRES, "redis": REDIS, "mail": MAIL}.items():
        _write(layout.log(name), lines)
    return layout


def _write(path: Path, lines: Sequence[str]) -> None:
    path.write_text("".join(f"{line}\n" for line in lines))


def _shown(
    layout: Layout, *components: str, lines: int | None = None, trace: str = "", as_json: bool = False
) -> list[str]:
    output = io.StringIO()
    show(layout, Selection(components, lines, trace), as_json=as_json, follow=False, output=output)
    return output.getvalue().splitlines()


def test_lines_of_all_components_are_merged_by_time_in_the_readers_own_time_zone(logged: Layout) -> None:
    assert _shown(logged) == [
        "11-29 15:45:29.247  envoy              a word of the C core",
        f"11-29 15:45:29.247  envoy     INFO     POST /v1/sessions 401  trace={TRACE}",
        "11-29 15:45:29.300  postgres           [7] ERROR:  no such table",
        r"11-29 15:45:29.300  postgres           \tof a statement in two lines",
        f"11-29 15:45:29.414  auth      INFO     CreateSession UNAUTHENTICATED  INVALID_CREDENTIALS  155.5 ms  trace={TRACE}",
        "11-29 15:45:30.100  redis              * Ready to accept connections tcp",
        rf"11-29 15:45:30.500  envoy     INFO     GET /\x1b[2J 404  trace={'0' * 31}1",
        "11-29 15:45:30.600  mail               stored 1.eml",
        "11-29 15:45:31.000  auth      INFO     it broke",
        "    Traceback:",
        "      ValueError",
    ]


def test_the_latest_lines_are_those_of_all_logs_together(logged: Layout) -> None:
    assert [line.split()[2] for line in _shown(logged, lines=3)[:3]] == ["envoy", "mail", "auth"]
    assert _shown(logged, lines=0) == []
    assert [line.split()[2] for line in _shown(logged, "redis", "mail")] == ["redis", "mail"]


def test_raw_lines_are_a_json_object_each_whatever_the_component_writes(logged: Layout) -> None:
    lines = _shown(logged, as_json=True)
    assert set(AUTH) <= set(lines)
    redis = next(each for each in map(json.loads, lines) if each.get("service") == {"name": "redis"})
    assert redis == {"@timestamp": "2026-11-29T20:45:30.100Z", "message": REDIS[0], "service": {"name": "redis"}}


@pytest.mark.parametrize("given", [TRACE, TRACE.upper(), f"00-{TRACE}-00f067aa0ba902b7-01"])
def test_a_trace_is_found_over_all_components_and_in_the_run_before(logged: Layout, given: str) -> None:
    _write(logged.logs / "story.log.1", [_ecs("28.000", "CreateStory OK", TRACE), _ecs("28.500", "another", "f" * 32)])
    _write(logged.log("story"), [_ecs("40.000", "serving")])
    assert [line.split()[2] for line in _shown(logged, trace=given)] == ["story", "envoy", "auth"]


def test_a_trace_that_is_none_or_unknown_gets_a_sentence(logged: Layout) -> None:
    with pytest.raises(LocalError, match="is no trace id: those have 32 hexadecimal digits"):
        _shown(logged, trace="not-a-trace")
    with pytest.raises(LocalError, match=f"belongs to the trace {'a' * 32}"):
        _shown(logged, trace="a" * 32)
    with pytest.raises(LocalError, match="nonsense has no log"):
        _shown(logged, "nonsense", "auth")


def test_a_trace_id_is_read_from_what_a_person_copies() -> None:
    assert trace_id(f" {TRACE}\n") == trace_id(f"00-{TRACE}-00f067aa0ba902b7-01") == TRACE
    assert trace_id(TRACE[:-1]) is trace_id(f"00-{TRACE}") is trace_id("") is None


def test_a_log_without_any_time_has_that_of_its_file(logged: Layout) -> None:
    _write(logged.log("supervisor"), ["Traceback (most recent call last):"])
    os.utime(logged.log("supervisor"), (1795985000, 1795985000))
    assert _shown(logged)[0].split()[2] == "supervisor"
