"""Tracing: a request is one trace through every process that it passes."""

from __future__ import annotations

import contextlib
import io
from uuid import uuid4

import httpx2
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from local.failures import LocalError
from local.harness import RunningMesh
from local.terminal.logs import Selection, show
from tests.system.collector import Collector
from tests.system.conftest import registered
from tests.waiting import until

CHECK = "envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"
GET_ACCOUNT = "storymesh.auth.v1.AccountService/GetAccount"


async def test_a_request_its_rate_limit_check_and_its_call_are_one_trace(
    mesh: RunningMesh, http: httpx2.AsyncClient, collector: Collector
) -> None:
    person = await registered(mesh, http)
    trace_id = uuid4()

    def span(service: str, name: str) -> Span | None:
        spans = (span for span in collector.spans(service) if span.trace_id == trace_id.bytes)
        return next((span for span in spans if name in span.name), None)

    traceparent = f"00-{trace_id.hex}-b7ad6b7169203331-01"
    assert (await http.get("/v1/account", headers={**person.auth, "traceparent": traceparent})).status_code == 200
    check = await until(lambda: span("ratelimit-serve", CHECK))
    call = await until(lambda: span("auth-serve", GET_ACCOUNT))
    assert check
    assert call
    for each in (check, call):
        assert each.kind == Span.SPAN_KIND_SERVER
        assert {attribute.key: attribute.value.int_value for attribute in each.attributes}["rpc.grpc.status_code"] == 0
    parents = {check.parent_span_id, call.parent_span_id}
    await until(lambda: parents <= {each.span_id for each in collector.spans("edge")})
    assert await until(lambda: span("edge", "GET /v1/account"))
    assert {each.name for each in collector.spans("edge") if each.span_id == call.parent_span_id} == {GET_ACCOUNT}


async def test_the_logs_show_one_trace_from_the_edge_to_the_service(
    mesh: RunningMesh, http: httpx2.AsyncClient
) -> None:
    answer = await http.get("/.well-known/jwks.json")

    def shown() -> str:
        output = io.StringIO()
        with contextlib.suppress(LocalError):
            show(mesh.layout, Selection(trace=answer.headers["x-trace-id"]), as_json=False, follow=False, output=output)
        return output.getvalue()

    # Envoy writes its lines once a second.
    await until(lambda: {line.split()[2] for line in shown().splitlines()} >= {"envoy", "auth"})
