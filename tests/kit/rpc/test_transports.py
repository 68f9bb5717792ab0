"""What a server of either transport does to hostile, slow and leaving clients, and at its end."""

from __future__ import annotations

import asyncio
import gzip
import logging
import os
import socket
import sys
import tempfile
import threading
import zlib
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, cast
from uuid import UUID

import grpc
import pytest
from foreign.rls_pb2 import RateLimitRequest, RateLimitResponse
from foreign.rls_pb2_grpc import (
    RateLimitServiceServicer,
    RateLimitServiceStub,
    add_RateLimitServiceServicer_to_server,
)
from grpc import StatusCode
from grpc.aio import AioRpcError
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import Event, StreamEnded, StreamReset, TrailersReceived
from storymesh.story.v1.story_pb2 import Story
from storymesh.story.v1.story_service_pb2 import CreateStoryRequest, GetStoryResponse

from kit.errors import DeadlineExceeded, ResourceExhausted
from kit.rpc.server import Server
from kit.runtime.settings import ServiceSettings
from tests.identity import Issuer, bearer, service_tokens
from tests.kit import desk as desks
from tests.kit.conftest import RunningDesk
from tests.kit.desk import Context
from tests.kit.transports import TRANSPORTS
from tests.statuses import raises_status
from tests.waiting import until
from tests.wire import Headers, frame, http2

ALICE = UUID("01890000-0000-7000-8000-00000000a11c")
ANYTHING = CreateStoryRequest()
GRPC = (("content-type", b"application/grpc"), ("te", b"trailers"))
PUBLIC = f"/{desks.NAME}/AskPublic"
LARGE = GetStoryResponse(story=Story(title="x" * 65_536))


def headers_of(path: str, headers: Headers = ()) -> list[tuple[bytes, bytes]]:
    pseudo = [(":method", b"POST"), (":scheme", b"http"), (":path", path.encode()), (":authority", b"desk")]
    return [(name.encode(), value) for name, value in (*pseudo, *GRPC, *headers)]


class Connection:
    """One HTTP/2 connection for many calls, which sends headers as they are."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._http2 = H2Connection(H2Configuration(header_encoding="utf-8", validate_outbound_headers=False))
        self._http2.initiate_connection()

    async def call(self, path: str, headers: Headers = ()) -> tuple[str, list[Event]]:
        """The call's `grpc-status`, and all that the server sent."""
        stream = self._http2.get_next_available_stream_id()
        self._http2.send_headers(stream, headers_of(path, headers))
        self._http2.send_data(stream, frame(b""), end_stream=True)
        events: list[Event] = []
        while not events or not isinstance(events[-1], StreamEnded | StreamReset):
            self._writer.write(self._http2.data_to_send())
            received = await asyncio.wait_for(self._reader.read(65_536), 5)
            assert received, "the server has hung up"
            events += self._http2.receive_data(received)
        told = [dict(getattr(event, "headers", None) or ()).get("grpc-status") for event in events]
        return next((status for status in told if status), ""), events


@asynccontextmanager
async def connected(desk: RunningDesk) -> AsyncIterator[Connection]:
    host, _, port = desk.address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    yield Connection(reader, writer)
    writer.close()


@asynccontextmanager
async def serving(settings: ServiceSettings, desk: desks.Desk) -> AsyncIterator[tuple[Server, desks.DeskStub]]:
    server, issuer = Server(settings, required={}), Issuer()
    desks.add(server, desk)
    running = asyncio.create_task(server.run(issuer.access_tokens(), service_tokens("desk")))
    async with grpc.aio.insecure_channel(await server.address) as channel:
        yield server, desks.DeskStub(channel)
    server.stopping.set()
    await running


MALFORMED = [("grpc-timeout", b"garbage"), ("grpc-timeout", b"\xff"), ("x-odd-bin", b"!!!"), ("x-odd", b"\xff")]


@pytest.mark.parametrize("path", [PUBLIC, f"/{desks.NAME}/Nothing"], ids=["known method", "unknown method"])
async def test_a_malformed_header_harms_no_other_call_on_a_native_connection(
    desk: RunningDesk, transport: str, path: str
) -> None:
    """grpcio remembers the value as faulty, and fails later calls whose header has the same name."""
    if transport == "grpcio":
        pytest.skip("grpc#34721")
    async with connected(desk) as connection:
        for name, value in MALFORMED:
            await connection.call(path, [(name, value)])
        for _ in range(20):
            status, _ = await connection.call(
                PUBLIC, [("grpc-timeout", b"5S"), ("x-odd-bin", b"AAAA"), ("x-odd", b"a")]
            )
            assert status == "0"
    answer: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = desk.channel.unary_unary(f"/{desks.NAME}/Nothing")
    for _ in range(5):
        with pytest.raises(AioRpcError) as unknown:
            await answer(b"", timeout=5, metadata=(("x-odd-bin", b"1"),))
        assert unknown.value.code() is StatusCode.UNIMPLEMENTED


