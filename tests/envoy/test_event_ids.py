"""The script that adds ids to server-sent events, on streams split at any byte."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator

import httpx2
import pytest
from edge.clusters import socket_address
from edge.config import Config, extension
from edge.scripts import STREAMS, running, scripts
from edge.settings import Address

from tests.envoy.conftest import envoy, settings_for

_ID = re.compile(rb"^id: .*\n", re.MULTILINE)


class Source:
    """A server that sends what is put into it, and ends its answer at None."""

    def __init__(self) -> None:
        self.pieces: asyncio.Queue[bytes | None] = asyncio.Queue()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n")
        while b" /health " not in head and (piece := await self.pieces.get()) is not None:
            writer.write(piece)
        writer.close()


@pytest.fixture(scope="module")
async def source() -> AsyncIterator[tuple[Source, Address]]:
    serving = Source()
    server = await asyncio.start_server(serving.serve, "127.0.0.1", 0)
    yield serving, Address(*server.sockets[0].getsockname())
    server.close()


@pytest.fixture(scope="module")
async def scripted(
    source: tuple[Source, Address], tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[tuple[Source, str]]:
    """The source behind an Envoy that only runs the script, and the Envoy's URL."""
    settings = settings_for({})
    route: Config = {
        "match": {"prefix": "/"},
        "route": {"cluster": "source"},
        "typed_per_filter_config": running(STREAMS),
    }
    manager = extension(
        "envoy.filters.network.http_connection_manager",
        "extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="test",
        route_config={"virtual_hosts": [{"name": "test", "domains": ["*"], "routes": [route]}]},
        http_filters=[
            scripts(),
            extension("envoy.filters.http.router", "extensions.filters.http.router.v3.Router"),
        ],
    )
    host = {"endpoint": {"address": socket_address(source[1])}}
    rendered: Config = {
        "static_resources": {
            "listeners": [
                {"address": socket_address(settings.listen), "filter_chains": [{"filters": [manager]}]},
            ],
            "clusters": [
                {
                    "name": "source",
                    "load_assignment": {"cluster_name": "source", "endpoints": [{"lb_endpoints": [host]}]},
                }
            ],
        }
    }
    async with envoy(settings, tmp_path_factory.mktemp("scripted"), rendered) as running_envoy:
        yield source[0], running_envoy.url


async def received(scripted: tuple[Source, str], *pieces: bytes) -> bytes:
    """Return what arrives of a stream in these pieces, each sent once the one before has arrived: the script buffers nothing."""
    source, url = scripted
    sent, arrived = b"", b""
    async with httpx2.AsyncClient() as client, client.stream("GET", url) as answer, asyncio.timeout(10):
        body = answer.aiter_raw()
        for piece in pieces:
            source.pieces.put_nowait(piece)
            sent += piece
            while _ID.sub(b"", arrived) != sent:
                arrived += await anext(body)
        source.pieces.put_nowait(None)
        return arrived + b"".join([rest async for rest in body])


def event(token: str, text: str = "word") -> bytes:
    return f'data: {{"resume_token":"{token}","chunk":{{"text":"{text}"}}}}\n\n'.encode()


def with_id(token: str, text: str = "word") -> bytes:
    return event(token, text)[:-1] + f"id: {token}\n\n".encode()


STREAM = event("t1") + event("t2", '} \\"resume_token\\":\\"no\\" \\n {') + event("t3", "ü")
WITH_IDS = with_id("t1") + with_id("t2", '} \\"resume_token\\":\\"no\\" \\n {') + with_id("t3", "ü")


async def test_events_in_one_piece_each_get_their_id(scripted: tuple[Source, str]) -> None:
    assert await received(scripted, STREAM) == WITH_IDS


async def test_a_stream_cut_anywhere_arrives_the_same(scripted: tuple[Source, str]) -> None:
    # Split at every byte of the first event and at the beginning of the second, then at some others.
    for place in (*range(1, len(event("t1")) + 30), *range(len(event("t1")) + 30, len(STREAM), 9)):
        assert await received(scripted, STREAM[:place], STREAM[place:]) == WITH_IDS, place
    assert await received(scripted, *(bytes([byte]) for byte in STREAM)) == WITH_IDS


@pytest.mark.parametrize(
    "stream",
    [
        b"",
        b"\n\n\n",
        b": comment\n\n",
        b'data: {"chunk":{"text":"a"},"resume_token":"late"}\n\n',
        b'data: {"resume_token":"","chunk":{}}\n\n',
        b'data: {"resume_token":"a\\u0000b"}\n\n',
        b'data: {"resume_token":"' + b"x" * 600 + b'"}\n\n',
        b'data: {"resume_token":"unfinished',
        b'event: x\ndata: [{"resume_token":"inner"}]\n\n',
    ],
)
async def test_what_has_no_token_passes_unchanged(scripted: tuple[Source, str], stream: bytes) -> None:
    assert await received(scripted, stream) == stream


async def test_a_large_event_passes_whole(scripted: tuple[Source, str]) -> None:
    text = "word {" * 100_000
    assert await received(scripted, event("large", text), event("next")) == with_id("large", text) + with_id("next")
