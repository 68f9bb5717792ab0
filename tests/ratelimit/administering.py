"""The limiter and the operators' service in front of it, in the process of the test, as administrators reach them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import grpc
from foreign import rls_pb2, rls_pb2_grpc
from redis.asyncio import Redis
from storymesh.ops.v1 import rate_limit_pb2 as messages
from storymesh.ops.v1.rate_limit_service_pb2_grpc import (
    RateLimitServiceStub,
    add_RateLimitServiceServicer_to_server,
)

from kit.rpc.resources import Resources
from kit.rpc.server import Server
from services.ops.__main__ import api
from services.ops.config import OpsSettings
from services.ops.operations import operations as ops_operations
from services.ops.peers import dead_letter_stores
from services.ratelimit import servicer
from services.ratelimit.config import RateLimitSettings
from services.ratelimit.operations import Operations, operations
from services.ratelimit.servicer import RateLimits, RateLimitServicer
from services.ratelimit.store.buckets import MOST_CALLS
from tests.identity import MESH_KEY, Issuer, bearer
from tests.ratelimit.building import asking, described

if TYPE_CHECKING:
    from storymesh.ops.v1.rate_limit_service_pb2_grpc import RateLimitServiceAsyncStub

ADA, ADDRESS = "0f8fad5b-d9cb-469f-a165-70867728950e", "192.0.2.7"
BY_ADDRESS = described("class=default", f"client_ip={ADDRESS}/32")
BY_ADA = described("class=default", f"user={ADA}")


@dataclass
class Limiter:
    """A running limiter: `admin` is the operators' door, `envoy` the edge's."""

    admin: RateLimitServiceAsyncStub
    envoy: rls_pb2_grpc.RateLimitServiceStub
    issuer: Issuer
    operations: Operations
    own_target: str
    """The limiter's address, where nobody but the operators' service calls its methods for administrators."""

    door: str
    """The address of the operators' service."""

    administrator: UUID

    @property
    def auth(self) -> tuple[tuple[str, str], ...]:
        return bearer(self.issuer.token(self.administrator, "ADMIN"))

    async def ask(self, *descriptors: rls_pb2.RateLimitDescriptor, hits: int = 0) -> rls_pb2.RateLimitResponse:
        """Check a call as the edge does."""
        answer: rls_pb2.RateLimitResponse = await self.envoy.ShouldRateLimit(asking(*descriptors, hits=hits))  # type: ignore[misc]  # an async stub
        return answer

    async def passes(self, *descriptors: rls_pb2.RateLimitDescriptor, hits: int = 0) -> bool:
        return (await self.ask(*descriptors, hits=hits)).overall_code == rls_pb2.RateLimitResponse.OK


def subject(address: str = "", user: str = "", rate_limit_class: str = "") -> messages.RateLimitSubject:
    return messages.RateLimitSubject(client_address=address, user_id=user, rate_limit_class=rate_limit_class)


@asynccontextmanager
async def running(server: Server, resources: Resources, issuer: Issuer) -> AsyncIterator[str]:
    task = asyncio.create_task(server.run(issuer.access_tokens(), resources.service_tokens))
    try:
        yield await server.address
    finally:
        server.stopping.set()
        await task


@asynccontextmanager
async def administered(redis: Redis, rules: Path) -> AsyncIterator[Limiter]:
    issuer = Issuer()
    listening = {"listen": "127.0.0.1:0", "mesh_key": MESH_KEY, "drain_seconds": 1, "metrics_listen": ""}
    async with AsyncExitStack() as stack:
        settings = RateLimitSettings.model_validate(
            {**listening, "rate_limit_rules": rules, "rate_limit_redis_seconds": 10, "grpc_server": "grpcio"}
        )
        resources = await stack.enter_async_context(
            Resources("ratelimit", settings, redis=redis, revocations=issuer.revocations)
        )
        built = operations(settings, resources)
        server = Server(settings, required={})
        server.add_batched(servicer.SERVICE, servicer.METHOD, RateLimits(built.buckets).answer, most=MOST_CALLS)
        server.add(add_RateLimitServiceServicer_to_server, RateLimitServicer(built))
        server.background(built.overrides.follow)
        server.background(built.offenders.follow)
        server.background(built.recordings.follow)
        target = await stack.enter_async_context(running(server, resources, issuer))

        ops_settings = OpsSettings.model_validate({**listening, "cursor_key": b"o" * 32, "ratelimit_target": target})
        of_ops = await stack.enter_async_context(Resources("ops", ops_settings, revocations=issuer.revocations))
        front = api(of_ops, ops_operations(ops_settings, of_ops, dead_letter_stores(of_ops)))
        door = await stack.enter_async_context(running(front, of_ops, issuer))

        envoys = await stack.enter_async_context(grpc.aio.insecure_channel(target))
        admins = await stack.enter_async_context(grpc.aio.insecure_channel(door))
        yield Limiter(
            RateLimitServiceStub(admins),
            rls_pb2_grpc.RateLimitServiceStub(envoys),
            issuer,
            built,
            target,
            door,
            uuid4(),
        )
