"""A process whose gRPC server is ended by a path that is no text; run by a test, because what gRPC leaves of it confuses Python."""

from __future__ import annotations

import asyncio

from kit.rpc.server import Server
from kit.runtime import logs
from tests.identity import Issuer, service_tokens
from tests.kit import desk as desks
from tests.kit.conftest import SETTINGS
from tests.wire import frame, http2


async def main() -> None:
    logs.configure("desk", "development", "INFO")
    server, issuer = Server(SETTINGS, required={}), Issuer()
    desks.add(server, desks.Desk())
    running = asyncio.create_task(server.run(issuer.access_tokens(), service_tokens("desk")))
    host, _, port = (await server.address).rpartition(":")
    path = f"/{desks.NAME}/AskPublic?confidential\xff".encode("latin1")
    await http2((host, int(port)), path, [("content-type", b"application/grpc"), ("te", b"trailers")], frame(b""))
    await running


if __name__ == "__main__":
    asyncio.run(main())
