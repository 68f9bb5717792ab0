"""The benchmark of files runs to its end. Measured values are not asserted, because the machine may be busy."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

SERVERS = ("file", "ratelimit", "envoy", "postgres", "redis")
SIZES = ("100 KB", "100 MB")
COMPARED = {
    f"upload of {size}, {quantity}"
    for size in SIZES
    for quantity in ("processor time", "time until it is done", "processor time of SeaweedFS")
} | {"read of a profile, processor time", "reads of a profile", "read of a profile, p99"}
QUANTITIES = COMPARED | {f"upload of {size}, of it in {name}" for size in SIZES for name in SERVERS}


@pytest.mark.timeout(180)
def test_the_benchmark_of_files_measures_every_quantity() -> None:
    command = [sys.executable, "-m", "benchmarks.files", "--quick", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=170, check=False)
    assert run.returncode == 0, run.stderr
    rows = json.loads(run.stdout)["rows"]
    photos = [row for row in rows if row["what"].startswith("photos")]
    assert {row["what"] for row in rows} - {row["what"] for row in photos} == QUANTITIES
    assert len(photos) == 1
    # Within a short round a server may use less than the system's clock of processor time can tell.
    assert all(row["measured"] > 0 for row in rows if "of it in" not in row["what"])
    assert all(row["ratio"] or "not installed" in row["beside"] for row in rows if row["what"] in COMPARED)
