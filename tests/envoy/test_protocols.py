"""One port for HTTP/1.1, HTTP/2, gRPC, gRPC-Web and browsers."""

from __future__ import annotations

import base64
import struct
from typing import Any

import grpc
import httpx2
import pytest
from storymesh.auth.v1 import account_service_pb2 as account

from tests.envoy.conftest import Mesh
from tests.wire import frame

GET_ACCOUNT = "/storymesh.auth.v1.AccountService/GetAccount"


def frames(body: bytes) -> list[tuple[int, bytes]]:
    """Yield the frames of a gRPC-Web body; flag 0x80 marks trailers."""
    found = []
    while body:
        flag, length = struct.unpack(">BI", body[:5])
        found.append((flag, body[5 : 5 + length]))
        body = body[5 + length :]
    return found


async def test_grpc_web_in_binary(ada: httpx2.AsyncClient) -> None:
    answer = await ada.post(
        GET_ACCOUNT, content=frame(b""), headers={"content-type": "application/grpc-web+proto", "x-grpc-web": "1"}
    )
    assert answer.headers["content-type"] == "application/grpc-web+proto"
    (_, message), (flag, trailers) = frames(answer.content)
    assert account.GetAccountResponse.FromString(message).user.id == "1"
    assert flag == 0x80
    assert b"grpc-status:0" in trailers


async def test_grpc_web_in_text(ada: httpx2.AsyncClient) -> None:
    media_type = {"content-type": "application/grpc-web-text", "accept": "application/grpc-web-text"}
    answer = await ada.post(GET_ACCOUNT, content=base64.b64encode(frame(b"")), headers=media_type)
    assert answer.headers["content-type"] == "application/grpc-web-text+proto"
    # Frames are encoded one by one, so padding may stand in the middle.
    message = base64.b64decode(answer.text.split("=")[0] + "==")
    assert account.GetAccountResponse.FromString(frames(message)[0][1]).user.id == "1"


async def test_the_documents_are_served(http: httpx2.AsyncClient) -> None:
    health = await http.get("/health")
    assert health.json() == {"status": "SERVING"}
    openapi = await http.get("/openapi.yaml")
    assert openapi.headers["content-type"] == "application/yaml"
    assert openapi.text.startswith("openapi: 3.1")
    docs = await http.get("/docs")
    assert docs.headers["content-type"] == "text/html; charset=utf-8"
    assert "{{" not in docs.text


@pytest.mark.parametrize("path", ["/health", "/openapi.yaml", "/docs", "/.well-known/jwks.json"])
async def test_head_answers_like_get_without_the_body(http: httpx2.AsyncClient, path: str) -> None:
    of_each_request = {"x-request-id", "x-trace-id", "date"}
    got, asked = await http.get(path), await http.head(path)
    assert (asked.status_code, asked.content) == (200, b"")
    for answer in (got, asked):
        for name in of_each_request:
            del answer.headers[name]
    assert asked.headers == got.headers
    assert int(asked.headers["content-length"]) == len(got.content)


async def test_head_of_a_document_that_cannot_be_had_is_refused_without_a_body(
    http: httpx2.AsyncClient, mesh: Mesh
) -> None:
    async def fail(_request: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")

    mesh.calls.instead["GetJwks"] = fail
    answer = await http.head("/.well-known/jwks.json")
    assert (answer.status_code, answer.content) == (503, b"")
    assert answer.headers["cache-control"] == "no-store"


async def test_head_is_for_documents_only(ada: httpx2.AsyncClient, mesh: Mesh) -> None:
    answer = await ada.head("/v1/account")
    assert (answer.status_code, answer.headers["allow"]) == (405, "GET, PATCH")
    assert mesh.calls.seen == []
