"""Calls of the story service to other services."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from datetime import timedelta
from uuid import UUID

from google.protobuf.duration_pb2 import Duration
from grpc.aio import Channel
from storymesh.auth.v1 import directory_service_pb2 as pb
from storymesh.auth.v1.directory_service_pb2_grpc import DirectoryServiceStub
from storymesh.ratelimit.v1 import reservation_service_pb2
from storymesh.ratelimit.v1.descriptor_pb2 import Descriptor, DescriptorEntry
from storymesh.ratelimit.v1.reservation_service_pb2_grpc import ReservationServiceStub

from kit.errors import (
    AlreadyExists,
    FailedPrecondition,
    MeshError,
    NotFound,
    ResourceExhausted,
    SessionRevoked,
    Unavailable,
)
from mesh.edge_protocol import RATE_LIMIT_DOMAIN

from .errors import TokenQuotaExceeded

log = logging.getLogger(__name__)

_RESERVE_SECONDS = 2.0
_SETTLE_SECONDS = 3.0
_SPEND = "story-tokens"
"""What the limiter's rules call the tokens, as the value of their key `spend`."""

_UNREACHABLE = "RATE_LIMIT_BUCKETS_UNREACHABLE"
"""The limiter's reason when its rule lets nothing pass unchecked."""


class AccountDirectory:
    """Looks accounts up in auth."""

    def __init__(self, channel: Channel) -> None:
        self._stub = DirectoryServiceStub(channel)

    async def preferences_of(self, user_id: UUID) -> tuple[str, ...]:
        """Return the account's preferences.

        Raises SessionRevoked for a deleted account, as every service answers its tokens once the revocation arrives. Raises
        Unavailable when auth does not answer (fail-closed): a story with wrong preferences would be worse than a retry.
        """
        try:
            response = await self._stub.GetUser(pb.GetUserRequest(user_id=str(user_id)))
        except NotFound:
            raise SessionRevoked from None
        return tuple(response.user.preferences)


class StoryTokens:
    """Reserves a model's tokens from a person's quota at the rate limiter, and says afterwards how many were used."""

    def __init__(self, channel: Channel) -> None:
        self._stub = ReservationServiceStub(channel)

    async def reserve(self, owner_id: UUID, key: str, amount: int, ttl: timedelta) -> bool:
        """Return whether tokens were reserved, which they are not where no rule counts them.

        Fail-open: while the limiter does not answer, nothing is reserved and stories are written. Raises TokenQuotaExceeded, and
        Unavailable if the limiter's rule says that nothing passes while Redis is away.
        """
        entries = [DescriptorEntry(key="spend", value=_SPEND), DescriptorEntry(key="user", value=str(owner_id))]
        request = reservation_service_pb2.ReserveRequest(
            domain=RATE_LIMIT_DOMAIN,
            descriptors=[Descriptor(entries=entries)],
            key=key,
            amount=amount,
            ttl=Duration(seconds=int(ttl.total_seconds())),
        )
        try:
            return (await self._stub.Reserve(request, timeout=_RESERVE_SECONDS)).reserved
        except ResourceExhausted:
            raise TokenQuotaExceeded from None
        except (AlreadyExists, FailedPrecondition):
            # Settled in an earlier life of this attempt.
            return False
        except MeshError as error:
            if isinstance(error, Unavailable) and error.reason == _UNREACHABLE:
                raise
            log.warning("tokens are not reserved, because the limiter does not answer: %s", error)
            return False

    async def commit(self, key: str, amount: int) -> None:
        """Settle a reservation with what was used. One that cannot be settled stays as it was reserved."""
        request = reservation_service_pb2.CommitRequest(domain=RATE_LIMIT_DOMAIN, key=key, amount=amount)
        await self._settled(self._stub.Commit(request, timeout=_SETTLE_SECONDS))

    async def refund(self, key: str) -> None:
        """Give a reservation back, if there is one that is not settled."""
        request = reservation_service_pb2.RefundRequest(domain=RATE_LIMIT_DOMAIN, key=key)
        await self._settled(self._stub.Refund(request, timeout=_SETTLE_SECONDS))

    async def _settled(self, call: Awaitable[object]) -> None:
        try:
            await call
        except (NotFound, FailedPrecondition):
            return
        except MeshError as error:
            log.warning("a reservation of tokens cannot be settled, and stays spent: %s", error)
