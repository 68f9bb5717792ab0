"""The auth benchmark runs to its end. Measured values are not asserted, because the machine may be busy."""

from __future__ import annotations

import json
import subprocess
import sys

QUANTITIES = {
    "sign-ins by password",
    "sign-in, p50",
    "sign-in, p99",
    "refreshes",
    "refresh, p50",
    "refresh, p99",
    "access token, whole check",
    "access token, seen before",
    "... of it, asking for revocations",
    "GetAccount in a flood, p99",
    "GetJwks in a flood, p99",
}


def test_the_auth_benchmark_measures_every_quantity_and_names_the_machine() -> None:
    command = [sys.executable, "-m", "benchmarks.auth", "--quick", "--json"]
    run = subprocess.run(command, capture_output=True, text=True, timeout=110, check=False)
    assert run.returncode == 0, run.stderr
    document = json.loads(run.stdout)
    assert {row["what"] for row in document["rows"]} == QUANTITIES
    assert all(row["measured"] > 0 for row in document["rows"])
    assert all(row["ratio"] > 0 for row in document["rows"] if row["goal"])
    assert document["machine"]["cores"] >= 1
    assert "sign-ins came" in " ".join(document["notes"])
