"""The benchmark of the edge runs to its end. Measured values are not asserted, because the machine may be busy."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

SERVERS = ("story", "ratelimit", "envoy", "postgres", "redis")
COMPARED = {
    f"{what} a story, {quantity}"
    for what in ("GET", "POST")
    for quantity in ("processor time", "requests", "p50", "p99")
}
QUANTITIES = COMPARED | {
    *(f"{what} a story, of it in {server}" for what in ("GET", "POST") for server in SERVERS),
    "Envoy's own answer (/health), processor time",
    "Envoy's own answer (/health), requests",
    "GET without the limits, processor time",
    "GET without the limits, requests",
    "GET by quotas, processor time",
    "GET by quotas, of it in envoy",
    "GET by quotas, requests",
}


@pytest.mark.timeout(180)
def test_the_benchmark_of_the_edge_measures_every_quantity() -> None:
    rows = _rows()
    assert {row["what"] for row in rows} == QUANTITIES
    # Within a short round a server may use less than the system's clock of processor time can tell.
    assert all(row["measured"] > 0 for row in rows if "of it in" not in row["what"])
    assert all(row["ratio"] or "not installed" in row["beside"] for row in rows if row["what"] in COMPARED)


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_the_edge_answers_with_each_of_its_parts_left_out() -> None:
    parts = [row for row in _rows("--parts") if row["what"].startswith("Envoy's part of a GET")]
    assert "Envoy's part of a GET, without nothing" in {row["what"] for row in parts}
    assert all(row["measured"] > 0 for row in parts)


def _rows(*arguments: str) -> list[dict[str, Any]]:
    command = [sys.executable, "-m", "benchmarks.edge", "--quick", "--json", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    assert run.returncode == 0, run.stderr
    rows: list[dict[str, Any]] = json.loads(run.stdout)["rows"]
    return rows
