"""The benchmark of the transports runs to its end. Measured values are not asserted, because the machine may be busy."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest


@pytest.mark.skipif(find_spec("pygrpc_native") is None, reason="pygrpc-native is not installed")
def test_the_benchmark_of_the_transports_measures_calls_and_streams() -> None:
    command = [sys.executable, "-m", "benchmarks.transport", "--quick", "--json"]
    rows = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)["rows"]
    assert [row["what"] for row in rows] == [
        f"{what}, {at_once} in flight, on native, processor time"
        for what in ("unary call", "stream")
        for at_once in (1, 16)
    ]
    assert all(row["ratio"] for row in rows)
