"""What the story service asks of others."""

from __future__ import annotations

from uuid import UUID

from grpc import StatusCode
from grpc.aio import AioRpcError, Channel
from storymesh.auth.v1 import directory_service_pb2 as pb
from storymesh.auth.v1.directory_service_pb2_grpc import DirectoryServiceStub

from kit.errors import SessionRevoked


class Accounts:
    """Accounts, as auth knows them."""

    def __init__(self, channel: Channel) -> None:
        self._stub = DirectoryServiceStub(channel)

    async def preferences_of(self, user_id: UUID) -> tuple[str, ...]:
        """Raises SessionRevoked for an account that is gone: so every service answers its tokens once it knows.

        Raises AioRpcError when auth does not answer: a story with the wrong preferences would be worse than a retry.
        """
        try:
            response = await self._stub.GetUser(pb.GetUserRequest(user_id=str(user_id)))
        except AioRpcError as error:
            if error.code() is StatusCode.NOT_FOUND:
                raise SessionRevoked from None
            raise
        return tuple(response.user.preferences)
