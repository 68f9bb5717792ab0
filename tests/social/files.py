"""A fake of the file service's claims, over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID, uuid4

from google.protobuf.timestamp_pb2 import Timestamp
from grpc.aio import ServicerContext
from storymesh.file.v1 import file_claim_service_pb2 as pb
from storymesh.file.v1 import file_claim_service_pb2_grpc as claims_grpc
from storymesh.file.v1 import file_pb2

from kit.errors import FailedPrecondition, MeshError, NotFound
from kit.identity.tokens import ServiceTokens
from kit.rpc.server import Server
from kit.runtime.clock import Clock
from kit.runtime.settings import ServiceSettings
from tests.identity import MESH_KEY, Issuer

Context = ServicerContext[Any, Any]


class NotReady(FailedPrecondition):
    reason = "FILE_NOT_READY"


class OtherPurpose(FailedPrecondition):
    reason = "FILE_PURPOSE_MISMATCH"


class FileClaims(claims_grpc.FileClaimServiceServicer):
    """Files that the test adds and removes."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.owners: dict[str, UUID] = {}
        self.refusals: dict[str, MeshError] = {}
        """Why a file cannot be claimed."""
        self.claimed: list[tuple[str, str]] = []
        """Holder and file of each claim."""
        self.signed: list[list[str]] = []
        """The files of each call."""
        self.error: MeshError | None = None
        """Raised by each call."""
        self.asked: list[str] = []
        """The names of all calls, answered or not."""
        self.silent = False
        """Whether calls get no answer."""

    def add(self, owner_id: UUID, refusal: MeshError | None = None) -> str:
        file_id = str(uuid4())
        self.owners[file_id] = owner_id
        if refusal:
            self.refusals[file_id] = refusal
        return file_id

    async def ClaimFiles(self, request: pb.ClaimFilesRequest, context: Context) -> pb.ClaimFilesResponse:
        await self._answer("ClaimFiles")
        for file_id in request.file_ids:
            if str(self.owners.get(file_id)) != request.owner_id:
                raise NotFound
            if file_id in self.refusals:
                raise self.refusals[file_id]
            assert request.purpose == file_pb2.FILE_PURPOSE_AVATAR
            self.claimed.append((request.holder, file_id))
        return pb.ClaimFilesResponse()

    async def SignFiles(self, request: pb.SignFilesRequest, context: Context) -> pb.SignFilesResponse:
        await self._answer("SignFiles")
        self.signed.append(list(request.file_ids))
        expire_time = Timestamp()
        expire_time.FromDatetime(self._clock() + request.valid_for.ToTimedelta())
        return pb.SignFilesResponse(
            files=[
                pb.SignedFile(
                    file_id=file_id,
                    download=file_pb2.SignedRequest(
                        method="GET",
                        url=f"https://objects.example/{file_id}/{request.target}?signature={len(self.signed)}",
                        expire_time=expire_time,
                    ),
                )
                for file_id in request.file_ids
                if file_id in self.owners
            ]
        )

    async def ReleaseFiles(self, request: pb.ReleaseFilesRequest, context: Context) -> pb.ReleaseFilesResponse:
        raise AssertionError("claims are released by events")

    async def _answer(self, name: str) -> None:
        self.asked.append(name)
        if self.silent:
            await asyncio.Event().wait()
        if self.error:
            raise self.error


@asynccontextmanager
async def serving(claims: FileClaims, clock: Clock) -> AsyncIterator[str]:
    """Serve the claims; yield the address."""
    settings = ServiceSettings(listen="127.0.0.1:0", mesh_key=MESH_KEY, drain_seconds=0.1)
    server = Server(settings, required={})
    server.add(claims_grpc.add_FileClaimServiceServicer_to_server, claims)
    running = asyncio.create_task(
        server.run(Issuer().access_tokens(), ServiceTokens(MESH_KEY, service="file", clock=clock))
    )
    yield await server.address
    server.stopping.set()
    await running
