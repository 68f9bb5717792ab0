"""The pipeline benchmark runs to its end. Measured values are not asserted, because the machine may be busy."""

from __future__ import annotations

import json
import re
import subprocess
import sys

import pytest

ALONE = {"no-op jobs, inbox alone", "no-op events, durable", "no-op events, recorded"}
JOBS = ALONE | {f"{job}, for each second of processor time" for job in ALONE} | {"whole stories, durable"}
PEERS = ("Celery", "taskiq", "arq")
QUANTITIES = {
    "request to first words by SSE, p50",
    "request to first words by SSE, p99",
    "recovery after SIGKILL, lease 1.5 s, p50",
    *(
        f"40 watch {stories}: {quantity}"
        for stories in ("1 story", "10 stories")
        for quantity in ("memory each", "delivery, p50", "delivery, p99", "resume, p50", "resume, p99")
    ),
}


@pytest.mark.timeout(300)
def test_the_pipeline_benchmark_measures_every_quantity_and_names_the_machine() -> None:
    command = [sys.executable, "-m", "benchmarks.pipeline", "--quick", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    assert run.returncode == 0, run.stderr
    document = json.loads(run.stdout)
    rows = document["rows"]
    assert {row["what"] for row in rows} == JOBS | QUANTITIES
    # Each job is compared with each of the job queues, or the row says that the queue is not installed.
    beside = {(row["what"], row["beside"].partition(" ")[0]) for row in rows if row["what"] in JOBS}
    assert beside == {(job, peer) for job in JOBS for peer in PEERS}
    assert all(row["ratio"] or "not installed" in row["beside"] for row in rows if row["goal"] or row["what"] in JOBS)
    # Watchers may fit into memory that the process already has, so the measured growth can be 0.
    assert all(row["measured"] > 0 for row in rows if not row["what"].endswith("memory each"))
    assert document["machine"]["cores"] >= 1
    assert re.findall(r"(\d+) lost", " ".join(document["notes"])) == ["0", "0"]
