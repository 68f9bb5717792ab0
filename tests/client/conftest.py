"""Fixtures: a small edge, and a client of it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from storymesh.auth.v1.account_service_pb2_grpc import add_AccountServiceServicer_to_server
from storymesh.auth.v1.key_service_pb2_grpc import add_KeyServiceServicer_to_server
from storymesh.auth.v1.session_service_pb2_grpc import add_SessionServiceServicer_to_server
from storymesh.story.v1.story_service_pb2_grpc import add_StoryServiceServicer_to_server

from storymesh_client import FileTokens, Storymesh
from tests.client.edge import LOGIN, PASSWORD, Accounts, Edge, Keys, Sessions, Stories


@pytest.fixture
def edge() -> Edge:
    return Edge()


@pytest.fixture
async def target(edge: Edge) -> AsyncIterator[str]:
    """Address of the edge."""
    server = grpc.aio.server()
    add_SessionServiceServicer_to_server(Sessions(edge), server)
    add_AccountServiceServicer_to_server(Accounts(edge), server)  # type: ignore[abstract]  # what no test calls is UNIMPLEMENTED
    add_KeyServiceServicer_to_server(Keys(edge), server)  # type: ignore[abstract]  # as above
    add_StoryServiceServicer_to_server(Stories(edge), server)  # type: ignore[abstract]  # as above
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    yield f"127.0.0.1:{port}"
    edge.refreshing.set()
    await server.stop(None)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Path of the token file."""
    return tmp_path / "storymesh" / "tokens.json"


@pytest.fixture
async def mesh(target: str, file: Path) -> AsyncIterator[Storymesh]:
    """A signed-in client."""
    async with Storymesh(target, tokens=FileTokens(file)) as client:
        await client.sign_in(LOGIN, PASSWORD)
        yield client
