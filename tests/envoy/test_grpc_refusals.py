"""Refusals by the edge, as gRPC and gRPC-Web libraries read them: HTTP 200 with code, message and details."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import unquote

import grpc
import httpx2
import pytest
from foreign import rls_pb2
from google.protobuf.message import Message
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from storymesh.auth.v1 import account_service_pb2 as account
from storymesh.auth.v1 import session_service_pb2 as session
from storymesh.auth.v1 import session_service_pb2_grpc as session_grpc

from tests.envoy.conftest import Edge, Mesh, until
from tests.envoy.test_limits import failing, over_limit
from tests.wire import frame

GET_ACCOUNT = "/storymesh.auth.v1.AccountService/GetAccount"
LIST_NOTIFICATIONS = "/storymesh.notification.v1.NotificationService/ListNotifications"
SIGN_IN = "/storymesh.auth.v1.SessionService/CreateSession"
MEDIA_TYPES = [
    "application/grpc-web",
    "application/grpc-web+proto",
    "application/grpc-web-text",
    "application/grpc-web-text+proto",
]


async def call(client: httpx2.AsyncClient, path: str, media_type: str, message: bytes = b"") -> httpx2.Response:
    body = frame(message)
    text = "text" in media_type
    headers = {"content-type": media_type, "accept": media_type, "x-grpc-web": "1"}
    return await client.post(path, content=base64.b64encode(body) if text else body, headers=headers)


def refused(answer: httpx2.Response) -> status_pb2.Status:
    """Return the error as connect-web and grpc-web read it. Both look at the HTTP status first, then at these headers."""
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("application/grpc-web")
    # grpc-web would read a body as frames, and report the error a second time.
    assert answer.content == b""
    details = answer.headers["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(base64.b64decode(details + "=" * (-len(details) % 4), validate=True))
    assert str(status.code) == answer.headers["grpc-status"]
    assert status.message == unquote(answer.headers["grpc-message"])
    return status


def reason_of(status: status_pb2.Status) -> str:
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "storymesh"
    return info.reason


def delay_of(status: status_pb2.Status) -> int:
    retry = error_details_pb2.RetryInfo()
    assert status.details[1].Unpack(retry)
    assert retry.retry_delay.nanos == 0
    return retry.retry_delay.seconds


@pytest.mark.parametrize("media_type", MEDIA_TYPES)
@pytest.mark.parametrize(
    ("path", "code", "reason"),
    [
        (GET_ACCOUNT, code_pb2.UNAUTHENTICATED, "TOKEN_MISSING"),
        ("/storymesh.auth.v1.AccountService/Nothing", code_pb2.UNIMPLEMENTED, "PATH_NOT_FOUND"),
        ("/storymesh.auth.v1.DirectoryService/GetUser", code_pb2.UNIMPLEMENTED, "PATH_NOT_FOUND"),
    ],
)
async def test_a_stranger_is_refused_with_code_and_reason(
    http: httpx2.AsyncClient, mesh: Mesh, media_type: str, path: str, code: int, reason: str
) -> None:
    answer = await call(http, path, media_type)
    status = refused(answer)
    assert (status.code, reason_of(status)) == (code, reason)
    assert ("www-authenticate" in answer.headers) is (code == code_pb2.UNAUTHENTICATED)
    assert mesh.calls.seen == []


@pytest.mark.parametrize("media_type", MEDIA_TYPES)
async def test_what_is_too_large_or_unavailable_is_refused_likewise(
    ada: httpx2.AsyncClient, mesh: Mesh, media_type: str
) -> None:
    status = refused(await call(ada, SIGN_IN, media_type, b"x" * 5000))
    assert (status.code, reason_of(status)) == (code_pb2.INVALID_ARGUMENT, "REQUEST_TOO_LARGE")
    answer = await call(ada, LIST_NOTIFICATIONS, media_type)
    status = refused(answer)
    assert (status.code, reason_of(status)) == (code_pb2.UNAVAILABLE, "SERVICE_UNAVAILABLE")
    assert delay_of(status) == int(answer.headers["retry-after"]) == 1


async def test_what_is_late_is_refused_likewise(ada: httpx2.AsyncClient, mesh: Mesh) -> None:
    async def hang(_request: Any, _context: Any) -> None:
        await asyncio.sleep(5)

    mesh.calls.instead["GetAccount"] = hang
    status = refused(await call(ada, GET_ACCOUNT, "application/grpc-web"))
    assert (status.code, reason_of(status)) == (code_pb2.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED")


async def test_text_that_is_no_base64_is_refused(http: httpx2.AsyncClient) -> None:
    answer = await http.post(SIGN_IN, content="AAA", headers={"content-type": "application/grpc-web-text"})
    status = refused(answer)
    assert (status.code, reason_of(status)) == (code_pb2.INVALID_ARGUMENT, "REQUEST_MALFORMED")


@pytest.mark.parametrize("media_type", MEDIA_TYPES)
async def test_over_the_limit_is_resource_exhausted_with_the_delay(
    http: httpx2.AsyncClient, mesh: Mesh, media_type: str
) -> None:
    mesh.limiter.verdict = over_limit
    answer = await call(http, SIGN_IN, media_type)
    status = refused(answer)
    assert (status.code, reason_of(status)) == (code_pb2.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    assert delay_of(status) == int(answer.headers["retry-after"]) == 7
    mesh.limiter.verdict = failing
    status = refused(await call(http, SIGN_IN, media_type))
    assert (status.code, reason_of(status)) == (code_pb2.UNAVAILABLE, "RATE_LIMITER_UNAVAILABLE")
    assert delay_of(status) == 1


@pytest.mark.parametrize(
    "seconds", [0, 1, 2, 60, 127, 128, 129, 255, 256, 3_600, 16_383, 16_384, 86_400, 604_800, 2_000_001]
)
async def test_the_delay_of_every_length_is_exact_for_native_and_web_alike(
    http: httpx2.AsyncClient, channel: grpc.aio.Channel, mesh: Mesh, seconds: int
) -> None:
    async def verdict(_context: Any) -> rls_pb2.RateLimitResponse:
        answer = rls_pb2.RateLimitResponse(overall_code=rls_pb2.RateLimitResponse.OVER_LIMIT)
        answer.response_headers_to_add.add(key="Retry-After", value=str(seconds))
        return answer

    mesh.limiter.verdict = verdict
    assert delay_of(refused(await call(http, SIGN_IN, "application/grpc-web"))) == seconds
    sign_in: Any = channel.unary_unary(SIGN_IN, request_serializer=Message.SerializeToString)
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await sign_in(account.GetAccountRequest())
    native = rpc_status.from_call(error.value)  # type: ignore[arg-type]  # typed for the blocking API, whose accessors it shares
    assert native is not None
    assert (native.code, reason_of(native), delay_of(native)) == (code_pb2.RESOURCE_EXHAUSTED, "RATE_LIMITED", seconds)


async def test_the_local_guard_refuses_likewise(mesh_with: Callable[..., Awaitable[Edge]]) -> None:
    edge = await mesh_with("rate_limit.local.burst=1", "rate_limit.local.requests_per_second=1")
    async with httpx2.AsyncClient(base_url=edge.url) as client:
        answers = [await call(client, SIGN_IN, "application/grpc-web") for _ in range(4)]
    status = refused(next(answer for answer in answers if answer.headers.get("grpc-status", "0") != "0"))
    assert (status.code, reason_of(status), delay_of(status)) == (code_pb2.RESOURCE_EXHAUSTED, "RATE_LIMITED", 1)


@pytest.mark.parametrize(
    ("code", "http_status", "reason"),
    [
        (grpc.StatusCode.CANCELLED, 499, "CANCELLED"),
        (grpc.StatusCode.UNKNOWN, 500, "INTERNAL"),
        (grpc.StatusCode.DEADLINE_EXCEEDED, 504, "DEADLINE_EXCEEDED"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "RESOURCE_EXHAUSTED"),
        (grpc.StatusCode.UNIMPLEMENTED, 501, "METHOD_NOT_IMPLEMENTED"),
        (grpc.StatusCode.INTERNAL, 500, "INTERNAL"),
        (grpc.StatusCode.UNAVAILABLE, 503, "SERVICE_UNAVAILABLE"),
    ],
)
@pytest.mark.parametrize("headers_first", [False, True])
async def test_what_grpcs_library_answers_for_a_service_gets_a_reason(
    http: httpx2.AsyncClient,
    channel: grpc.aio.Channel,
    mesh: Mesh,
    code: grpc.StatusCode,
    http_status: int,
    reason: str,
    headers_first: bool,
) -> None:
    async def refuse(_request: Any, context: Any) -> None:
        if headers_first:
            await context.send_initial_metadata(())
        await context.abort(code, "Socket closed at 10.0.0.7")

    async def serves() -> bool:
        return (await http.post("/v1/sessions", json={})).status_code == 200

    # A success in between, because outlier detection ejects a process after consecutive failures or a late health check.
    await until(serves)
    mesh.calls.instead["CreateSession"] = refuse
    answer = await http.post("/v1/sessions", json={})
    assert answer.status_code == http_status
    assert answer.json()["code"] == code.value[0]
    assert [detail["reason"] for detail in answer.json()["details"]] == [reason]
    assert "Socket" not in answer.text
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await session_grpc.SessionServiceStub(channel).CreateSession(session.CreateSessionRequest())
    native = rpc_status.from_call(error.value)  # type: ignore[arg-type]  # as above
    assert native is not None
    assert (native.code, reason_of(native)) == (code.value[0], reason)
