"""Rate limiting: the edge's requests to the limiter, and the effects of its answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from typing import Any

import grpc
import httpx2
import pytest
from foreign import rls_pb2
from storymesh.auth.v1 import session_service_pb2 as session
from storymesh.auth.v1 import session_service_pb2_grpc as session_grpc

from tests.envoy.conftest import Edge, Mesh, ok, until
from tests.envoy.statuses import detail, grpc_reason, reason

LOGIN = {"login": "ada", "password": "x"}


async def over_limit(_context: Any) -> rls_pb2.RateLimitResponse:
    status = rls_pb2.RateLimitResponse.DescriptorStatus(
        code=rls_pb2.RateLimitResponse.OVER_LIMIT,
        current_limit=rls_pb2.RateLimitResponse.RateLimit(
            requests_per_unit=5, unit=rls_pb2.RateLimitResponse.RateLimit.MINUTE
        ),
    )
    status.duration_until_reset.FromSeconds(7)
    return rls_pb2.RateLimitResponse(
        overall_code=rls_pb2.RateLimitResponse.OVER_LIMIT,
        statuses=[status],
        response_headers_to_add=[rls_pb2.HeaderValue(key="Retry-After", value="7")],
    )


async def never(context: Any) -> rls_pb2.RateLimitResponse:
    """A refusal that no wait ends: the limiter writes no Retry-After, and its reason into the metadata."""
    response = await over_limit(context)
    del response.response_headers_to_add[:]
    response.dynamic_metadata.update({"rule": "small", "verdict": "refused", "reason": "RATE_LIMIT_UNSATISFIABLE"})
    return response


async def banned(context: Any) -> rls_pb2.RateLimitResponse:
    """A refusal that a ban's end ends: the limiter says when, and its reason in the metadata."""
    response = await over_limit(context)
    response.dynamic_metadata.update({"rule": "ban-1", "verdict": "refused", "reason": "RATE_LIMIT_BANNED"})
    return response


async def admitted_by_rule(_context: Any) -> rls_pb2.RateLimitResponse:
    response = rls_pb2.RateLimitResponse(overall_code=rls_pb2.RateLimitResponse.OK)
    response.dynamic_metadata.update({"rule": "some-rule", "verdict": "admitted"})
    return response


async def failing(context: Any) -> rls_pb2.RateLimitResponse:
    await context.abort(grpc.StatusCode.UNAVAILABLE, "no Redis")
    raise AssertionError("abort does not return")


async def hanging(_context: Any) -> rls_pb2.RateLimitResponse:
    await asyncio.sleep(5)
    return rls_pb2.RateLimitResponse()


@pytest.fixture
async def _limiter_comes_back(http: httpx2.AsyncClient, mesh: Mesh) -> AsyncIterator[None]:
    """Wait after the test until the edge, whose outlier detection ejects a failing limiter, calls this one again."""
    yield
    mesh.limiter.verdict = ok

    async def admitted() -> bool:
        return (await http.post("/v1/sessions", json=LOGIN)).status_code == 200

    await until(admitted, 30)


async def test_an_anonymous_call_is_counted_by_class_and_address(http: httpx2.AsyncClient, mesh: Mesh) -> None:
    await http.post("/v1/sessions", json=LOGIN)
    assert mesh.limiter.asked[-1].domain == "storymesh"
    assert mesh.limiter.descriptors == [[("class", "credentials"), ("client_ip", "127.0.0.1/32")]]


@pytest.mark.parametrize(
    ("method", "path", "named"),
    [
        ("GET", "/v1/account", "default"),
        ("POST", "/v1/stories", "generation"),
        ("GET", "/v1/stories/s1:watch", "stream"),
    ],
)
async def test_a_signed_in_call_is_counted_by_user_too(
    ada: httpx2.AsyncClient, mesh: Mesh, method: str, path: str, named: str
) -> None:
    mesh.story.chunks.put_nowait(None)
    await ada.request(method, path)
    assert mesh.limiter.descriptors == [
        [("class", named), ("client_ip", "127.0.0.1/32")],
        [("class", named), ("user", "ada")],
    ]


async def test_a_call_is_counted_once(ada: httpx2.AsyncClient, mesh: Mesh) -> None:
    await ada.get("/v1/account")
    await ada.post("/v1/stories", json={})
    assert len(mesh.limiter.asked) == 2


