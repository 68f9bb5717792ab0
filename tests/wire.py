"""Raw requests that a client library would not send: any header value, trailers, bodies that never end."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from collections.abc import Sequence
from dataclasses import dataclass, field

from google.rpc import error_details_pb2, status_pb2
from h2.config import H2Configuration
from h2.connection import H2Connection
from h2.events import DataReceived, ResponseReceived, StreamEnded, StreamReset, TrailersReceived

Headers = Sequence[tuple[str, bytes]]

_SECONDS = 8


def frame(message: bytes) -> bytes:
    """Frame a message as gRPC does."""
    return b"\0" + struct.pack(">I", len(message)) + message


@dataclass
class Answer:
    """A whole answer; `headers` include the trailers of HTTP/2."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    reset: bool = False

    @property
    def grpc_status(self) -> int | None:
        return int(self.headers["grpc-status"]) if "grpc-status" in self.headers else None


async def http1(
    address: tuple[str, int], method: str, path: bytes, headers: Headers = (), body: bytes = b"", *, ends: bool = True
) -> Answer:
    """Send one HTTP/1.1 request on its own connection. A body that does not end is chunked without a last chunk."""
    framing = f"content-length: {len(body)}" if ends else "transfer-encoding: chunked"
    head = [f"{method} ".encode() + path + b" HTTP/1.1", b"host: edge", b"connection: close", framing.encode()]
    head += [name.encode() + b": " + value for name, value in headers]
    reader, writer = await asyncio.open_connection(*address)
    try:
        sent = body if ends else b"%x\r\n%b\r\n" % (len(body), body) if body else b""
        writer.write(b"\r\n".join(head) + b"\r\n\r\n" + sent)
        async with asyncio.timeout(_SECONDS):
            answer = Answer(100)
            while answer.status == 100:
                first, *lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin1").split("\r\n")
                answer = Answer(int(first.split()[1]))
            answer.headers = {
                name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)
            }
            answer.body = await reader.readexactly(int(answer.headers.get("content-length", "0")))
        return answer
    finally:
        writer.close()


async def http2(
    address: tuple[str, int],
    path: bytes,
    headers: Headers = (),
    body: bytes = b"",
    *,
    method: str = "POST",
    authority: bytes = b"edge",
    trailers: Headers = (),
    ends: bool = True,
) -> Answer:
    """Send one HTTP/2 request on its own connection; its headers are sent unchanged."""
    client = H2Connection(
        H2Configuration(
            header_encoding=None,
            validate_outbound_headers=False,
            normalize_outbound_headers=False,
            validate_inbound_headers=False,
        )
    )
    reader, writer = await asyncio.open_connection(*address)
    try:
        client.initiate_connection()
        stream = client.get_next_available_stream_id()
        pseudo = [(b":method", method.encode()), (b":scheme", b"http"), (b":path", path), (b":authority", authority)]
        if method == "CONNECT":
            pseudo = [pseudo[0], pseudo[3]]
        client.send_headers(stream, [*pseudo, *_encoded(headers)])
        client.send_data(stream, body, end_stream=ends and not trailers)
        if trailers:
            client.send_headers(stream, _encoded(trailers), end_stream=True)
        answer = Answer()
        async with asyncio.timeout(_SECONDS):
            while True:
                writer.write(client.data_to_send())
                received = await reader.read(65_536)
                if not received:
                    answer.reset = True
                    return answer
                for event in client.receive_data(received):
                    if isinstance(event, ResponseReceived | TrailersReceived):
                        answer.headers |= {name.decode(): value.decode() for name, value in event.headers or ()}
                        answer.status = int(answer.headers.get(":status", "0"))
                    elif isinstance(event, DataReceived):
                        answer.body += event.data or b""
                    elif isinstance(event, StreamEnded | StreamReset):
                        answer.reset = answer.reset or (isinstance(event, StreamReset) and not answer.status)
                        return answer
    finally:
        writer.close()


def reason_in(answer: Answer) -> str:
    """Return the reason of an error, in JSON or in gRPC's trailers."""
    if answer.grpc_status is None:
        return str(json.loads(answer.body)["details"][0]["reason"])
    details = answer.headers["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(base64.b64decode(details + "=" * (-len(details) % 4)))
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info.reason


def _encoded(headers: Headers) -> list[tuple[bytes, bytes]]:
    return [(name.encode(), value) for name, value in headers]
