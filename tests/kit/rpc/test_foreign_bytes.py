"""Bytes that are no text, in calls that reach a service without the edge."""

from __future__ import annotations

import asyncio
import logging
import sys
from collections.abc import Iterator
from uuid import uuid4

import pytest
from storymesh.story.v1.story_service_pb2 import GetStoryResponse

from kit.runtime import logs
from tests.kit import desk as desks
from tests.kit.conftest import RunningDesk
from tests.logging_state import restored_logging
from tests.wire import Answer, Headers, frame, http2

GRPC = (("content-type", b"application/grpc"), ("te", b"trailers"))
FOREIGN = ("grpc._cython.cygrpc", "asyncio")


async def call(address: str, path: str, headers: Headers = ()) -> Answer:
    host, _, port = address.rpartition(":")
    return await http2((host, int(port)), path.encode("latin1"), (*GRPC, *headers), frame(b""))


@pytest.fixture
def quiet() -> Iterator[None]:
    """As every process of the mesh logs."""
    with restored_logging():
        logs.without_foreign_bytes()
        yield


def told(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [record for record in caplog.records if record.name in FOREIGN]


@pytest.mark.parametrize("method", ["AskPublic", "AskUser", "Watch"])
async def test_the_metadata_of_a_call_is_read_once(
    desk: RunningDesk, transport: str, caplog: pytest.LogCaptureFixture, method: str
) -> None:
    """grpcio complains of what is not UTF-8 each time that it reads it; the native server never does."""
    desk.desk.answer = answered
    await call(desk.address, f"/{desks.NAME}/{method}", [("x-odd", b"\xff")])
    assert len(told(caplog)) == (1 if transport == "grpcio" else 0)


async def answered(_request: object, _context: object) -> GetStoryResponse:
    return GetStoryResponse()


@pytest.mark.parametrize(
    "path",
    [f"/{desks.NAME}/AskPublic", f"/{desks.NAME}/AskUser", "/grpc.health.v1.Health/Check", "/any.Service/Method"],
)
async def test_no_value_is_logged_and_a_flood_is_one_line(
    desk: RunningDesk, transport: str, caplog: pytest.LogCaptureFixture, quiet: None, path: str
) -> None:
    token = desk.issuer.token(uuid4())
    for _ in range(20):
        await call(
            desk.address, path, [("authorization", f"Bearer {token}\xa0".encode("latin1")), ("x-odd", b"\xff" * 999)]
        )
    # The native server hands methods that nobody knows to grpcio's.
    complains = transport == "grpcio" or path == "/any.Service/Method"
    assert [(record.levelname, record.getMessage()) for record in told(caplog)] == [
        ("WARNING", "a call carries bytes that are not UTF-8")
    ] * complains
    assert token not in caplog.text
    assert "\xff" not in caplog.text
    assert "\\xff" not in caplog.text


async def test_a_token_with_a_stray_byte_is_no_token(desk: RunningDesk) -> None:
    token = desk.issuer.token(uuid4()).encode()
    for value in (token + b"\xa0", b"\xa0" + token, token + b"\xc2\xa0", b"\xff"):
        assert (
            await call(desk.address, f"/{desks.NAME}/AskUser", [("authorization", b"Bearer " + value)])
        ).grpc_status == 16
    assert desk.desk.calls == 0


@pytest.mark.parametrize("form", [b"bearer %b", b"BEARER %b", b"Bearer\t%b", b"Bearer \t %b ", b"bEARER  %b"])
async def test_the_scheme_of_a_credential_is_free_of_case_and_blanks(desk: RunningDesk, form: bytes) -> None:
    desk.desk.answer = answered
    value = form % desk.issuer.token(uuid4()).encode()
    assert (await call(desk.address, f"/{desks.NAME}/AskUser", [("authorization", value)])).grpc_status == 0


async def test_a_path_that_is_no_text_ends_the_process_or_nothing_and_is_not_said(transport: str) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.kit.rpc.ended_server_process", transport),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), 60)
    if transport == "grpcio":
        assert process.returncode == 1
        assert b"gRPC's server has ended by itself" in output
    else:
        assert process.returncode == 0
        assert b"still answers" in output
    assert b"confidential" not in output