async def test_an_error_of_a_call_with_one_answer_comes_after_headers(desk: RunningDesk) -> None:
    """Envoy counts a status that comes instead of headers against the process (MeshInterceptor's blame_nobody)."""

    async def late(_request: CreateStoryRequest, _context: Context) -> GetStoryResponse:
        raise DeadlineExceeded

    desk.desk.answer = late
    async with connected(desk) as connection:
        status, events = await connection.call(PUBLIC)
    assert status == str(StatusCode.DEADLINE_EXCEEDED.value[0])
    assert any(isinstance(event, TrailersReceived) for event in events)


async def test_metadata_up_to_64_kib_is_read_and_more_is_refused(desk: RunningDesk, transport: str) -> None:
    await desk.stub.public(ANYTHING, metadata=(("x-large", "a" * 60_000),))
    with pytest.raises(AioRpcError) as refused:
        await desk.stub.public(ANYTHING, metadata=(("x-large", "a" * 70_000),))
    # The native server answers with HTTP status 431, for which gRPC's clients have no code of their own.
    assert refused.value.code() is {"grpcio": StatusCode.RESOURCE_EXHAUSTED, "native": StatusCode.UNKNOWN}[transport]
    await desk.stub.public(ANYTHING)


def compressed(coding: str, message: bytes) -> bytes:
    packed = gzip.compress(message) if coding == "gzip" else zlib.compress(message)
    return b"\x01" + frame(packed)[1:]


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
async def test_a_request_may_be_compressed(desk: RunningDesk, transport: str, coding: str) -> None:
    host, _, port = desk.address.rpartition(":")
    body = compressed(coding, CreateStoryRequest(prompt="once " * 100).SerializeToString())
    answer = await http2((host, int(port)), PUBLIC.encode(), (*GRPC, ("grpc-encoding", coding.encode())), body)
    if (transport, coding) == ("native", "deflate"):
        assert answer.grpc_status == StatusCode.UNIMPLEMENTED.value[0]
        assert answer.headers["grpc-accept-encoding"] == "gzip,identity"
    else:
        assert answer.grpc_status == 0


async def test_a_request_that_unpacks_to_too_much_is_refused(desk: RunningDesk) -> None:
    host, _, port = desk.address.rpartition(":")
    body = compressed("gzip", b"\0" * (8 << 20))
    answer = await http2((host, int(port)), PUBLIC.encode(), (*GRPC, ("grpc-encoding", b"gzip")), body)
    assert answer.grpc_status == StatusCode.RESOURCE_EXHAUSTED.value[0]
    assert desk.desk.calls == 0


async def test_a_compressed_message_is_not_unpacked_when_no_encoding_was_named(desk: RunningDesk) -> None:
    """So it is with all that comes through the edge, which passes no `grpc-encoding` on."""
    host, _, port = desk.address.rpartition(":")
    body = compressed("gzip", CreateStoryRequest(prompt="once").SerializeToString())
    for named in ((), (("grpc-encoding", b"identity"),)):
        answer = await http2((host, int(port)), PUBLIC.encode(), (*GRPC, *named), body)
        assert answer.grpc_status == StatusCode.INTERNAL.value[0]
    assert desk.desk.calls == 0


async def test_many_clients_that_do_not_read_delay_nobody_and_are_given_up(settings: ServiceSettings) -> None:
    ended = 0

    async def speak(_request: CreateStoryRequest, _context: Context) -> AsyncGenerator[GetStoryResponse, None]:
        nonlocal ended
        try:
            while True:
                yield LARGE
        finally:
            ended += 1

    desk, issuer = desks.Desk(stream=speak), Issuer()
    server = Server(settings.model_copy(update={"write_seconds": 1.0}), required={})
    desks.add(server, desk)
    running = asyncio.create_task(server.run(issuer.access_tokens(), service_tokens("desk")))
    async with grpc.aio.insecure_channel(await server.address) as channel:
        stub = desks.DeskStub(channel)
        watches = [stub.watch(ANYTHING, metadata=bearer(issuer.token(ALICE))) for _ in range(30)]
        for watch in watches:
            await watch.read()
        await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(None, os.getpid), 0.9)
        await stub.public(ANYTHING)
        await until(lambda: ended == len(watches))
        for watch in watches:
            watch.cancel()
    server.stopping.set()
    await asyncio.wait_for(running, 10)


