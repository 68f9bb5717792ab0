"""Translation of the mesh's own services: leases and reservations."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import timedelta
from typing import Any

from grpc.aio import ServicerContext
from storymesh.ratelimit.v1 import (
    descriptor_pb2,
    lease_service_pb2,
    lease_service_pb2_grpc,
    reservation_service_pb2,
    reservation_service_pb2_grpc,
)

from ..model.rules import Entries
from ..operations.leases import Lease, Leases
from ..operations.reservations import Reservations, Wanted

Context = ServicerContext[Any, Any]


class LeaseServicer(lease_service_pb2_grpc.LeaseServiceServicer):
    """Implements storymesh.ratelimit.v1.LeaseService."""

    def __init__(self, leases: Leases) -> None:
        self._leases = leases

    async def AcquireLease(
        self, request: lease_service_pb2.AcquireLeaseRequest, context: Context
    ) -> lease_service_pb2.AcquireLeaseResponse:
        ttl = await self._leases.acquire(_lease(request.lease))
        response = lease_service_pb2.AcquireLeaseResponse(counted=ttl is not None)
        if ttl is not None:
            response.ttl.FromTimedelta(ttl)
        return response

    async def RenewLeases(
        self, request: lease_service_pb2.RenewLeasesRequest, context: Context
    ) -> lease_service_pb2.RenewLeasesResponse:
        response = lease_service_pb2.RenewLeasesResponse()
        for renewed in await self._leases.renew([_lease(each) for each in request.leases]):
            renewal = response.renewals.add(lost=renewed.lost)
            if renewed.ttl is not None:
                renewal.ttl.FromTimedelta(renewed.ttl)
        return response

    async def ReleaseLeases(
        self, request: lease_service_pb2.ReleaseLeasesRequest, context: Context
    ) -> lease_service_pb2.ReleaseLeasesResponse:
        await self._leases.release([_lease(each) for each in request.leases])
        return lease_service_pb2.ReleaseLeasesResponse()


class ReservationServicer(reservation_service_pb2_grpc.ReservationServiceServicer):
    """Implements storymesh.ratelimit.v1.ReservationService."""

    def __init__(self, reservations: Reservations) -> None:
        self._reservations = reservations

    async def Reserve(
        self, request: reservation_service_pb2.ReserveRequest, context: Context
    ) -> reservation_service_pb2.ReserveResponse:
        ttl = timedelta(seconds=request.ttl.seconds, microseconds=request.ttl.nanos // 1000)
        wanted = Wanted(request.domain, _entries(request.descriptors), request.key, request.amount, ttl)
        return reservation_service_pb2.ReserveResponse(reserved=await self._reservations.reserve(wanted))

    async def Commit(
        self, request: reservation_service_pb2.CommitRequest, context: Context
    ) -> reservation_service_pb2.CommitResponse:
        await self._reservations.commit(request.domain, request.key, request.amount)
        return reservation_service_pb2.CommitResponse()

    async def Refund(
        self, request: reservation_service_pb2.RefundRequest, context: Context
    ) -> reservation_service_pb2.RefundResponse:
        await self._reservations.refund(request.domain, request.key)
        return reservation_service_pb2.RefundResponse()


def _lease(message: lease_service_pb2.Lease) -> Lease:
    return Lease(message.domain, _entries(message.descriptors), message.key)


def _entries(descriptors: Iterable[descriptor_pb2.Descriptor]) -> tuple[Entries, ...]:
    return tuple(tuple((entry.key, entry.value) for entry in each.entries) for each in descriptors)
