"""Restarts of the edge and of the services behind it."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc
import httpx2
import pytest
from storymesh.auth.v1 import account_service_pb2_grpc, key_service_pb2_grpc

from tests.envoy.conftest import REPOSITORY, Edge, Mesh, free_port, server, until
from tests.envoy.statuses import reason
from tests.envoy.tokens import SigningKey
from tests.envoy.upstreams import AuthServices


@pytest.fixture
async def edge_before_auth(
    mesh: Mesh, mesh_with: Callable[..., Awaitable[Edge]]
) -> AsyncIterator[tuple[httpx2.AsyncClient, int]]:
    """An edge that started before auth, a client of the edge, and the port at which auth will listen."""
    port = free_port()
    edge = await mesh_with("authentication.keys_cache_seconds=6", endpoints={"auth": f"127.0.0.1:{port}"})
    async with httpx2.AsyncClient(base_url=edge.url, headers={"authorization": f"Bearer {mesh.key.sign()}"}) as client:
        yield client, port


async def test_an_edge_that_started_before_auth_recovers_and_follows_its_keys(
    edge_before_auth: tuple[httpx2.AsyncClient, int], mesh: Mesh
) -> None:
    client, port = edge_before_auth
    assert (await client.get("/health")).status_code == 200
    answer = await client.get("/v1/stories")
    assert answer.status_code == 503
    assert reason(answer) == "TOKEN_KEYS_UNAVAILABLE"
    auth = AuthServices(mesh.calls, mesh.key)  # type: ignore[abstract]  # what no test calls is UNIMPLEMENTED
    async with server(
        (key_service_pb2_grpc.add_KeyServiceServicer_to_server, auth),
        (account_service_pb2_grpc.add_AccountServiceServicer_to_server, auth),
        port=port,
    ):
        await until(lambda: _accepted(client, mesh.key))
        # The edge fetches the key set every second: 5 s before the end of a cache time of 6 s.
        auth.signing_key = SigningKey("successor")
        assert (await client.get("/v1/account", headers=bearer(auth.signing_key))).status_code == 401
        await until(lambda: _accepted(client, auth.signing_key))


def bearer(key: SigningKey) -> dict[str, str]:
    return {"authorization": f"Bearer {key.sign()}"}


async def _accepted(client: httpx2.AsyncClient, key: SigningKey) -> bool:
    return (await client.get("/v1/account", headers=bearer(key))).status_code == 200


async def test_a_read_is_tried_again_where_a_write_is_not(ada: httpx2.AsyncClient, mesh: Mesh) -> None:
    async def unavailable(_request: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")

    for method in ("GetStory", "CreateStory"):
        mesh.calls.instead[method] = unavailable
    assert (await ada.get("/v1/stories/s1")).status_code == 503
    assert (await ada.post("/v1/stories", json={})).status_code == 503
    attempts = [call.method for call in mesh.calls.seen]
    assert attempts.count("GetStory") == 3
    assert attempts.count("CreateStory") == 1


async def test_a_read_survives_a_short_outage(ada: httpx2.AsyncClient, mesh: Mesh) -> None:
    async def unavailable_once(_request: Any, context: Any) -> None:
        del mesh.calls.instead["GetStory"]
        await context.abort(grpc.StatusCode.UNAVAILABLE, "restarting")

    mesh.calls.instead["GetStory"] = unavailable_once
    assert (await ada.get("/v1/stories/s1")).status_code == 200


async def test_on_sigterm_connections_are_asked_to_leave_and_open_requests_finish(mesh: Mesh, tmp_path: Path) -> None:
    listen, admin = free_port(), free_port()
    overrides = {
        "listen": f"127.0.0.1:{listen}",
        "admin": f"127.0.0.1:{admin}",
        "internal": f"127.0.0.1:{free_port()}",
        "drain_seconds": "5",
    } | {f"services.{name}": address for name, address in mesh.endpoints.items()}
    with (tmp_path / "log").open("wb") as log:
        serving = await asyncio.create_subprocess_exec(
            *(sys.executable, "envoy", "serve"),
            *(part for name, value in overrides.items() for part in ("--set", f"{name}={value}")),
            cwd=REPOSITORY,
            env={"PATH": os.environ["PATH"]},
            stdout=log,
            stderr=log,
        )
    try:
        async with httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{listen}", headers={"authorization": f"Bearer {mesh.key.sign()}"}
        ) as client:
            await until(lambda: _serves(client), 15)
            mesh.story.chunks.put_nowait("before")
            async with client.stream("GET", "/v1/stories/s1:watch") as answer:
                lines = answer.aiter_lines()
                assert "before" in await anext(lines)
                serving.send_signal(signal.SIGTERM)
                await until(lambda: _asks_to_leave(f"http://127.0.0.1:{listen}"))
                mesh.story.chunks.put_nowait("after")
                while "after" not in (await anext(lines)):
                    pass
                mesh.story.chunks.put_nowait(None)
                async for _ in lines:
                    pass
        assert await asyncio.wait_for(serving.wait(), 5) == 0
    finally:
        if serving.returncode is None:
            serving.terminate()
            await serving.wait()


async def _serves(client: httpx2.AsyncClient) -> bool:
    try:
        return (await client.get("/v1/account")).status_code == 200
    except httpx2.TransportError:
        return False


async def _asks_to_leave(url: str) -> bool:
    async with httpx2.AsyncClient() as newcomer:
        answer = await newcomer.get(f"{url}/health")
    return "close" in answer.headers.get_list("connection")
