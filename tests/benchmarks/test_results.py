"""The page of all results says what is missed, and shows every figure."""

from __future__ import annotations

import json
import subprocess
import sys

from benchmarks.machine import Machine
from benchmarks.report import Row, as_json
from benchmarks.results import Results, as_markdown, reached

MACHINE = Machine("A processor", 2, "3.11.7", 0.25)
ROWS = (
    Row("checks", 150.0, "/s", "another limiter", 100.0, ">= 2"),
    Row("checks, p99", 3.0, "ms", "another limiter", 6.0, "< 1"),
    Row("memory each", 50.0, "KiB"),
    Row("jobs", 5.0, "/s", "a queue (not installed)", None, ">= 1"),
)


def results(*rows: Row) -> Results:
    return Results.parse("limiter", json.loads(as_json(MACHINE, rows, ["A note."])))


def test_the_page_lists_each_missed_goal_before_the_table() -> None:
    page = as_markdown([results(*ROWS)], "chart.svg")
    head, _, table = page.partition("| Benchmark |")
    assert "- limiter: checks (beside another limiter): 1.50, goal >= 2" in head
    assert head.count("\n- ") == 1
    assert "| limiter | checks | 150 /s | another limiter | 100 /s | 1.50 | **>= 2, missed** |" in table
    assert "| limiter | checks, p99 | 3.00 ms | another limiter | 6.00 ms | 0.50 | < 1, met |" in table
    assert "| limiter | memory each | 50.0 KiB |  |  |  |  |" in table


def test_the_page_says_so_when_every_goal_is_reached() -> None:
    assert "Every goal is reached." in as_markdown([results(ROWS[1])], "")


def test_the_page_names_the_machine_and_its_load() -> None:
    assert "A processor, 2 cores, Python 3.11.7. Load average before each: 0.2 (limiter)" in as_markdown(
        [results()], ""
    )


def test_a_page_without_a_chart_shows_none() -> None:
    assert "](chart.svg)" in as_markdown([results(*ROWS)], "chart.svg")
    assert "![" not in as_markdown([results(*ROWS)], "")


def test_the_part_of_a_goal_that_is_reached_is_greater_when_more_is_reached_whatever_the_goals_direction() -> None:
    assert reached([results(*ROWS)]) == [
        ("limiter: checks (beside another limiter)", 0.75),
        ("limiter: checks, p99 (beside another limiter)", 2.0),
    ]


def test_an_unknown_benchmark_is_refused_with_the_names_of_those_that_there_are() -> None:
    command = [sys.executable, "-m", "benchmarks", "speed"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert run.returncode == 2
    assert "no benchmark is named speed; there are auth, " in run.stderr
