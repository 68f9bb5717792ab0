"""Log lines are JSON of the Elastic Common Schema, whatever a caller gives them."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

from kit.runtime import logs
from tests.logging_state import restored_logging

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines() -> Any:
    stream = io.StringIO()
    with restored_logging():
        logs.configure("desk", "development", "INFO", stream=stream)
        yield lambda: [json.loads(line) for line in stream.getvalue().splitlines()]


log = logging.getLogger("tests.desk")


def test_a_line_says_when_where_and_by_whom_it_was_written(lines: Lines) -> None:
    log.warning("%d letters", 3)
    (line,) = lines()
    assert line["@timestamp"].endswith("Z")
    assert line["log.level"] == "warning"
    assert line["message"] == line["log"]["original"] == "3 letters"
    assert line["log"]["logger"] == "tests.desk"
    assert line["log"]["origin"]["file"]["name"] == "test_logs.py"
    assert line["log"]["origin"]["function"] == "test_a_line_says_when_where_and_by_whom_it_was_written"
    assert line["service"] == {"name": "desk", "environment": "development"}
    assert {"pid", "name", "thread"} <= line["process"].keys()
    assert "error" not in line
    assert "trace" not in line


def test_dotted_fields_are_nested_and_those_without_a_value_left_out(lines: Lines) -> None:
    log.info("x", extra={"event.action": "a", "event.duration": 5, "service.version": "1", "user.id": None})
    log.info("y")
    first, second = lines()
    assert first["event"] == {"action": "a", "duration": 5}
    assert first["service"]["version"] == "1"
    assert "user" not in first
    assert "version" not in second["service"]


def test_an_exception_is_told_with_its_traceback(lines: Lines) -> None:
    try:
        raise ValueError("no such letter")
    except ValueError:
        log.exception("it broke", extra={"error.code": "NO_SUCH_LETTER"})
    (line,) = lines()
    error = line["error"]
    assert (error["type"], error["message"], error["code"]) == ("ValueError", "no such letter", "NO_SUCH_LETTER")
    assert "test_logs.py" in error["stack_trace"]


def test_a_line_stays_one_line_whatever_it_quotes(lines: Lines) -> None:
    log.info('a "letter"\nwith \u2028 lines', extra={"labels": {1: object()}, "names": ["ä", None]})
    (line,) = lines()
    assert line["message"] == 'a "letter"\nwith \u2028 lines'
    assert line["names"] == ["ä", None]
