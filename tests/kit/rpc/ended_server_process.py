"""A process that is sent a path that is no text; run by a test, because what grpcio's server leaves of it confuses Python."""

from __future__ import annotations

import asyncio
import sys

from kit.rpc.server import Server
from kit.runtime import logs
from tests.identity import Issuer, service_tokens
from tests.kit import desk as desks
from tests.kit.conftest import SETTINGS
from tests.wire import frame, http2


async def main(transport: str) -> None:
    logs.configure("desk", "development", "INFO")
    server, issuer = Server(SETTINGS.model_copy(update={"grpc_server": transport}), required={}), Issuer()
    desks.add(server, desks.Desk())
    running = asyncio.create_task(server.run(issuer.access_tokens(), service_tokens("desk")))
    host, _, port = (await server.address).rpartition(":")
    headers = [("content-type", b"application/grpc"), ("te", b"trailers")]
    path = f"/{desks.NAME}/AskPublic"
    await http2((host, int(port)), f"{path}?confidential\xff".encode("latin1"), headers, frame(b""))
    if transport == "grpcio":
        await running
    answer = await http2((host, int(port)), path.encode(), headers, frame(b""))
    print("still answers" if answer.grpc_status == 0 else answer)
    server.stopping.set()
    await running


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
