"""The service as a process: `python -m services.auth serve` and `worker`."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from redis.asyncio import Redis
from storymesh.auth.v1 import key_service_pb2, registration_service_pb2
from storymesh.auth.v1.key_service_pb2_grpc import KeyServiceStub
from storymesh.auth.v1.registration_service_pb2_grpc import RegistrationServiceStub
from storymesh.events.v1 import auth_events_pb2 as events

from kit.data.database import Database
from kit.events.envelope import from_bytes
from kit.events.inbox_stream import stream_of
from local.harness import Servers
from tests.auth.conftest import PASSWORD
from tests.conftest import empty

pytestmark = pytest.mark.slow


@asynccontextmanager
async def running(servers: Servers, command: str) -> AsyncIterator[str]:
    """Run the process with the local runner's settings and yield its address. It must drain and exit with 0."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STORYMESH_")}
    environment |= {"STORYMESH_SECRETS_DIR": str(servers.secrets_dir("auth")), "STORYMESH_LISTEN": "127.0.0.1:0"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.auth", command, stdout=PIPE, env=environment
    )
    try:
        yield await address_of(process)
    finally:
        process.terminate()
        await process.communicate()
    assert process.returncode == 0


async def address_of(process: Process) -> str:
    assert process.stdout
    async for line in process.stdout:
        message = str(json.loads(line)["message"])
        if message.startswith("serving on "):
            return message.removeprefix("serving on ")
    raise AssertionError("the process ended before it served")


async def is_serving(channel: grpc.aio.Channel, name: str) -> bool:
    stub: Any = HealthStub(channel)
    return bool((await stub.Check(HealthCheckRequest(service=name))).status == HealthCheckResponse.SERVING)


async def test_a_code_asked_for_at_one_process_reaches_notification_through_the_other(
    servers: Servers, migrated: Callable[[str], str], database_of: Callable[[str], Database], redis: Redis
) -> None:
    migrated("auth")
    await empty(database_of("auth"))
    async with running(servers, "worker") as worker, running(servers, "serve") as address:
        async with grpc.aio.insecure_channel(worker) as channel:
            assert await is_serving(channel, "")
        async with grpc.aio.insecure_channel(address) as channel:
            for name in ("", "storymesh.auth.v1.SessionService", "postgres", "redis", "signing_keys"):
                assert await is_serving(channel, name)
            assert len((await KeyServiceStub(channel).GetJwks(key_service_pb2.GetJwksRequest())).keys) == 1
            request = registration_service_pb2.CreateRegistrationRequest(email="ada@example.org", password=PASSWORD)
            started = await RegistrationServiceStub(channel).CreateRegistration(request)
        answer: Any = await redis.xread({stream_of("notification"): "0"}, block=4000)
    ((_, [(_, fields)]),) = answer
    event = from_bytes(fields[b"event"])
    assert event.decode(events.CodeIssued).challenge_id == started.registration_id
    assert event.traceparent
