"""Traces, request ids and log lines."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Any

import grpc
import httpx2
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc
from opentelemetry.proto.trace.v1 import trace_pb2
from storymesh.story.v1 import story_service_pb2 as story
from storymesh.story.v1 import story_service_pb2_grpc as story_grpc

from tests.envoy.conftest import Edge, Mesh, free_port, server, until

TRACE = "0af7651916cd43dd8448eb211c80319c"


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """A collector that keeps the spans sent to it."""

    def __init__(self) -> None:
        self.spans: list[trace_pb2.Span] = []

    async def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: Any
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        for resource in request.resource_spans:
            self.spans += [span for scope in resource.scope_spans for span in scope.spans]
        return trace_service_pb2.ExportTraceServiceResponse()


async def test_with_a_collector_the_edge_records_its_spans(
    mesh_with: Callable[..., Awaitable[Edge]], mesh: Mesh
) -> None:
    collector = Collector()
    async with server((trace_service_pb2_grpc.add_TraceServiceServicer_to_server, collector)) as otlp:
        edge = await mesh_with(f"tracing.otlp={otlp}")
        async with httpx2.AsyncClient(base_url=edge.url) as client:

            async def recorded() -> set[str]:
                """Repeat the request until a span arrives, because Envoy drops spans before it is connected to the collector."""
                await client.post("/v1/sessions", json={"login": "ada"})
                await client.get("/v1/stories", params={"access_token": "confidential-token"})
                parents = {call.metadata["traceparent"].split("-")[2] for call in mesh.calls.seen}
                return parents & {span.span_id.hex() for span in collector.spans}

            assert await until(recorded, 20)
    assert all(call.metadata["traceparent"].endswith("-01") for call in mesh.calls.seen)
    urls = {each.value.string_value for span in collector.spans for each in span.attributes if each.key == "http.url"}
    assert urls >= {"/v1/sessions", "/v1/stories"}
    assert not [span for span in collector.spans if b"confidential-token" in span.SerializeToString()]


async def test_spans_are_named_by_what_was_called(
    mesh_with: Callable[..., Awaitable[Edge]], mesh: Mesh, credentials: tuple[tuple[str, str]]
) -> None:
    bearer = dict(credentials)
    limiter = "async envoy.service.ratelimit.v3.RateLimitService.ShouldRateLimit egress"
    keys = "JWT Remote PubKey Fetch"
    collector = Collector()
    async with server((trace_service_pb2_grpc.add_TraceServiceServicer_to_server, collector)) as otlp:
        edge = await mesh_with(f"tracing.otlp={otlp}", "sizes.request_body_bytes=4096")
        async with (
            httpx2.AsyncClient(base_url=edge.url, headers=bearer) as client,
            grpc.aio.insecure_channel(edge.target) as channel,
        ):

            async def call_all() -> None:
                mesh.story.chunks.put_nowait(None)
                await client.post("/v1/sessions", json={"login": "ada"})
                await client.get("/v1/stories/confidential-id", params={"query": "confidential"})
                await client.get("/v1/stories/confidential-id/")
                await client.get("/v1/stories/confidential-id:watch", params={"resume_token": "confidential"})
                await client.get("/docs")
                await client.delete("/v1/stories")
                await client.options("/v1/stories/confidential-id")
                await client.post("/v1/sessions", json={"login": "x" * 5000})
                await client.get("/v1/account", headers={"authorization": "Bearer none"})
                await client.get("/confidential-path")
                await story_grpc.StoryServiceStub(channel).GetStory(
                    story.GetStoryRequest(story_id="s"), metadata=credentials
                )

            async def named() -> bool:
                await call_all()
                return {
                    *(
                        "POST /v1/sessions",
                        "GET /v1/stories/{story_id}",
                        "GET /v1/stories/{story_id}:watch",
                        "GET /docs",
                    ),
                    *("DELETE /v1/stories", "OPTIONS /v1/stories/{story_id}", "GET /v1/account", "GET"),
                    *("storymesh.story.v1.StoryService/GetStory", "storymesh.story.v1.StoryService/WatchStory"),
                    "storymesh.auth.v1.SessionService/CreateSession",
                } == {span.name for span in collector.spans} - {limiter, keys, "GET /health"}

            await until(named, 30)
    by_name = {span.name: {each.key: each.value.string_value for each in span.attributes} for span in collector.spans}
    assert by_name["GET /v1/stories/{story_id}:watch"]["http.route"] == "/v1/stories/{story_id}:watch"
    assert by_name["GET /v1/stories/{story_id}:watch"]["http.method"] == "GET"


async def test_without_a_collector_a_trace_is_passed_on_as_not_recorded(http: httpx2.AsyncClient, mesh: Mesh) -> None:
    await http.post("/v1/sessions", json={"login": "ada"})
    assert mesh.calls.last.metadata["traceparent"].endswith("-00")


async def test_every_request_gets_a_trace_that_the_service_continues(ada: httpx2.AsyncClient, mesh: Mesh) -> None:
    answer = await ada.get("/v1/account")
    trace = answer.headers["x-trace-id"]
    assert re.fullmatch(r"[0-9a-f]{32}", trace)
    assert re.fullmatch(rf"00-{trace}-[0-9a-f]{{16}}-0[01]", mesh.calls.last.metadata["traceparent"])


async def test_the_callers_trace_goes_on(ada: httpx2.AsyncClient, mesh: Mesh) -> None:
    answer = await ada.get("/v1/account", headers={"traceparent": f"00-{TRACE}-b7ad6b7169203331-01"})
    assert answer.headers["x-trace-id"] == TRACE
    continued = mesh.calls.last.metadata["traceparent"]
    assert continued.startswith(f"00-{TRACE}-")
    assert "b7ad6b7169203331" not in continued


_SPAN = "b7ad6b7169203331"


@pytest.mark.parametrize(
    "malformed",
    [
        "garbage",
        "",
        f"00-{TRACE}-{_SPAN}",
        f"00-{TRACE}-{_SPAN}-0g",
        f"00-{TRACE}-{_SPAN}-01-more",
        f"00-{TRACE.upper()}-{_SPAN}-01",
        f"00-{'0' * 32}-{_SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{_SPAN}-01",
        f'00-{TRACE}-{_SPAN}-01", "x',
    ],
)
async def test_a_trace_that_cannot_go_on_gives_way_to_a_new_one(
    ada: httpx2.AsyncClient, mesh: Mesh, malformed: str
) -> None:
    answer = await ada.get("/v1/account", headers={"traceparent": malformed})
    trace = answer.headers["x-trace-id"]
    assert re.fullmatch(r"[0-9a-f]{32}", trace)
    assert trace not in (TRACE, "0" * 32)
    assert re.fullmatch(rf"00-{trace}-[0-9a-f]{{16}}-0[01]", mesh.calls.last.metadata["traceparent"])


async def test_two_traces_at_once_give_way_to_a_new_one(ada: httpx2.AsyncClient, mesh: Mesh) -> None:
    parent = f"00-{TRACE}-{_SPAN}-01"
    answer = await ada.get("/v1/account", headers=[("traceparent", parent), ("traceparent", parent)])
    trace = answer.headers["x-trace-id"]
    assert trace != TRACE
    assert mesh.calls.last.metadata["traceparent"].startswith(f"00-{trace}-")


async def test_no_header_of_the_edges_own_reaches_a_service(ada: httpx2.AsyncClient, mesh: Mesh) -> None:
    await ada.get("/v1/account", headers={"traceparent": f"00-{TRACE}-{_SPAN}-01", "x-storymesh-traceparent": "forged"})
    assert "x-storymesh-traceparent" not in mesh.calls.last.metadata


@pytest.mark.parametrize("path", ["/v1/account", "/v1/nothing", "/health"])
async def test_answers_of_the_edge_itself_carry_the_ids_too(http: httpx2.AsyncClient, path: str) -> None:
    answer = await http.get(path)
    assert re.fullmatch(r"[0-9a-f]{32}", answer.headers["x-trace-id"])
    assert re.fullmatch(r"[0-9a-f-]{36}", answer.headers["x-request-id"])


async def test_a_request_is_one_line_of_json_without_secrets(ada: httpx2.AsyncClient, edge: Edge, mesh: Mesh) -> None:
    mesh.story.chunks.put_nowait(None)
    answer = await ada.get("/v1/stories/s1:watch", params={"resume_token": "confidential-token"})
    trace = answer.headers["x-trace-id"]
    line = (await until(lambda: [line for line in edge.access_lines() if line.get("trace", {}).get("id") == trace]))[0]
    assert line["message"] == "GET /v1/stories/s1:watch 200"
    assert line["url"] == {"path": "/v1/stories/s1:watch"}
    assert line["http"]["request"]["method"] == "GET"
    assert line["http"]["request"]["id"] == answer.headers["x-request-id"]
    assert line["http"]["response"]["status_code"] == 200
    assert line["rpc"]["method"] == "storymesh.story.v1.StoryService/WatchStory"
    assert line["user"] == {"id": "ada"}
    assert line["client"] == {"ip": "127.0.0.1"}
    assert line["service"] == {"name": "edge"}
    assert line["event"]["duration"] > 0
    log = edge.log.read_text()
    assert "confidential-token" not in log
    assert ada.headers["authorization"].removeprefix("Bearer ") not in log


async def test_prometheus_reaches_the_statistics_and_nothing_else_of_the_admin_interface(
    mesh_with: Callable[..., Awaitable[Edge]],
) -> None:
    address = f"127.0.0.1:{free_port()}"
    edge = await mesh_with(f"statistics={address}")
    async with httpx2.AsyncClient(base_url=f"http://{address}") as prometheus:
        await prometheus.get(f"{edge.url}/health")
        shown = await prometheus.get("/stats/prometheus")
        assert (shown.status_code, shown.headers["content-type"]) == (200, "text/plain; charset=UTF-8")
        assert re.search(
            r'^envoy_http_downstream_rq_total\{envoy_http_conn_manager_prefix="edge"\} [1-9]', shown.text, re.M
        )
        assert (await prometheus.get("/stats/prometheus?usedonly")).status_code == 200
        for method, path in (
            *(
                ("GET", path)
                for path in ("/", "/stats", "/ready", "/config_dump", "/server_info", "/quitquitquit", "/memory")
            ),
            *(
                ("GET", path)
                for path in ("/stats/prometheus/../../config_dump", "/stats/prometheus/", "/stats/prometheus%2f..")
            ),
            *(
                ("POST", path)
                for path in ("/stats/prometheus", "/quitquitquit", "/logging?level=debug", "/drain_listeners")
            ),
        ):
            assert (await prometheus.request(method, path)).status_code == 404, (method, path)
        assert (await prometheus.get(f"{edge.url}/health")).status_code == 200
