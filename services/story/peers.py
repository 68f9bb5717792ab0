"""Calls of the story service to other services."""

from __future__ import annotations

from uuid import UUID

from grpc.aio import Channel
from storymesh.auth.v1 import directory_service_pb2 as pb
from storymesh.auth.v1.directory_service_pb2_grpc import DirectoryServiceStub

from kit.errors import NotFound, SessionRevoked


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