async def test_a_connection_carries_more_than_a_thousand_streams(desk: RunningDesk) -> None:
    """As all watches of a feed between two services do; gRPC's clients let a call wait while a connection has no room."""

    async def speak_once(_request: CreateStoryRequest, _context: Context) -> AsyncGenerator[GetStoryResponse, None]:
        yield GetStoryResponse()
        await asyncio.Event().wait()

    desk.desk.stream = speak_once
    token = bearer(desk.issuer.token(ALICE))
    watches = []
    # Not all at once: grpcio refuses calls while a thousand wait to be taken.
    for _ in range(11):
        further = [desk.stub.watch(ANYTHING, metadata=token) for _ in range(100)]
        await asyncio.wait_for(asyncio.gather(*(watch.read() for watch in further)), 10)
        watches += further
    await desk.stub.public(ANYTHING, timeout=5)
    for watch in watches:
        watch.cancel()


async def test_a_slow_reader_gets_everything_and_its_stream_is_not_far_ahead(desk: RunningDesk) -> None:
    written = 0

    async def speak(_request: CreateStoryRequest, _context: Context) -> AsyncGenerator[GetStoryResponse, None]:
        nonlocal written
        for number in range(400):
            yield GetStoryResponse(story=Story(title=f"{number} {'x' * 65_536}"))
            written += 1

    desk.desk.stream = speak
    watch = desk.stub.watch(ANYTHING, metadata=bearer(desk.issuer.token(ALICE)))
    first = await watch.read()
    assert isinstance(first, GetStoryResponse)
    # Nothing signals that a writer stands still. On a busy machine it has come less far by now, so this never fails for that.
    await asyncio.sleep(0.3)
    assert written < 300
    numbers = []
    while isinstance(message := await watch.read(), GetStoryResponse):
        numbers.append(int(message.story.title.split()[0]))
    assert numbers == list(range(1, 400))


async def test_a_stream_that_never_waits_lets_other_calls_through(desk: RunningDesk) -> None:
    async def speak(_request: CreateStoryRequest, _context: Context) -> AsyncGenerator[GetStoryResponse, None]:
        while True:
            yield GetStoryResponse()

    desk.desk.stream = speak
    watch = desk.stub.watch(ANYTHING, metadata=bearer(desk.issuer.token(ALICE)))

    async def read() -> None:
        async for _ in watch:
            pass

    reading = asyncio.ensure_future(read())
    await desk.stub.public(ANYTHING, timeout=5)
    watch.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reading


async def test_a_call_that_has_begun_is_answered_when_the_server_ends(settings: ServiceSettings) -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def wait(_request: CreateStoryRequest, _context: Context) -> GetStoryResponse:
        begun.set()
        await go_on.wait()
        return GetStoryResponse(story=Story(title="late"))

    async with serving(settings.model_copy(update={"drain_seconds": 8.0}), desks.Desk(answer=wait)) as (server, stub):
        asked = asyncio.ensure_future(stub.public(ANYTHING))
        await begun.wait()
        server.stopping.set()
        go_on.set()
        assert (await asked).story.title == "late"


async def test_a_call_that_does_not_end_in_time_is_cancelled_when_the_server_ends(settings: ServiceSettings) -> None:
    begun, cleaned = asyncio.Event(), asyncio.Event()

    async def wait(_request: CreateStoryRequest, _context: Context) -> GetStoryResponse:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()
        raise AssertionError

    patient = settings.model_copy(update={"drain_seconds": 0.2, "call_seconds": 60.0})
    async with serving(patient, desks.Desk(answer=wait)) as (server, stub):
        asked = asyncio.ensure_future(stub.public(ANYTHING))
        await begun.wait()
        server.stopping.set()
        with pytest.raises(AioRpcError) as ended:
            await asyncio.wait_for(asked, 10)
        assert ended.value.code() in {StatusCode.UNAVAILABLE, StatusCode.CANCELLED}
        assert cleaned.is_set()


