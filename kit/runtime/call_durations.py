"""The histogram of how long calls took, read as Prometheus text.

Of our own making, because every call records into it and OpenTelemetry's takes more than ten times as long. The name, the unit and
the attributes are those of OpenTelemetry's conventions for RPC.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterator
from itertools import accumulate

from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0, 600.0)
_BOUNDS = (*map(str, _SECONDS), "+Inf")


class CallDurations(Collector):
    """Written by the event loop and by the thread that refuses calls, and read by others.

    The interpreter changes threads at calls and at the ends of loops alone, so never within a step that changes a number.
    """

    def __init__(self) -> None:
        self._counts: dict[tuple[str, str], list[int]] = {}
        self._sums: dict[tuple[str, str], float] = {}

    def record(self, method: str, status: str, seconds: float) -> None:
        """Counts a call of a method, `package.Service/Method`, that ended with a status."""
        key = method, status
        counts = self._counts.get(key)
        if counts is None:
            self._sums.setdefault(key, 0.0)
            counts = self._counts.setdefault(key, [0] * len(_BOUNDS))
        counts[bisect_left(_SECONDS, seconds)] += 1
        self._sums[key] += seconds

    def collect(self) -> Iterator[HistogramMetricFamily]:
        family = HistogramMetricFamily(
            "rpc_server_call_duration_seconds",
            "How long calls took, a stream from its beginning to its end.",
            labels=["rpc_method", "rpc_response_status_code", "rpc_system_name"],
        )
        for (method, status), counts in list(self._counts.items()):
            buckets = list(zip(_BOUNDS, accumulate(list(counts)), strict=True))
            family.add_metric([method, status, "grpc"], buckets, self._sums[method, status])
        yield family
