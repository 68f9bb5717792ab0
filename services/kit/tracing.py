"""OpenTelemetry: every process continues the W3C trace context it is given; spans are exported when a collector is named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from opentelemetry import context, propagate, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

_tracer = trace.get_tracer("storymesh")


def configure(service: str, otlp_endpoint: str) -> TracerProvider:
    """Once per process. Shut the provider down at the end, so that the last spans are sent."""
    provider = TracerProvider(resource=Resource.create({"service.name": service}))
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
    token = context.attach(propagate.extract({"traceparent": parent}))
    try:
        with _tracer.start_as_current_span(name, kind=trace.SpanKind.CONSUMER):
            yield
    finally:
        context.detach(token)