async def test_native_grpc_is_counted_alike(channel: grpc.aio.Channel, mesh: Mesh) -> None:
    await session_grpc.SessionServiceStub(channel).CreateSession(session.CreateSessionRequest())
    assert mesh.limiter.descriptors == [[("class", "credentials"), ("client_ip", "127.0.0.1/32")]]


async def test_a_refresh_is_counted_apart_from_guesses(
    http: httpx2.AsyncClient, channel: grpc.aio.Channel, mesh: Mesh
) -> None:
    """Refreshes fail open: tokens cannot be guessed, and without refreshes everybody would be signed out in ten minutes."""
    apart = [[("class", "refresh"), ("client_ip", "127.0.0.1/32")]]
    await http.post("/v1/sessions:refresh", json={"refresh_token": "x"})
    assert mesh.limiter.descriptors == apart
    stub = session_grpc.SessionServiceStub(channel)
    with suppress(grpc.aio.AioRpcError):
        await stub.RefreshSession(session.RefreshSessionRequest(refresh_token="x"))
    assert len(mesh.limiter.asked) == 2
    assert mesh.limiter.descriptors == apart
    mesh.limiter.verdict = failing
    answer = await http.post("/v1/sessions:refresh", json={"refresh_token": "x"})
    assert "RATE_LIMIT" not in answer.text


async def test_a_client_cannot_choose_its_address(http: httpx2.AsyncClient, mesh: Mesh) -> None:
    spoofed = {
        "x-forwarded-for": "203.0.113.9",
        "x-real-ip": "203.0.113.9",
        "forwarded": "for=203.0.113.9",
        "x-envoy-external-address": "203.0.113.9",
        "x-storymesh-client-ip": "203.0.113.9/32",
    }
    await http.post("/v1/sessions", json=LOGIN, headers=spoofed)
    assert mesh.limiter.descriptors[0][1] == ("client_ip", "127.0.0.1/32")


@pytest.fixture
async def behind_one_proxy(mesh_with: Callable[..., Awaitable[Edge]]) -> AsyncIterator[httpx2.AsyncClient]:
    edge = await mesh_with("trusted_proxies=1")
    async with httpx2.AsyncClient(base_url=edge.url) as client:
        yield client


async def test_behind_a_proxy_the_address_is_the_one_it_appended(
    behind_one_proxy: httpx2.AsyncClient, mesh: Mesh
) -> None:
    await behind_one_proxy.post("/v1/sessions", json=LOGIN, headers={"x-forwarded-for": "192.0.2.1, 203.0.113.9"})
    assert mesh.limiter.descriptors[0][1] == ("client_ip", "203.0.113.9/32")
    # The IPv6 prefix of one customer counts as one client.
    await behind_one_proxy.post("/v1/sessions", json=LOGIN, headers={"x-forwarded-for": "2001:db8:1:2:3:4:5:6"})
    assert mesh.limiter.descriptors[0][1] == ("client_ip", "2001:db8:1:2::/64")


async def test_a_refused_token_costs_the_limiter_nothing(http: httpx2.AsyncClient, mesh: Mesh) -> None:
    await http.get("/v1/account")
    assert mesh.limiter.asked == []


async def test_over_the_limit_json_is_answered_429(http: httpx2.AsyncClient, mesh: Mesh) -> None:
    mesh.limiter.verdict = over_limit
    answer = await http.post("/v1/sessions", json=LOGIN)
    assert answer.status_code == 429
    assert reason(answer) == "RATE_LIMITED"
    assert answer.json()["code"] == 8
    assert answer.headers["retry-after"] == "7"
    assert detail(answer, "type.googleapis.com/google.rpc.RetryInfo")["retry_delay"] == "7s"
    assert answer.headers["x-ratelimit-limit"].startswith("5")
    assert answer.headers["x-ratelimit-remaining"] == "0"
    assert answer.headers["x-ratelimit-reset"] == "7"
    assert mesh.calls.seen == []


async def test_over_the_limit_grpc_is_answered_resource_exhausted(channel: grpc.aio.Channel, mesh: Mesh) -> None:
    mesh.limiter.verdict = over_limit
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await session_grpc.SessionServiceStub(channel).CreateSession(session.CreateSessionRequest())
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert grpc_reason(error.value) == "RATE_LIMITED"
    assert dict(error.value.trailing_metadata())["retry-after"] == "7"


