"""Reads of one person's profile by another, over several connections."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field

from benchmarks.edge import load
from benchmarks.machine import percentile

_CONNECTIONS = 16


@dataclass
class Reads:
    """Reads at one port, and the processes whose processor time they cost."""

    port: int
    used: Mapping[str, Callable[[], float]]
    """Processor seconds by process."""

    milliseconds: list[float] = field(default_factory=list)
    """Processor time of a read, of each round."""
    rates: list[float] = field(default_factory=list)
    latencies: list[float] = field(default_factory=list)

    @property
    def cost(self) -> float:
        return statistics.median(self.milliseconds)

    @property
    def rate(self) -> float:
        return statistics.median(self.rates)

    @property
    def p99(self) -> float:
        """In ms."""
        return 1000 * percentile(self.latencies, 99)

    async def warm(self, clients: ProcessPoolExecutor, path: str, token: str) -> None:
        await self._seen(clients, path, token, 0.5)

    async def round(self, clients: ProcessPoolExecutor, path: str, token: str, seconds: float) -> None:
        before = sum(clock() for clock in self.used.values())
        seen = await self._seen(clients, path, token, seconds)
        spent = sum(clock() for clock in self.used.values()) - before
        self.milliseconds.append(1000 * spent / len(seen.latencies))
        self.rates.append(seen.rate)
        self.latencies += seen.latencies

    async def _seen(self, clients: ProcessPoolExecutor, path: str, token: str, seconds: float) -> load.Seen:
        seen = await asyncio.get_running_loop().run_in_executor(
            clients, load.closed_loop, self.port, [load.get(path, token)], _CONNECTIONS, seconds
        )
        if seen.statuses.keys() != {200}:
            raise RuntimeError(f"not every read was answered with 200: {seen.statuses}")
        return seen
