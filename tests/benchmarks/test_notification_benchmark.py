"""The notification benchmark runs to its end. Measured values are not asserted, because the machine may be busy."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

RATES = {
    f"{what}, {workers}" for what in ("mails", "mails per processor second") for workers in ("1 worker", "2 workers")
}
TIMES = {f"event to the mail server's consent, p{percent}" for percent in (50, 99)}


@pytest.mark.timeout(300)
def test_the_notification_benchmark_measures_every_quantity() -> None:
    command = [sys.executable, "-m", "benchmarks.notification", "--quick", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert run.returncode == 0, run.stderr
    rows = json.loads(run.stdout)["rows"]
    assert {row["what"] for row in rows} == RATES | TIMES
    assert all(row["measured"] > 0 for row in rows)
    assert all(row["ratio"] or "not installed" in row["beside"] for row in rows if row["what"] in RATES)
