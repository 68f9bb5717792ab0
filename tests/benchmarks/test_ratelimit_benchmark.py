"""The rate limiter's benchmark runs to its end. Measured values are not asserted, because the machine may be busy."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

QUANTITIES = {
    *(
        f"{in_flight} in flight: {what}"
        for in_flight in (1, 16, 64, 256)
        for what in ("checks", "p99", "processor time a check", "... in Redis", "... in the generator")
    ),
    "requests through Envoy, ours",
    "requests through Envoy, quotas",
}
COMMAND = [sys.executable, "-m", "benchmarks.ratelimit", "--quick", "--json"]


def measured(environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        COMMAND, capture_output=True, text=True, timeout=110, check=False, env=os.environ | environment
    )


@pytest.mark.skipif(shutil.which("h2load") is None, reason="h2load is not installed")
def test_the_ratelimit_benchmark_measures_every_quantity_without_the_peer(tmp_path: Path) -> None:
    run = measured({"VENV": str(tmp_path)})
    assert run.returncode == 0, run.stderr
    document = json.loads(run.stdout)
    assert {row["what"] for row in document["rows"]} == QUANTITIES
    assert all(
        row["measured"] > 0 for row in document["rows"] if "in flight" not in row["what"] or "..." not in row["what"]
    )
    assert {row["beside"] for row in document["rows"] if row["goal"]} == {
        "envoyproxy/ratelimit (not built: Go is not installed)",
        "no limit",
    }


def test_the_ratelimit_benchmark_says_what_it_needs(tmp_path: Path) -> None:
    run = measured({"VENV": str(tmp_path), "PATH": str(tmp_path)})
    assert run.returncode == 1
    assert "needs h2load" in run.stderr
