"""OpenTelemetry: every process continues the W3C trace context it is given; spans are exported when a collector is named."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from opentelemetry import context, propagate, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator

_tracer = trace.get_tracer("storymesh")

_UNSAMPLED = re.compile("00-([0-9a-f]{32})-(?!0{16})[0-9a-f]{16}-00")
"""A traceparent of a trace that is not sampled (W3C Trace Context, 3.2)."""

_NOT_SAMPLED = trace.TraceFlags(trace.TraceFlags.DEFAULT)
_FURTHER_CONTEXT = ("tracestate", "baggage")
_ids = RandomIdGenerator()


class _Provider(TracerProvider):
    """A provider that can tell whether its spans go anywhere."""

    exports = False

    def add_span_processor(self, span_processor: SpanProcessor) -> None:
        self.exports = True
        super().add_span_processor(span_processor)


def configure(service: str, otlp_endpoint: str) -> TracerProvider:
    """Once per process. Shut the provider down at the end, so that the last spans are sent."""
    provider = _Provider(resource=Resource.create({"service.name": service}))
    if otlp_endpoint:
        provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(otlp_endpoint, insecure=True)))
    trace.set_tracer_provider(provider)
    return provider


def traceparent() -> str:
    """The current trace context as a W3C header value, empty outside a trace."""
    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    return carrier.get("traceparent", "")


def trace_id() -> str:
    """The current trace's id as 32 hexadecimal digits, empty outside a trace."""
    span = trace.get_current_span().get_span_context()
    return trace.format_trace_id(span.trace_id) if span.is_valid else ""


@contextmanager
def continued(parent: str, name: str) -> Iterator[None]:
    """A span in the trace that an event carries, so that a story's mail belongs to the request that asked for it."""
    with _under({"traceparent": parent}), _tracer.start_as_current_span(name, kind=trace.SpanKind.CONSUMER):
        yield


class serving:  # noqa: N801  # reads as a function does; generators would take longer than all that happens here
    """The span of a call that is served, in its caller's trace (OpenTelemetry's conventions for gRPC servers).

    Errors are not recorded by themselves: a refused call is no fault of the server's. In a trace that its beginning did not sample,
    the span only hands the context on, for the lines of the log and for further calls, at a sixth of the price.
    """

    __slots__ = ("_metadata", "_path", "_recorded", "_token")

    def __init__(self, path: str, metadata: Iterable[tuple[str, str | bytes]]) -> None:
        self._path = path
        self._metadata = metadata

    def __enter__(self) -> trace.Span:
        unsampled = _unsampled(self._metadata)
        if unsampled is None:
            self._token = None
            self._recorded = _recorded(self._path, self._metadata)
            return self._recorded.__enter__()
        self._token = context.attach(trace.set_span_in_context(unsampled))
        return unsampled

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._token is None:
            self._recorded.__exit__(kind, error, traceback)
        else:
            context.detach(self._token)


@contextmanager
def _recorded(path: str, metadata: Iterable[tuple[str, str | bytes]]) -> Iterator[trace.Span]:
    service, _, method = path.lstrip("/").partition("/")
    with (
        _under({name: value for name, value in metadata if isinstance(value, str)}),
        _tracer.start_as_current_span(
            f"{service}/{method}",
            kind=trace.SpanKind.SERVER,
            attributes=_attributes(service, method),
            record_exception=False,
            set_status_on_exception=False,
        ) as span,
    ):
        yield span


def _unsampled(metadata: Iterable[tuple[str, str | bytes]]) -> trace.Span | None:
    """The span of a call in a trace that is not sampled, as OpenTelemetry would make it; None for any other call."""
    found = None
    for name, value in metadata:
        if name == "traceparent":
            found = _UNSAMPLED.fullmatch(value) if isinstance(value, str) else None
            if found is None:
                return None
        elif value and name in _FURTHER_CONTEXT:
            # Envoy sends an empty `tracestate` with each traceparent of its own.
            return None
    if found is None:
        return None
    trace_id = int(found[1], 16)
    if not trace_id:
        return None
    span_id = _ids.generate_span_id()
    return trace.NonRecordingSpan(trace.SpanContext(trace_id, span_id, is_remote=False, trace_flags=_NOT_SAMPLED))


def exports() -> bool:
    """Whether spans are exported. Where they are not, a call too short to be worth one need not make it."""
    provider = trace.get_tracer_provider()
    return not isinstance(provider, _Provider) or provider.exports


def served(path: str, metadata: Iterable[tuple[str, str | bytes]], *, began: int, code: int) -> None:
    """Record the span of a call that has just been answered with this status code; `began` is in nanoseconds since 1970.

    For calls that are answered together, which cannot each be the current span meanwhile.
    """
    service, _, method = path.lstrip("/").partition("/")
    parent = propagate.extract({name: value for name, value in metadata if isinstance(value, str)})
    attributes = _attributes(service, method) | {"rpc.grpc.status_code": code}
    _tracer.start_span(
        f"{service}/{method}", parent, kind=trace.SpanKind.SERVER, attributes=attributes, start_time=began
    ).end()


def consumed(parent: str, name: str, *, began: int) -> None:
    """Record the span of an event that has just been handled with others, in the trace that it carries. `began` as in `served`."""
    extracted = propagate.extract({"traceparent": parent})
    _tracer.start_span(name, extracted, kind=trace.SpanKind.CONSUMER, start_time=began).end()


def _attributes(service: str, method: str) -> dict[str, Any]:
    return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}


@contextmanager
def _under(carrier: Mapping[str, str]) -> Iterator[None]:
    token = context.attach(propagate.extract(carrier))
    try:
        yield
    finally:
        context.detach(token)