@pytest.mark.parametrize("transport", [TRANSPORTS[-1]])
async def test_a_call_that_comes_while_the_server_behind_ends_is_answered(
    settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, ending, end = (asyncio.Event() for _ in range(4))
    grpcio: Any = type(grpc.aio.server())
    stop = grpcio.stop

    async def stop_late(server: Any, grace: float | None) -> None:
        ending.set()
        await end.wait()
        await stop(server, grace)

    async def wait(_request: CreateStoryRequest, _context: Context) -> GetStoryResponse:
        begun.set()
        await go_on.wait()
        return GetStoryResponse(story=Story(title="late"))

    monkeypatch.setattr(grpcio, "stop", stop_late)
    patient = settings.model_copy(update={"drain_seconds": 30.0, "call_seconds": 60.0})
    async with serving(patient, desks.Desk(answer=wait)) as (server, stub):
        server.stopping.set()
        await ending.wait()
        asked = asyncio.ensure_future(stub.public(ANYTHING))
        await begun.wait()
        end.set()
        # Nothing signals that the server waits. On a busy machine it has not come so far by now, so this never fails for that.
        await asyncio.sleep(0.3)
        go_on.set()
        assert (await asked).story.title == "late"


@pytest.mark.parametrize("transport", [TRANSPORTS[-1]])
async def test_calls_that_are_taken_back_before_they_begin_do_not_hold_up_the_servers_end(
    settings: ServiceSettings,
) -> None:
    taken = threading.Semaphore(0)
    patient = settings.model_copy(update={"drain_seconds": 60.0})
    async with asyncio.timeout(30), serving(patient, desks.Desk()) as (server, _):
        server.add_load_check(PUBLIC, taken.release)
        host, _, port = (await server.address).rpartition(":")
        http2 = H2Connection(H2Configuration(validate_outbound_headers=False))
        http2.initiate_connection()
        # Blocks the loop, on which the server runs too.
        with socket.create_connection((host, int(port))) as connection:
            for _ in range(10):
                stream = http2.get_next_available_stream_id()
                http2.send_headers(stream, headers_of(PUBLIC))
                http2.send_data(stream, frame(b""), end_stream=True)
                connection.sendall(http2.data_to_send())
                assert taken.acquire(timeout=10)
                http2.reset_stream(stream)
            connection.sendall(http2.data_to_send())


async def test_a_foreign_service_is_served_and_traced(settings: ServiceSettings) -> None:
    server = Server(settings, required={})
    server.add_foreign(add_RateLimitServiceServicer_to_server, Limits())
    running = asyncio.create_task(server.run())
    async with grpc.aio.insecure_channel(await server.address) as channel:
        stub: Any = RateLimitServiceStub(channel)
        answer = await stub.ShouldRateLimit(RateLimitRequest(domain="desk"), metadata=(("x-one", "1"),))
        assert answer.overall_code == RateLimitResponse.OK
    server.stopping.set()
    await running


class Limits(RateLimitServiceServicer):
    async def ShouldRateLimit(self, request: RateLimitRequest, context: Any) -> RateLimitResponse:
        assert dict(context.invocation_metadata())["x-one"] == "1"
        return RateLimitResponse(overall_code=RateLimitResponse.OK)


async def test_a_call_is_answered_by_ipv6_too(settings: ServiceSettings) -> None:
    async with serving(settings.model_copy(update={"listen": "[::1]:0"}), desks.Desk()) as (_, stub):
        await stub.public(ANYTHING)


async def test_an_address_that_is_taken_is_said(settings: ServiceSettings, desk: RunningDesk) -> None:
    with pytest.raises(OSError, match="cannot be listened on"):
        await Server(settings.model_copy(update={"listen": desk.address}), required={}).run()


async def test_grpcio_serves_where_the_native_server_is_not_installed(
    settings: ServiceSettings, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "kit.rpc.native", None)
    caplog.set_level(logging.WARNING)
    async with serving(settings.model_copy(update={"grpc_server": "native"}), desks.Desk()) as (_, stub):
        await stub.public(ANYTHING)
    assert "pygrpc-native is not installed" in caplog.text


async def test_a_native_server_leaves_nothing_in_the_folder_for_temporary_files(
    settings: ServiceSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    async with serving(settings, desks.Desk()) as (_, stub):
        await stub.public(ANYTHING)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("transport", [TRANSPORTS[-1]])
async def test_a_call_without_a_place_is_refused_though_the_event_loop_is_busy(desk: RunningDesk) -> None:
    def check() -> None:
        raise ResourceExhausted(retry_after=timedelta(seconds=1))

    desk.server.add_load_check(PUBLIC, check)
    with grpc.insecure_channel(desk.address) as channel:
        ask: Any = channel.unary_unary(PUBLIC)
        with pytest.raises(grpc.RpcError) as refused:
            # Blocks the loop, on which the server runs too.
            ask(b"", timeout=10)
    assert cast("grpc.Call", refused.value).code() is StatusCode.RESOURCE_EXHAUSTED
    assert desk.desk.calls == 0


@pytest.mark.parametrize("transport", [TRANSPORTS[-1]])
async def test_a_load_check_that_fails_harms_its_own_call_alone(desk: RunningDesk) -> None:
    def check() -> None:
        raise ZeroDivisionError

    desk.server.add_load_check(PUBLIC, check)
    with raises_status(StatusCode.INTERNAL, "INTERNAL"):
        await desk.stub.public(ANYTHING)
    await desk.stub.user(ANYTHING, metadata=bearer(desk.issuer.token(ALICE)))