async def test_a_refusal_that_no_wait_ends_has_its_own_reason_and_no_retry_after(
    http: httpx2.AsyncClient, ada: httpx2.AsyncClient, channel: grpc.aio.Channel, mesh: Mesh
) -> None:
    mesh.limiter.verdict = never
    # Through the filter that fails closed, and through the one that fails open.
    for answer in (await http.post("/v1/sessions", json=LOGIN), await ada.get("/v1/account")):
        assert (answer.status_code, reason(answer)) == (429, "RATE_LIMIT_UNSATISFIABLE")
        assert "retry-after" not in answer.headers
        assert "RetryInfo" not in answer.text
        assert answer.headers["x-ratelimit-remaining"] == "0"
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await session_grpc.SessionServiceStub(channel).CreateSession(session.CreateSessionRequest())
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert grpc_reason(error.value) == "RATE_LIMIT_UNSATISFIABLE"
    assert "retry-after" not in dict(error.value.trailing_metadata())


async def test_a_ban_has_its_own_reason_and_says_when_it_ends(
    http: httpx2.AsyncClient, ada: httpx2.AsyncClient, channel: grpc.aio.Channel, mesh: Mesh
) -> None:
    mesh.limiter.verdict = banned
    for answer in (await http.post("/v1/sessions", json=LOGIN), await ada.get("/v1/account")):
        assert (answer.status_code, reason(answer)) == (429, "RATE_LIMIT_BANNED")
        assert answer.headers["retry-after"] == "7"
        assert "RetryInfo" in answer.text
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await session_grpc.SessionServiceStub(channel).CreateSession(session.CreateSessionRequest())
    assert error.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert grpc_reason(error.value) == "RATE_LIMIT_BANNED"
    assert dict(error.value.trailing_metadata())["retry-after"] == "7"


async def test_the_access_log_names_the_rule_that_decided(ada: httpx2.AsyncClient, mesh: Mesh, edge: Edge) -> None:
    for verdict, expected in (
        (never, {"rule": "small", "verdict": "refused"}),
        (admitted_by_rule, {"rule": "some-rule", "verdict": "admitted"}),
        (ok, None),
    ):
        before = len(edge.access_lines())
        mesh.limiter.verdict = verdict
        await ada.get("/v1/account")

        async def logged(before: int = before) -> bool:
            return len(edge.access_lines()) > before

        await until(logged, 10)
        assert edge.access_lines()[-1].get("rate_limit") == expected


@pytest.mark.usefixtures("_limiter_comes_back")
@pytest.mark.parametrize("verdict", [failing, hanging])
async def test_without_the_limiter_credentials_and_generations_are_denied(
    http: httpx2.AsyncClient, ada: httpx2.AsyncClient, mesh: Mesh, verdict: Callable[[Any], Any]
) -> None:
    mesh.limiter.verdict = verdict
    for answer in (await http.post("/v1/sessions", json=LOGIN), await ada.post("/v1/stories", json={})):
        assert answer.status_code == 503
        assert reason(answer) == "RATE_LIMITER_UNAVAILABLE"
        assert answer.headers["retry-after"] == "1"
    assert mesh.calls.seen == []


@pytest.mark.usefixtures("_limiter_comes_back")
@pytest.mark.parametrize("verdict", [failing, hanging])
async def test_without_the_limiter_reading_goes_on(
    ada: httpx2.AsyncClient, mesh: Mesh, verdict: Callable[[Any], Any]
) -> None:
    mesh.limiter.verdict = verdict
    assert (await ada.get("/v1/account")).status_code == 200
    mesh.story.chunks.put_nowait(None)
    assert (await ada.get("/v1/stories/s1:watch")).status_code == 200


async def test_a_flood_is_stopped_before_it_reaches_the_limiter_but_never_the_liveness_probe(
    mesh_with: Callable[..., Awaitable[Edge]], mesh: Mesh
) -> None:
    edge = await mesh_with("rate_limit.local.burst=3", "rate_limit.local.requests_per_second=1")
    async with httpx2.AsyncClient(base_url=edge.url) as client:
        answers = [await client.post("/v1/sessions", json=LOGIN) for _ in range(8)]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert refused
        assert reason(refused[0]) == "RATE_LIMITED"
        assert refused[0].headers["retry-after"] == "1"
        assert len(mesh.limiter.asked) == len(answers) - len(refused)
        assert {(await client.get("/health")).status_code for _ in range(8)} == {200}
