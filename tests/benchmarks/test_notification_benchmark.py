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

WATCHES = {
    f"40 watch {people}: {what}"
    for people in ("1 person", "2 people")
    for what in (
        "memory each",
        "change to watcher, p50",
        "change to watcher, p99",
        "resume, p50",
        "resume, p99",
    )
}


@pytest.mark.timeout(300)
def test_the_notification_benchmark_measures_every_quantity() -> None:
    command = [sys.executable, "-m", "benchmarks.notification", "--quick", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert run.returncode == 0, run.stderr
    rows = json.loads(run.stdout)["rows"]
    assert {row["what"] for row in rows} == RATES | TIMES | WATCHES
    # Watchers may fit into memory that the process already has, so the measured growth can be 0.
    assert all(row["measured"] > 0 for row in rows if not row["what"].endswith("memory each"))
    assert all(row["ratio"] or "not installed" in row["beside"] for row in rows if row["what"] in RATES)
