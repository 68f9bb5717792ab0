"""OpenTelemetry: every process continues the W3C trace context it is given; spans are exported when a collector is named."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from opentelemetry import context, propagate, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

_tracer = trace.get_tracer("storymesh")


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


@contextmanager
def serving(path: str, metadata: Iterable[tuple[str, str | bytes]]) -> Iterator[trace.Span]:
    """The span of a call that is served, in its caller's trace (OpenTelemetry's conventions for gRPC servers).

    Errors are not recorded by themselves: a refused call is no fault of the server's.
    """
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


def _attributes(service: str, method: str) -> dict[str, Any]:
    return {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method}


@contextmanager
def _under(carrier: Mapping[str, str]) -> Iterator[None]:
    token = context.attach(propagate.extract(carrier))
    try:
        yield
    finally:
        context.detach(token)
