"""A process that serves one unary method and one stream on the transport that its argument names, and tells its processor time."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import AsyncIterator
from typing import Any

import uvloop
from storymesh.auth.v1 import directory_service_pb2, revocation_service_pb2
from storymesh.auth.v1.directory_service_pb2_grpc import (
    DirectoryServiceServicer,
    add_DirectoryServiceServicer_to_server,
)
from storymesh.auth.v1.revocation_service_pb2_grpc import (
    RevocationServiceServicer,
    add_RevocationServiceServicer_to_server,
)

from kit.identity.revocations import Revocations
from kit.identity.tokens import AccessTokens, JsonWebKey, KeySet, ServiceTokens
from kit.rpc.server import Server
from kit.runtime.clock import system_clock
from kit.runtime.settings import ServiceSettings

MESH_KEY = b"k" * 32
CALLEE = "auth"
MESSAGES = 20
"""In each stream."""


class Directory(DirectoryServiceServicer):
    async def GetUser(self, _request: Any, _context: Any) -> directory_service_pb2.GetUserResponse:  # noqa: N802  # the contract's
        return directory_service_pb2.GetUserResponse()


class Revoking(RevocationServiceServicer):
    async def WatchRevocations(  # noqa: N802  # the contract's
        self, _request: Any, _context: Any
    ) -> AsyncIterator[revocation_service_pb2.WatchRevocationsResponse]:
        for _ in range(MESSAGES):
            yield revocation_service_pb2.WatchRevocationsResponse()


async def _no_keys() -> list[JsonWebKey]:
    return []


async def serve(transport: str) -> None:
    settings = ServiceSettings.model_validate(
        {"listen": "127.0.0.1:0", "mesh_key": MESH_KEY, "grpc_server": transport, "drain_seconds": 0.1}
    )
    server = Server(settings, required={})
    server.add(add_DirectoryServiceServicer_to_server, Directory())
    server.add(add_RevocationServiceServicer_to_server, Revoking())
    keys, revocations = KeySet(_no_keys, system_clock), Revocations(system_clock)
    tokens = AccessTokens(keys, revocations, issuer="benchmark", audience="benchmark")
    running = asyncio.create_task(server.run(tokens, ServiceTokens(MESH_KEY, service=CALLEE, clock=system_clock)))
    print(await server.address, flush=True)
    asyncio.get_running_loop().add_reader(sys.stdin, _tell)
    await running


def _tell() -> None:
    sys.stdin.readline()
    print(time.process_time(), flush=True)


if __name__ == "__main__":
    # As a service logs: a line for each call, which nobody reads here.
    with open("/dev/null", "w") as nowhere:
        logging.basicConfig(level=logging.INFO, stream=nowhere)
        uvloop.run(serve(sys.argv[1]))
