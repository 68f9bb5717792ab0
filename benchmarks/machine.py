"""Describes the machine that a table was measured on, without identifying it."""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

_CPU_INFO = Path("/proc/cpuinfo")


@dataclass(frozen=True)
class Machine:
    """The machine without host name or paths, because tables are published."""

    cpu: str
    cores: int
    python: str
    load: float
    """Load average of the minute before the run. Well above 0, other processes shared the processors."""

    def __str__(self) -> str:
        return f"{self.cpu}, {self.cores} cores, Python {self.python}, load {self.load:.1f} before the run"


def this_machine() -> Machine:
    return Machine(_cpu(), usable_cores(), platform.python_version(), os.getloadavg()[0])


def usable_cores() -> int:
    """Number of cores that this process may run on; all of them on macOS, which has no affinity."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_seconds(pids: Iterable[int]) -> float:
    """Processor time in seconds that the processes and their children have used, ended children included."""
    total = 0.0
    for pid in pids:
        process = psutil.Process(pid)
        total += _used(process)
        for child in process.children(recursive=True):
            # Postgres's helpers come and go. What an ended one used is in its parent's time.
            with suppress(psutil.NoSuchProcess):
                total += _used(child)
    return total


def _used(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)


def stolen_seconds() -> float:
    """Steal time in seconds since the start of this virtual machine; 0 where the system does not report it."""
    return float(getattr(psutil.cpu_times(), "steal", 0.0))


def percentile(samples: Iterable[float], percent: int) -> float:
    """A percentile of the samples, interpolated between neighbours."""
    return statistics.quantiles(samples, n=100, method="inclusive")[percent - 1]


def _cpu() -> str:
    if _CPU_INFO.exists():
        for line in _CPU_INFO.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
