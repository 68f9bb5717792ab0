"""Malformed and malicious requests, and headers that must not leave the mesh."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import grpc
import httpx2
import psutil
import pytest
from edge.settings import Address
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import ResponseReceived, StreamReset
from storymesh.auth.v1 import account_service_pb2 as account
from storymesh.auth.v1 import account_service_pb2_grpc as account_grpc

from tests.envoy.conftest import Edge, Mesh
from tests.envoy.statuses import reason


@pytest.mark.parametrize("path", ["/v1/stories%2Fs1", "/v1/stories%5cs1", "/v1/stories/%2e%2e%2fs1"])
async def test_escaped_slashes_are_refused(ada: httpx2.AsyncClient, mesh: Mesh, path: str) -> None:
    answer = await ada.get(path)
    assert answer.status_code == 400
    assert reason(answer) == "REQUEST_MALFORMED"
    assert mesh.calls.seen == []


async def test_headers_with_underscores_are_refused(ada: httpx2.AsyncClient, mesh: Mesh) -> None:
    answer = await ada.get("/v1/account", headers={"x_user": "eve"})
    assert answer.status_code == 400
    assert reason(answer) == "REQUEST_MALFORMED"
    assert mesh.calls.seen == []


async def test_paths_are_normalised_before_they_are_judged(edge: Edge, mesh: Mesh) -> None:
    for path in ("/docs/../v1/account", "/v1//account", "/health/%2e%2e/v1/account"):
        answer = await raw(edge, f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 401"), path
    assert mesh.calls.seen == []


async def test_too_many_or_too_large_headers_are_refused(http: httpx2.AsyncClient) -> None:
    answer = await http.get("/health", headers={"x-large": "x" * 40_000})
    assert answer.status_code == 431
    assert reason(answer) == "HEADERS_TOO_LARGE"
    answer = await http.get("/health", headers={f"x-{number}": "x" for number in range(150)})
    assert answer.status_code == 431


@pytest.mark.parametrize(
    "line", ["GET /health HTTP/1.0", "GET /health", "GET /health HTTP/2.0", "GET /health HTTP/0.9"]
)
async def test_another_version_of_http_is_told_which_are_spoken(edge: Edge, line: str) -> None:
    status, error = await refusal(edge, f"{line}\r\n\r\n")
    assert status == 426
    assert error["details"][0]["reason"] == "HTTP_VERSION_NOT_SUPPORTED"
    assert "HTTP/1.1" in error["message"]


@pytest.mark.parametrize(
    ("request_", "status", "named"),
    [
        ("NONSENSE\r\n\r\n", 400, "REQUEST_MALFORMED"),
        ("GET /health HTTP/1.1\r\n\r\n", 400, "REQUEST_MALFORMED"),
        ("get /health HTTP/1.1\r\nhost: x\r\n\r\n", 400, "REQUEST_MALFORMED"),
        ("GET /health HTTP/1.1\r\nhost: x\r\ncontent-length: many\r\n\r\n", 400, "REQUEST_MALFORMED"),
        ("GET /health#part HTTP/1.1\r\nhost: x\r\n\r\n", 400, "REQUEST_MALFORMED"),
        (
            "POST /v1/sessions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: gzip, chunked\r\n\r\n",
            501,
            "TRANSFER_ENCODING_NOT_SUPPORTED",
        ),
        (
            "GET /v1/account HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
            400,
            "UPGRADE_NOT_SUPPORTED",
        ),
        (f"GET /{'a' * 40_000} HTTP/1.1\r\nhost: x\r\n\r\n", 431, "HEADERS_TOO_LARGE"),
    ],
)
async def test_what_is_not_http_or_too_new_for_the_edge_is_refused_in_json(
    edge: Edge, request_: str, status: int, named: str
) -> None:
    answered, error = await refusal(edge, request_)
    assert (answered, error["details"][0]["reason"]) == (status, named)


@pytest.mark.parametrize(
    "malformed",
    [
        *(("te", "gzip"), ("connection", "close"), ("upgrade", "h2c"), ("content-length", "5"), ("X-Upper", "a")),
        *(("x-nul", "\0"), ("host", "\xff"), (":path", "no-slash"), (":method", "G T")),
    ],
    ids=repr,
)
async def test_a_malformed_request_harms_no_other_on_its_connection(edge: Edge, malformed: tuple[str, str]) -> None:
    """A proxy in front of the edge may send requests of several people on one connection."""
    client = H2Connection(H2Configuration(validate_outbound_headers=False, normalize_outbound_headers=False))
    request = {":method": "GET", ":scheme": "http", ":path": "/health", ":authority": "edge"}
    stranger = {**request, ":method": "POST", ":path": "/v1/sessions", "content-type": "application/json"}
    client.initiate_connection()
    client.send_headers(1, list(stranger.items()))
    client.send_headers(3, list({**request, **dict([malformed])}.items()), end_stream=True)
    reader, writer = await asyncio.open_connection(*edge.settings.listen)
    answered: set[int] = set()
    async with asyncio.timeout(8):
        while 1 not in answered:
            writer.write(client.data_to_send())
            received = await reader.read(65_536)
            assert received, "the connection has ended"
            for event in client.receive_data(received):
                if isinstance(event, StreamReset):
                    assert event.stream_id == 3
                    client.send_data(1, b"{}", end_stream=True)
                elif isinstance(event, ResponseReceived):
                    answered.add(event.stream_id)
    writer.close()
    assert answered == {1}


async def test_a_body_that_never_comes_is_not_waited_for(edge: Edge, mesh: Mesh) -> None:
    head = "POST /v1/sessions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 9\r\n\r\n{"
    # The edge's timeout and the deadline that it gave the service end together.
    assert (await raw(edge, head)).startswith((b"HTTP/1.1 408", b"HTTP/1.1 504"))
    assert mesh.calls.seen == []


async def refusal(edge: Edge, request: str) -> tuple[int, Any]:
    """Return the status and error of an answer, after which the edge closes the connection or reads no more of the request."""
    reader, writer = await asyncio.open_connection(*edge.settings.listen)
    writer.write(request.encode())
    async with asyncio.timeout(5):
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        (length,) = (line.partition(":")[2] for line in head.splitlines() if line.startswith("content-length:"))
        body = await reader.readexactly(int(length))
    writer.close()
    await writer.wait_closed()
    assert "content-type: application/json" in head
    return int(head.split()[1]), json.loads(body)


async def raw(edge: Edge, request: str) -> bytes:
    reader, writer = await asyncio.open_connection(*edge.settings.listen)
    writer.write(request.encode())
    async with asyncio.timeout(5):
        answer = await reader.readuntil(b"\r\n\r\n")
    writer.close()
    await writer.wait_closed()
    return answer


async def test_the_server_does_not_say_what_it_is(ada: httpx2.AsyncClient, http: httpx2.AsyncClient) -> None:
    for answer in (await ada.get("/v1/account"), await http.get("/v1/account"), await http.get("/v1/nothing")):
        assert answer.headers["server"] == "storymesh"
        assert not [name for name in answer.headers if name.startswith("x-envoy")]
        assert "envoy" not in answer.text.lower()


async def test_answers_are_neither_cached_nor_sniffed(ada: httpx2.AsyncClient, http: httpx2.AsyncClient) -> None:
    for answer in (await ada.get("/v1/account"), await http.get("/v1/account")):
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["x-content-type-options"] == "nosniff"


async def test_a_service_that_is_down_is_a_503_without_its_address(ada: httpx2.AsyncClient, mesh: Mesh) -> None:
    answer = await ada.get("/v1/notifications")
    assert answer.status_code == 503
    assert reason(answer) == "SERVICE_UNAVAILABLE"
    assert answer.headers["retry-after"] == "1"
    assert mesh.endpoints["notification"].split(":")[1] not in answer.text


async def test_a_service_that_hangs_is_a_504(
    ada: httpx2.AsyncClient, channel: grpc.aio.Channel, credentials: tuple[tuple[str, str]], mesh: Mesh
) -> None:
    async def hang(_request: Any, _context: Any) -> None:
        await asyncio.sleep(5)

    mesh.calls.instead["GetAccount"] = hang
    answer = await ada.get("/v1/account")
    assert answer.status_code == 504
    assert answer.json()["code"] == 4
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await account_grpc.AccountServiceStub(channel).GetAccount(account.GetAccountRequest(), metadata=credentials)
    assert error.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED


async def test_only_the_three_named_ports_are_open(edge: Edge) -> None:
    open_ports = {
        Address(*connection.laddr)
        for connection in psutil.Process(edge.pid).net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert open_ports == {edge.settings.listen, edge.settings.admin, edge.settings.internal}
