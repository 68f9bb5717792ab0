"""A fake of auth's directory of accounts, over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

from grpc.aio import ServicerContext
from storymesh.auth.v1 import directory_service_pb2 as pb
from storymesh.auth.v1 import directory_service_pb2_grpc as directory
from storymesh.auth.v1.user_pb2 import User

from kit.errors import NotFound
from kit.rpc.server import Server
from kit.runtime.settings import ServiceSettings
from tests.identity import Issuer, service_tokens

NAME = pb.DESCRIPTOR.services_by_name["DirectoryService"].full_name


class Directory(directory.DirectoryServiceServicer):
    """Accounts that the test adds and removes."""

    def __init__(self) -> None:
        self.users: dict[str, User] = {}
        self.asked = 0

    def add(self, email: str = "ada@example.com", first_name: str = "Ada") -> UUID:
        user_id = uuid4()
        self.users[str(user_id)] = User(id=str(user_id), email=email, first_name=first_name)
        return user_id

    def delete(self, user_id: UUID) -> None:
        del self.users[str(user_id)]

    async def GetUser(self, request: pb.GetUserRequest, context: ServicerContext[Any, Any]) -> pb.GetUserResponse:
        self.asked += 1
        user = self.users.get(request.user_id)
        if user is None:
            raise NotFound
        return pb.GetUserResponse(user=user)


@asynccontextmanager
async def serving(accounts: Directory, address: str = "127.0.0.1:0") -> AsyncIterator[str]:
    """Serve the directory and yield its address."""
    settings = ServiceSettings(
        listen=address, mesh_key="bW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW0=", drain_seconds=0.1
    )
    server = Server(settings, required={})
    server.add(directory.add_DirectoryServiceServicer_to_server, accounts)
    running = asyncio.create_task(server.run(Issuer().access_tokens(), service_tokens("auth")))
    yield await server.address
    server.stopping.set()
    await running
