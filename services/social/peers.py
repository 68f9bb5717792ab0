"""Calls of the social service to the file service."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC
from uuid import UUID

from google.protobuf.duration_pb2 import Duration
from grpc.aio import Channel
from storymesh.file.v1 import file_claim_service_pb2 as pb
from storymesh.file.v1 import file_pb2
from storymesh.file.v1.file_claim_service_pb2_grpc import FileClaimServiceStub

from kit.errors import FailedPrecondition, NotFound

from .errors import FileNotFound, FileNotReady, FilePurposeMismatch
from .model.avatars import LIFE, SignedAvatar, holder_of

_CLAIM_SECONDS = 5.0
_SIGN_SECONDS = 1.0
"""Lists of people wait no longer for their pictures."""


class Files:
    """Avatars at the file service."""

    def __init__(self, channel: Channel) -> None:
        self._stub = FileClaimServiceStub(channel)

    async def claim(self, user_id: UUID, showing_id: UUID, file_id: UUID) -> None:
        """Claim the person's file for an hour, under the name that both ids give.

        Raises FileNotFound, FileNotReady and FilePurposeMismatch; Unavailable when the file service does not answer (fail-closed:
        an avatar that is not claimed could be deleted at any time).
        """
        request = pb.ClaimFilesRequest(
            holder=holder_of(user_id, showing_id),
            owner_id=str(user_id),
            file_ids=[str(file_id)],
            purpose=file_pb2.FILE_PURPOSE_AVATAR,
        )
        try:
            await self._stub.ClaimFiles(request, timeout=_CLAIM_SECONDS)
        except NotFound:
            raise FileNotFound from None
        except FailedPrecondition as error:
            raise (FilePurposeMismatch if error.reason == FilePurposeMismatch.reason else FileNotReady) from None

    async def sign(self, file_ids: Sequence[UUID], size: int) -> Mapping[UUID, SignedAvatar]:
        """URLs of those of the files, at most 100, that are there. Raises Unavailable when the file service does not answer."""
        request = pb.SignFilesRequest(
            file_ids=map(str, file_ids), target=size, valid_for=Duration(seconds=int(LIFE.total_seconds()))
        )
        response = await self._stub.SignFiles(request, timeout=_SIGN_SECONDS)
        return {
            UUID(each.file_id): SignedAvatar(each.download.url, each.download.expire_time.ToDatetime(tzinfo=UTC))
            for each in response.files
        }
