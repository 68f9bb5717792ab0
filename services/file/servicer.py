"""Translates the RPCs of the file service into calls of operations, and their results into messages."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any
from uuid import UUID

from grpc.aio import ServicerContext
from storymesh.file.v1 import file_claim_service_pb2 as claim_pb
from storymesh.file.v1 import file_claim_service_pb2_grpc, file_pb2, file_service_pb2_grpc
from storymesh.file.v1 import file_service_pb2 as pb

from kit.data.presigning import SignedRequest
from kit.identity.caller import caller_of
from kit.rpc.stream_end import say_ended
from kit.rpc.timestamps import set_time

from .model import Changed, CheckStep, Declaration, Done, File, Heartbeat, Reconnect, State, Step
from .model.purposes import Purpose
from .operations.claims import Claims
from .operations.files import Files
from .operations.signing import Download
from .operations.uploads import DeclaredPart, ListedPart, Uploads
from .operations.watching import Watches

Context = ServicerContext[Any, Any]

_STATES = {
    State.PENDING: file_pb2.FILE_STATE_PENDING,
    State.CHECKING: file_pb2.FILE_STATE_CHECKING,
    State.READY: file_pb2.FILE_STATE_READY,
    State.REJECTED: file_pb2.FILE_STATE_REJECTED,
    State.EXPIRED: file_pb2.FILE_STATE_EXPIRED,
}
_PROTO_STATES = {number: state for state, number in _STATES.items()}
_PURPOSES = {
    file_pb2.FILE_PURPOSE_AVATAR: Purpose.AVATAR,
    file_pb2.FILE_PURPOSE_POST_PHOTO: Purpose.POST_PHOTO,
    file_pb2.FILE_PURPOSE_MESSAGE_ATTACHMENT: Purpose.MESSAGE_ATTACHMENT,
    file_pb2.FILE_PURPOSE_DOCUMENT: Purpose.DOCUMENT,
}
_PROTO_PURPOSES = {purpose: number for number, purpose in _PURPOSES.items()}
_CHECK_STEPS = {
    CheckStep.NONE: file_pb2.FILE_CHECK_STEP_UNSPECIFIED,
    CheckStep.QUEUED: file_pb2.FILE_CHECK_STEP_QUEUED,
    CheckStep.VERIFYING: file_pb2.FILE_CHECK_STEP_VERIFYING,
    CheckStep.SCANNING: file_pb2.FILE_CHECK_STEP_SCANNING,
    CheckStep.RENDERING: file_pb2.FILE_CHECK_STEP_RENDERING,
}


class FileServicer(file_service_pb2_grpc.FileServiceServicer):
    """Implements storymesh.file.v1.FileService."""

    def __init__(self, files: Files, uploads: Uploads, watches: Watches) -> None:
        self._files = files
        self._uploads = uploads
        self._watches = watches

    async def CreateFile(self, request: pb.CreateFileRequest, context: Context) -> pb.CreateFileResponse:
        declaration = Declaration(
            purpose=_PURPOSES[request.purpose],
            name=request.name,
            size=request.size,
            media_type=request.media_type,
            sha256=bytes.fromhex(request.sha256),
        )
        file, upload = await self._files.create(caller_of(context), declaration, request.request_id or None)
        return pb.CreateFileResponse(file=_to_proto(file), upload=_signed(upload) if upload else None)

    async def GetFile(self, request: pb.GetFileRequest, context: Context) -> pb.GetFileResponse:
        return pb.GetFileResponse(file=_to_proto(await self._files.get(caller_of(context), UUID(request.file_id))))

    async def ListFiles(self, request: pb.ListFilesRequest, context: Context) -> pb.ListFilesResponse:
        state, purpose = _PROTO_STATES.get(request.state), _PURPOSES.get(request.purpose)
        page = await self._files.list(caller_of(context), state, purpose, request.page_size, request.page_token)
        return pb.ListFilesResponse(files=map(_to_proto, page.items), next_page_token=page.next_token)

    async def CreateFileParts(self, request: pb.CreateFilePartsRequest, context: Context) -> pb.CreateFilePartsResponse:
        declared = [DeclaredPart(part.number, bytes.fromhex(part.sha256)) for part in request.parts]
        signed = await self._uploads.sign_parts(caller_of(context), UUID(request.file_id), declared)
        return pb.CreateFilePartsResponse(
            uploads=[pb.FilePartUpload(number=number, upload=_signed(upload)) for number, upload in signed]
        )

    async def ListFileParts(self, request: pb.ListFilePartsRequest, context: Context) -> pb.ListFilePartsResponse:
        caller, file_id = caller_of(context), UUID(request.file_id)
        page = await self._uploads.parts(caller, file_id, request.page_size, request.page_token)
        return pb.ListFilePartsResponse(parts=map(_part_to_proto, page.items), next_page_token=page.next_token)

    async def CompleteFile(self, request: pb.CompleteFileRequest, context: Context) -> pb.CompleteFileResponse:
        file = await self._uploads.complete(caller_of(context), UUID(request.file_id))
        return pb.CompleteFileResponse(file=_to_proto(file))

    async def AbortFile(self, request: pb.AbortFileRequest, context: Context) -> pb.AbortFileResponse:
        file = await self._uploads.abort(caller_of(context), UUID(request.file_id))
        return pb.AbortFileResponse(file=_to_proto(file))

    async def DownloadFile(self, request: pb.DownloadFileRequest, context: Context) -> pb.DownloadFileResponse:
        download = await self._files.download(caller_of(context), UUID(request.file_id), request.target)
        return pb.DownloadFileResponse(
            download=_signed(download.request), media_type=download.media_type, size=download.size
        )

    async def DeleteFile(self, request: pb.DeleteFileRequest, context: Context) -> pb.DeleteFileResponse:
        await self._files.delete(caller_of(context), UUID(request.file_id))
        return pb.DeleteFileResponse()

    async def WatchFile(self, request: pb.WatchFileRequest, context: Context) -> AsyncIterator[pb.WatchFileResponse]:
        caller, file_id = caller_of(context), UUID(request.file_id)
        if await self._watches.nothing_is_new(caller, file_id, request.resume_token):
            await say_ended(context)
        async with aclosing(self._watches.watch(caller, file_id, request.resume_token)) as steps:
            async for token, step in steps:
                yield _step_to_proto(token, step)


class FileClaimServicer(file_claim_service_pb2_grpc.FileClaimServiceServicer):
    """Implements storymesh.file.v1.FileClaimService."""

    def __init__(self, claims: Claims) -> None:
        self._claims = claims

    async def ClaimFiles(self, request: claim_pb.ClaimFilesRequest, context: Context) -> claim_pb.ClaimFilesResponse:
        file_ids, purpose = list(map(UUID, request.file_ids)), _PURPOSES[request.purpose]
        files = await self._claims.claim(request.holder, UUID(request.owner_id), file_ids, purpose)
        return claim_pb.ClaimFilesResponse(files=map(_to_proto, files))

    async def ReleaseFiles(
        self, request: claim_pb.ReleaseFilesRequest, context: Context
    ) -> claim_pb.ReleaseFilesResponse:
        await self._claims.release(request.holder, list(map(UUID, request.file_ids)))
        return claim_pb.ReleaseFilesResponse()

    async def SignFiles(self, request: claim_pb.SignFilesRequest, context: Context) -> claim_pb.SignFilesResponse:
        valid_for = request.valid_for.ToTimedelta() if request.HasField("valid_for") else None
        downloads = await self._claims.sign(list(map(UUID, request.file_ids)), request.target, valid_for)
        return claim_pb.SignFilesResponse(files=map(_download_to_proto, downloads))


def _to_proto(file: File) -> file_pb2.File:
    message = file_pb2.File(
        id=str(file.id),
        purpose=_PROTO_PURPOSES[file.purpose],
        name=file.name,
        size=file.size,
        media_type=file.media_type,
        sha256=file.sha256.hex(),
        state=_STATES[file.state],
        check_step=_CHECK_STEPS[file.check_step],
        reason=file.reason,
        renditions=[
            file_pb2.FileRendition(target=each.target, width=each.width, height=each.height, size=each.size)
            for each in file.renditions
        ],
        claimed=file.claimed,
        part_size=file.part_size,
    )
    set_time(message.create_time, file.created_at)
    set_time(message.upload_expire_time, file.expires_at if file.state is State.PENDING else None)
    set_time(message.complete_time, file.completed_at)
    return message


def _signed(request: SignedRequest) -> file_pb2.SignedRequest:
    message = file_pb2.SignedRequest(method=request.method, url=request.url, headers=request.headers)
    set_time(message.expire_time, request.expires_at)
    return message


def _part_to_proto(listed: ListedPart) -> pb.FilePart:
    part = listed.part
    return pb.FilePart(number=part.number, size=part.size, sha256=part.sha256.hex() if part.sha256 else "")


def _download_to_proto(download: Download) -> claim_pb.SignedFile:
    rendition = download.rendition
    return claim_pb.SignedFile(
        file_id=str(download.file.id),
        download=_signed(download.request),
        media_type=download.media_type,
        size=download.size,
        width=rendition.width if rendition else 0,
        height=rendition.height if rendition else 0,
        name=download.file.name,
    )


def _step_to_proto(token: str, step: Step) -> pb.WatchFileResponse:
    message = pb.WatchFileResponse(resume_token=token)
    match step:
        case Changed(file):
            message.file.CopyFrom(_to_proto(file))
        case Heartbeat():
            message.heartbeat.SetInParent()
        case Done(file):
            message.done.file.CopyFrom(_to_proto(file))
        case Reconnect(after):
            message.reconnect.after.FromTimedelta(after)
    return message
