"""Pages that people open by a link: HTML as the service wrote it, refusals as pages, the link's secret in no log and no trace."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import re
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import httpx2
import pytest
from foreign import rls_pb2
from google.api.httpbody_pb2 import HttpBody
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2_grpc
from storymesh.story.v1 import story_link_service_pb2 as links
from storymesh.story.v1 import story_link_service_pb2_grpc as links_grpc

from tests.envoy.conftest import Edge, Mesh, server, until
from tests.envoy.test_observability import Collector
from tests.envoy.upstreams import Context

TOKEN = "SecretSecretSecretSecretSecretSecretSecret1"
PAGE = "<!doctype html><title>Grüße</title>".encode()
REFUSALS = {
    code_pb2.NOT_FOUND: (404, "This link does not work"),
    code_pb2.INVALID_ARGUMENT: (400, "This link does not work"),
    code_pb2.UNAVAILABLE: (503, "Not at the moment"),
    code_pb2.INTERNAL: (500, "Not at the moment"),
    code_pb2.RESOURCE_EXHAUSTED: (429, "Too many visits at once"),
    code_pb2.PERMISSION_DENIED: (403, "This page cannot be shown"),
}


async def shown(request: links.GetStoryPageRequest, _context: Context) -> links.GetStoryPageResponse:
    return links.GetStoryPageResponse(page=HttpBody(content_type="text/html; charset=utf-8", data=PAGE))


@pytest.fixture(autouse=True)
def _page(mesh: Mesh, _nothing_happened_yet: None) -> None:
    mesh.calls.instead["GetStoryPage"] = shown


def refusing(code: code_pb2.Code) -> Callable[[Any, Context], Any]:
    async def refuse(_request: object, context: Context) -> None:
        info = any_pb2.Any()
        info.Pack(error_details_pb2.ErrorInfo(reason="SOME_REASON", domain="storymesh"))
        status = status_pb2.Status(code=code, message="for developers", details=[info])
        await context.abort_with_status(rpc_status.to_status(status))

    return refuse


def assert_a_page_of_its_own(answer: httpx2.Response) -> None:
    """Assert what holds for every answer at a path of pages: HTML that runs nothing, stays nowhere and tells nobody its address."""
    headers = answer.headers
    assert headers["content-type"] == "text/html; charset=utf-8"
    policy = dict(each.strip().partition(" ")[::2] for each in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == policy["base-uri"] == policy["frame-ancestors"] == "'none'"
    assert policy.keys() <= {"default-src", "style-src", "form-action", "base-uri", "frame-ancestors"}
    assert headers.get_list("cache-control") == ["private, no-store"]
    assert {"noindex", "nofollow"} <= set(re.split(r",\s*", headers["x-robots-tag"]))
    assert headers["referrer-policy"] == "no-referrer"
    assert headers.get_list("x-content-type-options") == ["nosniff"]
    for style in re.findall(r"<style>(.*?)</style>", answer.text, re.DOTALL):
        digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
        assert policy["style-src"] == f"'sha256-{digest}'"
    assert "<script" not in answer.text


async def test_a_page_is_the_services_own_html_with_the_headers_of_a_secret_page(
    http: httpx2.AsyncClient, mesh: Mesh
) -> None:
    answer = await http.get(f"/s/{TOKEN}")
    assert (answer.status_code, answer.content) == (200, PAGE)
    assert_a_page_of_its_own(answer)
    assert mesh.calls.last.request.token == TOKEN
    assert [dict(each)["class"] for each in mesh.limiter.descriptors] == ["page"]


async def test_nobody_has_to_sign_in_and_an_invalid_token_in_a_header_does_not_matter(http: httpx2.AsyncClient) -> None:
    answer = await http.get(f"/s/{TOKEN}", headers={"authorization": "Bearer none"})
    assert answer.status_code == 200


@pytest.mark.parametrize("ending", ["?utm_source=mail&token=other", "?", "/", "/?fbclid=1", "#part"])
async def test_what_is_added_to_a_link_on_its_way_does_not_matter(
    http: httpx2.AsyncClient, mesh: Mesh, ending: str
) -> None:
    answer = await http.get(f"/s/{TOKEN}{ending}")
    assert (answer.status_code, answer.content) == (200, PAGE)
    assert mesh.calls.last.request.token == TOKEN


@pytest.mark.parametrize("http2", [False, True])
async def test_head_is_answered_without_the_page(edge: Edge, mesh: Mesh, http2: bool) -> None:
    async with httpx2.AsyncClient(base_url=edge.url, http1=not http2, http2=http2) as client:
        answer = await client.head(f"/s/{TOKEN}")
        assert (answer.status_code, answer.content) == (200, b"")
        assert_a_page_of_its_own(answer)
        mesh.calls.instead["GetStoryPage"] = refusing(code_pb2.NOT_FOUND)
        answer = await client.head(f"/s/{TOKEN}")
        assert (answer.status_code, answer.content) == (404, b"")
        assert_a_page_of_its_own(answer)


@pytest.mark.parametrize("code", REFUSALS)
async def test_a_refusal_of_the_service_is_a_page(http: httpx2.AsyncClient, mesh: Mesh, code: code_pb2.Code) -> None:
    mesh.calls.instead["GetStoryPage"] = refusing(code)
    answer = await http.get(f"/s/{TOKEN}")
    status, title = REFUSALS[code]
    assert answer.status_code == status
    assert f"<h1>{title}</h1>" in answer.text
    assert "SOME_REASON" not in answer.text
    assert "developers" not in answer.text
    assert int(answer.headers["content-length"]) == len(answer.content)
    assert_a_page_of_its_own(answer)


@pytest.mark.parametrize(
    ("verb", "path", "status"),
    [
        ("GET", f"/s/{TOKEN}/more", 404),
        ("GET", f"/s/{TOKEN}/more/and/more", 404),
        ("GET", "/s/", 404),
        ("POST", f"/s/{TOKEN}", 405),
        ("DELETE", f"/s/{TOKEN}", 405),
    ],
)
async def test_a_refusal_of_the_edge_is_a_page(http: httpx2.AsyncClient, verb: str, path: str, status: int) -> None:
    answer = await http.request(verb, path)
    assert answer.status_code == status
    assert "<h1>" in answer.text
    assert_a_page_of_its_own(answer)
    if status == 405:
        assert answer.headers["allow"] == "GET, HEAD"


async def test_too_many_visits_are_a_page_that_says_when_to_come_back(http: httpx2.AsyncClient, mesh: Mesh) -> None:
    async def over(_context: Context) -> rls_pb2.RateLimitResponse:
        return rls_pb2.RateLimitResponse(overall_code=rls_pb2.RateLimitResponse.OVER_LIMIT)

    mesh.limiter.verdict = over
    answer = await http.get(f"/s/{TOKEN}")
    assert answer.status_code == 429
    assert answer.headers["retry-after"]
    assert "<h1>Too many visits at once</h1>" in answer.text
    assert_a_page_of_its_own(answer)


async def test_a_grpc_client_gets_the_message_and_the_status(channel: grpc.aio.Channel, mesh: Mesh) -> None:
    stub = links_grpc.StoryLinkServiceStub(channel)
    answer = await stub.GetStoryPage(links.GetStoryPageRequest(token=TOKEN))
    assert (answer.page.content_type, answer.page.data) == ("text/html; charset=utf-8", PAGE)
    mesh.calls.instead["GetStoryPage"] = refusing(code_pb2.NOT_FOUND)
    with pytest.raises(grpc.aio.AioRpcError) as refused:
        await stub.GetStoryPage(links.GetStoryPageRequest(token=TOKEN))
    assert refused.value.code() == grpc.StatusCode.NOT_FOUND


PATHS = (
    f"/s/{TOKEN}",
    f"/s/{TOKEN}?x={TOKEN}",
    f"/s/{TOKEN}/more",
    f"//s/{TOKEN}",
    f"/x/../s/{TOKEN}",
    f"/%73/{TOKEN}",
    f"/s/{TOKEN}%2Fmore",
    f"/s%2F{TOKEN}",
    f"/S/{TOKEN}",
)


@pytest.fixture
async def traced(mesh_with: Callable[..., Any]) -> AsyncIterator[tuple[Edge, Collector]]:
    collector = Collector()
    async with server((trace_service_pb2_grpc.add_TraceServiceServicer_to_server, collector)) as otlp:
        yield await mesh_with(f"tracing.otlp={otlp}"), collector


async def test_the_secret_of_a_link_is_in_no_log_and_no_trace(traced: tuple[Edge, Collector], mesh: Mesh) -> None:
    edge, collector = traced
    host, port = edge.settings.listen.host, edge.settings.listen.port

    async def visit(path: str, verb: str = "GET") -> None:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(
            f"{verb} {path} HTTP/1.1\r\nhost: x\r\nreferer: http://x{path}\r\nconnection: close\r\n\r\n".encode()
        )
        await reader.read()
        writer.close()

    async def told() -> bool:
        for path in PATHS:
            await visit(path)
        for verb in ("HEAD", "POST", "OPTIONS"):
            await visit(f"/s/{TOKEN}", verb)
        return {"GET /s/{token}", "GET /s/..."} <= {span.name for span in collector.spans}

    await until(told, 30)
    lines = edge.access_lines()
    assert {"/s/..."} < {line["url"]["path"] for line in lines}
    shown_lines = [
        line for line in lines if line["url"]["path"] == "/s/..." and line["http"]["response"]["status_code"] == 200
    ]
    assert shown_lines[0]["message"] == "GET /s/... 200"
    assert shown_lines[0]["rpc"]["method"] == "storymesh.story.v1.StoryLinkService/GetStoryPage"
    assert "Secret" not in edge.log.read_text()
    assert [span for span in collector.spans if b"Secret" in span.SerializeToString()] == []
