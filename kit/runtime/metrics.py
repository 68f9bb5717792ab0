"""The numbers of one process, for operators: counted with OpenTelemetry, read as Prometheus text.

No label ever names a person, a session or an address: numbers are kept longer and read by more people than anything else.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager

from opentelemetry.exporter.prometheus import PrometheusMetricReader
from opentelemetry.metrics import CallbackOptions, Meter, Observation
from opentelemetry.sdk.metrics import AlwaysOffExemplarFilter, MeterProvider
from opentelemetry.sdk.resources import Resource
from prometheus_client import CollectorRegistry, ProcessCollector, start_http_server

from kit.errors import RevocationsUnknown, SessionRevoked

from .call_durations import CallDurations

log = logging.getLogger(__name__)

_REFUSALS = (SessionRevoked.reason, RevocationsUnknown.reason)


class Metrics:
    """Counts from the beginning, whether somebody reads or not."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        ProcessCollector(registry=self._registry)
        # Prometheus itself knows which process it reads, so neither the resource nor the scope needs to be a label.
        reader = PrometheusMetricReader(disable_target_info=True, scope_info_enabled=False, registry=self._registry)
        self._provider = MeterProvider(
            [reader],
            resource=Resource.get_empty(),
            # The text has no place for examples, so none are looked for.
            exemplar_filter=AlwaysOffExemplarFilter(),
            shutdown_on_exit=False,
        )
        self.meter: Meter = self._provider.get_meter("storymesh")
        self._durations = CallDurations()
        self._registry.register(self._durations)
        self._refusals = self.meter.create_counter(
            "storymesh_calls_refused", description="Calls refused, and streams ended, because of a revocation."
        )
        for reason in _REFUSALS:
            # A counter that first appears with a 1 shows no increase.
            self._refusals.add(0, {"reason": reason})

    def called(self, path: str, status: str, seconds: float, reason: str | None) -> None:
        """Counts a call that has ended. `path` is one of our methods', never what a client made up."""
        self._durations.record(path.removeprefix("/"), status, seconds)
        if reason in _REFUSALS:
            self._refusals.add(1, {"reason": reason})

    def gauge(self, name: str, description: str, value: Callable[[], float], *, unit: str = "") -> None:
        """Shows what `value` returns at each reading; it is called from the reader's thread."""

        def observe(_options: CallbackOptions) -> Iterable[Observation]:
            return [Observation(value())]

        self.meter.create_observable_gauge(name, [observe], unit=unit, description=description)

    @asynccontextmanager
    async def exposed(self, listen: str) -> AsyncIterator[str]:
        """Answers HTTP at the address as long as the context is open, from threads of its own; nowhere when it is empty.

        Yields the URL. Raises OSError when the address is taken. Who can reach it can read it, so it belongs on loopback or an
        internal network.
        """
        if not listen:
            yield ""
            return
        host, _, port = listen.rpartition(":")
        try:
            server, thread = await asyncio.to_thread(start_http_server, int(port), host.strip("[]"), self._registry)
        except OSError as error:
            raise OSError(
                f"metrics cannot be served on {listen}: {error.strerror or error}; "
                "end the process that listens there or set STORYMESH_METRICS_LISTEN"
            ) from None
        url = f"http://{host}:{server.server_port}/metrics"
        log.info("metrics are served on %s", url)
        try:
            yield url
        finally:
            await asyncio.to_thread(server.shutdown)
            server.server_close()
            await asyncio.to_thread(thread.join)
