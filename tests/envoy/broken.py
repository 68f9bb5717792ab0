"""An upstream that fails all calls on one of its connections and answers all others."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from grpc_health.v1 import health_pb2
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.errors import ErrorCodes
from h2.events import RequestReceived, StreamEnded

from tests.wire import frame

Failure = Callable[[H2Connection, int], None]

_SERVING = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING).SerializeToString()
_BEGINNING = [(":status", "200"), ("content-type", "application/grpc")]


def internal(connection: H2Connection, stream: int) -> None:
    """The answer of gRPC's library on a connection where it has once failed to decode a header."""
    connection.send_headers(
        stream, [*_BEGINNING, ("grpc-status", "13"), ("grpc-message", "Error parsing")], end_stream=True
    )


def reset(connection: H2Connection, stream: int) -> None:
    connection.reset_stream(stream, ErrorCodes.INTERNAL_ERROR)


@asynccontextmanager
async def breaking(fail: Failure) -> AsyncIterator[str]:
    """Yield the server's address. Health checks succeed; the connection of the first other call is the broken one."""
    broken: list[H2Connection] = []
    writers: set[asyncio.StreamWriter] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.add(writer)
        connection = H2Connection(H2Configuration(client_side=False))
        connection.initiate_connection()
        paths: dict[int, bytes] = {}
        try:
            while not writer.is_closing():
                writer.write(connection.data_to_send())
                received = await reader.read(65_536)
                if not received:
                    return
                for event in connection.receive_data(received):
                    if isinstance(event, RequestReceived):
                        paths[event.stream_id] = dict(event.headers)[b":path"]
                    elif isinstance(event, StreamEnded):
                        answer(connection, event.stream_id, paths.pop(event.stream_id))
        finally:
            writer.close()

    def answer(connection: H2Connection, stream: int, path: bytes) -> None:
        checks_health = path.startswith(b"/grpc.health")
        if not checks_health and not broken:
            broken.append(connection)
        if connection in broken and not checks_health:
            fail(connection, stream)
            return
        connection.send_headers(stream, _BEGINNING)
        # For any other method, a message without fields.
        connection.send_data(stream, frame(_SERVING if checks_health else b""))
        connection.send_headers(stream, [("grpc-status", "0")], end_stream=True)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for writer in writers:
            writer.close()
