"""CORS: pages of other origins, and answers to OPTIONS."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest

from mesh.contract import read
from tests.envoy.conftest import Edge, Mesh
from tests.envoy.statuses import reason
from tests.envoy.test_limits import over_limit

KNOWN = {"origin": "https://app.example.com"}
STRANGE = {"origin": "https://evil.example.com"}
PREFLIGHT = {
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization,content-type",
}
CONTRACT = read(Path(__file__).resolve().parents[2] / "gen" / "descriptors.binpb")


def granted(answer: httpx2.Response) -> set[str]:
    return {name for name in answer.headers if name.startswith("access-control-")}


async def test_a_preflight_from_a_known_origin_is_answered_without_a_token(
    http: httpx2.AsyncClient, mesh: Mesh
) -> None:
    answer = await http.options("/v1/stories", headers=KNOWN | PREFLIGHT)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == "https://app.example.com"
    assert answer.headers["access-control-allow-methods"] == answer.headers["allow"] == "GET, POST"
    assert answer.headers["access-control-max-age"] == "600"
    assert "access-control-allow-credentials" not in answer.headers
    allowed = set(answer.headers["access-control-allow-headers"].split(", "))
    assert {"authorization", "content-type", "last-event-id", "x-grpc-web", "grpc-timeout"} <= allowed
    assert mesh.calls.seen == []


@pytest.mark.parametrize("path", ["/v1/stories", "/health", "/storymesh.story.v1.StoryService/WatchStory"])
async def test_a_preflight_from_elsewhere_is_not_granted(http: httpx2.AsyncClient, path: str) -> None:
    answer = await http.options(path, headers=STRANGE | PREFLIGHT)
    assert answer.status_code == 204
    assert granted(answer) == set()
    assert answer.headers["vary"] == "Origin"


PATHS = {
    **{
        binding.template.replace("{", "").replace("}", ""): {
            other.verb for each in CONTRACT.exposed for other in each.bindings if other.template == binding.template
        }
        for method in CONTRACT.exposed
        for binding in method.bindings
    },
    **{method.path: {"POST"} for method in CONTRACT.exposed},
    # A page is a document as well.
    **{
        document: {"GET", "HEAD"}
        for document in ("/health", "/openapi.yaml", "/docs", "/.well-known/jwks.json", "/s/token")
    },
    "/v1/unsubscribe/token": {"GET", "HEAD", "POST"},
}


@pytest.mark.parametrize(("path", "verbs"), PATHS.items())
async def test_options_names_what_the_contract_has_there(
    http: httpx2.AsyncClient, mesh: Mesh, path: str, verbs: set[str]
) -> None:
    plain = await http.options(path)
    assert (plain.status_code, plain.content) == (204, b"")
    assert set(plain.headers["allow"].split(", ")) == verbs
    preflight = await http.options(path, headers=KNOWN | PREFLIGHT)
    assert preflight.headers["access-control-allow-methods"] == plain.headers["allow"]
    assert mesh.calls.seen == []


@pytest.mark.parametrize("path", ["/v1/nothing", "/", "/storymesh.auth.v1.DirectoryService/GetUser"])
async def test_options_of_what_does_not_exist_says_so(http: httpx2.AsyncClient, path: str) -> None:
    answer = await http.options(path)
    assert answer.status_code == 404
    assert reason(answer) == "PATH_NOT_FOUND"


ANSWERS: list[tuple[str, str, dict[str, Any], int]] = [
    ("GET", "/health", {}, 200),
    ("HEAD", "/health", {}, 200),
    ("GET", "/openapi.yaml", {}, 200),
    ("GET", "/docs", {}, 200),
    ("GET", "/.well-known/jwks.json", {}, 200),
    ("POST", "/v1/sessions", {"json": {"login": "ada"}}, 200),
    ("GET", "/v1/account", {}, 401),
    ("GET", "/v1/nothing", {}, 404),
    ("DELETE", "/v1/stories", {}, 405),
    ("POST", "/docs", {}, 405),
    ("POST", "/v1/sessions", {"content": "x"}, 400),
    ("POST", "/v1/sessions", {"data": {"login": "ada"}}, 415),
    ("POST", "/v1/sessions", {"json": {}, "headers": {"content-encoding": "gzip"}}, 415),
    ("POST", "/v1/sessions", {"json": {"login": "x" * 5000}}, 413),
    ("GET", "/v1/stories%2Fs1", {}, 400),
]


@pytest.mark.parametrize(("method", "path", "sent", "status"), ANSWERS)
async def test_a_known_origin_may_read_every_answer_and_a_cache_keeps_it_for_that_origin(
    http: httpx2.AsyncClient, method: str, path: str, sent: dict[str, Any], status: int
) -> None:
    for origin in (KNOWN, STRANGE, {}):
        answer = await http.request(method, path, **sent | {"headers": {**sent.get("headers", {}), **origin}})
        assert answer.status_code == status, answer.text
        assert answer.headers.get_list("vary") == ["Origin"]
        if origin is KNOWN:
            assert answer.headers.get_list("access-control-allow-origin") == ["https://app.example.com"]
            assert "x-trace-id" in answer.headers["access-control-expose-headers"]
        else:
            assert granted(answer) == set()


async def test_a_page_may_read_what_it_is_limited_to_and_when_to_come_back(
    http: httpx2.AsyncClient, mesh: Mesh
) -> None:
    mesh.limiter.verdict = over_limit
    answer = await http.post("/v1/sessions", json={}, headers=KNOWN)
    assert answer.status_code == 429
    exposed = set(answer.headers["access-control-expose-headers"].split(", "))
    sent = {
        name for name in answer.headers if "ratelimit" in name or name in ("retry-after", "x-trace-id", "x-request-id")
    }
    assert len(sent) >= 5
    assert sent | {"ratelimit", "ratelimit-policy", "www-authenticate", "allow", "grpc-status"} <= exposed


async def test_any_origin_may_be_let_in_and_none(mesh_with: Callable[..., Awaitable[Edge]]) -> None:
    edge = await mesh_with("cors.origins=['*']")
    async with httpx2.AsyncClient(base_url=edge.url) as client:
        answer = await client.get("/health", headers=STRANGE)
        assert answer.headers["access-control-allow-origin"] == "*"
        assert "vary" not in answer.headers
        preflight = await client.options("/v1/sessions", headers=STRANGE | PREFLIGHT)
        assert preflight.headers["access-control-allow-methods"] == "GET, POST"
    edge = await mesh_with("cors.origins=[]")
    async with httpx2.AsyncClient(base_url=edge.url) as client:
        for answer in (
            await client.get("/health", headers=KNOWN),
            await client.options("/v1/sessions", headers=KNOWN | PREFLIGHT),
        ):
            assert granted(answer) == set()
            assert "vary" not in answer.headers
