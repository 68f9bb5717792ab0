"""Measures what tests cost: processor seconds of the test process and of every process that it began.

A pytest plugin: `make test-times`, or `pytest -p tests.cost PATH`. Processor time is measured instead of wall time, because it
hardly depends on what else the machine does.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Generator, Iterator
from operator import itemgetter
from pathlib import Path
from uuid import uuid4

import pytest

_PROPERTY = "processor_seconds"
_MARK = "MEASURED_TEST_RUN"
_TICKS = os.sysconf("SC_CLK_TCK")
_LONGEST = 40


class ProcessTree:
    """The processor time of this process and of all its descendants, including detached ones."""

    def __init__(self) -> None:
        self._mark = f"{_MARK}={uuid4().hex}".encode()
        os.environ[_MARK] = self._mark.decode().partition("=")[2]
        self._known: dict[tuple[int, bytes], bool] = {}
        self._spent: dict[tuple[int, bytes], tuple[int, float]] = {}
        self._lost = 0.0

    def seconds(self) -> float:
        """Return the processor seconds since this process began."""
        stats = dict(self._stats())
        parents = {pid: parent for (pid, _), (parent, _) in stats.items()}
        now = {key: stat for key, stat in stats.items() if self._is_ours(key, parents)}
        for key in self._spent.keys() - now.keys():
            # A process that ended is counted by its parent, which waited for it; init counts for nobody.
            parent, spent = self._spent[key]
            if parent == 1:
                self._lost += spent
        self._spent = now
        return self._lost + sum(spent for _, spent in now.values())

    def _stats(self) -> Iterator[tuple[tuple[int, bytes], tuple[int, float]]]:
        """Yield for each process its id and start, its parent, and the seconds that it and its ended children have used."""
        for name in os.listdir("/proc"):
            if name.isdecimal():
                try:
                    fields = Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()
                except OSError:
                    continue  # has ended
                yield (int(name), fields[19]), (int(fields[1]), sum(map(int, fields[11:15])) / _TICKS)

    def _is_ours(self, key: tuple[int, bytes], parents: dict[int, int]) -> bool:
        if key not in self._known:
            self._known[key] = self._descends(key[0], parents) or self._is_marked(key)
        return self._known[key]

    def _descends(self, pid: int, parents: dict[int, int]) -> bool:
        while pid > 1:
            if pid == os.getpid():
                return True
            pid = parents.get(pid, 0)
        return False

    def _is_marked(self, key: tuple[int, bytes]) -> bool:
        try:
            return self._mark in Path(f"/proc/{key[0]}/environ").read_bytes().split(b"\0")
        except OSError:
            return False


class Cost:
    def __init__(self) -> None:
        self._tree = ProcessTree()
        self._before = self._tree.seconds()
        self._tests: dict[str, float] = defaultdict(float)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        report = yield
        if call.when == "teardown":
            now = self._tree.seconds()
            report.user_properties.append((_PROPERTY, now - self._before))
            self._before = now
        return report

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        for name, value in report.user_properties:
            if name == _PROPERTY and report.when == "teardown":
                assert isinstance(value, float)
                self._tests[report.nodeid.partition("@")[0]] += value

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        files: dict[str, float] = defaultdict(float)
        for test, seconds in self._tests.items():
            files[test.partition("::")[0]] += seconds
        for title, spent in (("files", files), ("tests", self._tests)):
            terminalreporter.section(f"processor seconds of {title}: {sum(spent.values()):.0f} s altogether")
            for name, seconds in sorted(spent.items(), key=itemgetter(1), reverse=True)[:_LONGEST]:
                terminalreporter.write_line(f"{seconds:8.2f}  {name}")


def pytest_configure(config: pytest.Config) -> None:
    config.pluginmanager.register(Cost(), "cost")
