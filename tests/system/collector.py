"""An OpenTelemetry collector to which the mesh exports its spans."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2 as pb
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from opentelemetry.proto.trace.v1.trace_pb2 import Span


@dataclass
class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Collects exports in threads of its own."""

    endpoint: str = ""
    exports: list[pb.ExportTraceServiceRequest] = field(default_factory=list)

    def Export(
        self, request: pb.ExportTraceServiceRequest, context: grpc.ServicerContext
    ) -> pb.ExportTraceServiceResponse:
        self.exports.append(request)
        return pb.ExportTraceServiceResponse()

    def spans(self, service: str) -> list[Span]:
        """Return all spans that a service has exported."""
        return [
            span
            for export in tuple(self.exports)
            for resource in export.resource_spans
            if any(
                each.key == "service.name" and each.value.string_value == service
                for each in resource.resource.attributes
            )
            for scope in resource.scope_spans
            for span in scope.spans
        ]


@contextmanager
def collecting() -> Iterator[Collector]:
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(max_workers=2))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)  # type: ignore[no-untyped-call]
    collector.endpoint = f"http://127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    try:
        yield collector
    finally:
        server.stop(grace=None).wait()
