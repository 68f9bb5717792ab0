"""The notification service's calls to other services."""

from __future__ import annotations

from uuid import UUID

from grpc.aio import Channel
from storymesh.auth.v1 import directory_service_pb2 as pb
from storymesh.auth.v1.directory_service_pb2_grpc import DirectoryServiceStub

from kit.errors import NotFound

from .model import Recipient


class AccountDirectory:
    """Auth's accounts, read at the moment of sending."""

    def __init__(self, channel: Channel) -> None:
        self._stub = DirectoryServiceStub(channel)

    async def find(self, user_id: UUID) -> Recipient | None:
        """The account's address and name; None if it was deleted. Raises Unavailable when auth does not answer."""
        try:
            response = await self._stub.GetUser(pb.GetUserRequest(user_id=str(user_id)))
        except NotFound:
            return None
        return Recipient(response.user.email, response.user.first_name, user_id)
