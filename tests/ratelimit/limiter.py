"""The limiter's own services over gRPC, as other services of the mesh call them."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import grpc
from google.protobuf.duration_pb2 import Duration
from redis.asyncio import Redis
from storymesh.ratelimit.v1 import descriptor_pb2, lease_service_pb2, reservation_service_pb2
from storymesh.ratelimit.v1.lease_service_pb2_grpc import add_LeaseServiceServicer_to_server
from storymesh.ratelimit.v1.reservation_service_pb2_grpc import add_ReservationServiceServicer_to_server

from kit.identity.tokens import ServiceTokens
from kit.rpc import channels
from kit.rpc.server import Server
from kit.runtime.clock import system_clock
from kit.runtime.settings import ServiceSettings
from services.ratelimit.model.rules import RuleSet
from services.ratelimit.operations.leases import Leases
from services.ratelimit.operations.reservations import Reservations
from services.ratelimit.servicer import LeaseServicer, ReservationServicer
from services.ratelimit.store.leases import RedisLeaseStore
from services.ratelimit.store.reservations import RedisReservationStore
from tests.identity import MESH_KEY, Issuer

PATIENT_SECONDS = 10.0
"""Long enough that a busy machine does not look like a dead Redis."""


@asynccontextmanager
async def limiter(
    redis: Redis, rules: Callable[[], RuleSet], *, redis_seconds: float = PATIENT_SECONDS, transport: str = "grpcio"
) -> AsyncIterator[str]:
    """Serve leases and reservations by these rules, and yield the address."""
    settings = ServiceSettings(listen="127.0.0.1:0", mesh_key=MESH_KEY, drain_seconds=0.5, grpc_server=transport)
    server = Server(settings, required={})
    leases = Leases(RedisLeaseStore(redis), rules, redis_seconds=redis_seconds)
    reservations = Reservations(RedisReservationStore(redis), rules, redis_seconds=redis_seconds)
    server.add(add_LeaseServiceServicer_to_server, LeaseServicer(leases))
    server.add(add_ReservationServiceServicer_to_server, ReservationServicer(reservations))
    running = asyncio.create_task(server.run(Issuer().access_tokens(), tokens("ratelimit")))
    try:
        yield await server.address
    finally:
        server.stopping.set()
        await running


@asynccontextmanager
async def calling(address: str, caller: str = "story") -> AsyncIterator[grpc.aio.Channel]:
    """A channel as services have it: calls raise MeshError."""
    async with channels.connect(address, "ratelimit", tokens(caller)) as channel:
        yield channel


def tokens(service: str) -> ServiceTokens:
    return ServiceTokens(MESH_KEY, service=service, clock=system_clock)


def descriptor(*entries: str) -> descriptor_pb2.Descriptor:
    """A descriptor of `key=value`."""
    pairs = (entry.partition("=") for entry in entries)
    return descriptor_pb2.Descriptor(entries=[{"key": key, "value": value} for key, _, value in pairs])  # type: ignore[misc]  # protobuf takes them


def lease(key: str, *entries: str) -> lease_service_pb2.Lease:
    return lease_service_pb2.Lease(
        domain="storymesh", descriptors=[descriptor(*(entries or ("watch=stories", "user=ada")))], key=key
    )


def acquiring(key: str, *entries: str) -> lease_service_pb2.AcquireLeaseRequest:
    return lease_service_pb2.AcquireLeaseRequest(lease=lease(key, *entries))


def reserving(key: str, amount: int, *entries: str) -> reservation_service_pb2.ReserveRequest:
    return reservation_service_pb2.ReserveRequest(
        domain="storymesh",
        descriptors=[descriptor(*(entries or ("spend=tokens", "user=ada")))],
        key=key,
        amount=amount,
        ttl=Duration(seconds=600),
    )
