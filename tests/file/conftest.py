"""Fixtures: the file service in this process, with real Postgres, Redis and SeaweedFS."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import grpc
import httpx2
import pytest
from redis.asyncio import Redis
from storymesh.file.v1 import file_pb2
from storymesh.file.v1 import file_service_pb2 as pb
from storymesh.file.v1.file_claim_service_pb2_grpc import FileClaimServiceStub
from storymesh.file.v1.file_service_pb2_grpc import FileServiceStub

from kit.data.database import Database
from kit.data.objects import Objects, ObjectStore
from kit.rpc.resources import Resources
from kit.rpc.server import Server
from kit.runtime.clock import system_clock
from services.file import store
from services.file.__main__ import api
from services.file.config import FileSettings
from services.file.model import CheckStep, State
from services.file.operations import Operations, operations
from tests.conftest import empty
from tests.file.gate import Gate, gate_to
from tests.identity import MESH_KEY, Issuer, bearer, service_tokens

if TYPE_CHECKING:
    from storymesh.file.v1.file_claim_service_pb2_grpc import FileClaimServiceAsyncStub
    from storymesh.file.v1.file_service_pb2_grpc import FileServiceAsyncStub

PDF = b"%PDF-1.7\n" + b"a page" * 20
MIB = 1024 * 1024


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def declared(data: bytes = PDF, **changes: Any) -> pb.CreateFileRequest:
    """The declaration of a small document; `changes` replace fields."""
    fields: dict[str, Any] = {
        "purpose": file_pb2.FILE_PURPOSE_DOCUMENT,
        "name": "page.pdf",
        "size": len(data),
        "media_type": "application/pdf",
        "sha256": sha256(data),
    }
    return pb.CreateFileRequest(**{**fields, **changes})


@dataclass
class Person:
    """A signed-in user of the API."""

    stub: FileServiceAsyncStub
    issuer: Issuer
    id: UUID = field(default_factory=uuid4)

    @property
    def auth(self) -> tuple[tuple[str, str], ...]:
        return bearer(self.issuer.token(self.id))

    async def create(self, data: bytes = PDF, **changes: Any) -> pb.CreateFileResponse:
        return await self.stub.CreateFile(declared(data, **changes), metadata=self.auth)

    async def get(self, file_id: str) -> file_pb2.File:
        return (await self.stub.GetFile(pb.GetFileRequest(file_id=file_id), metadata=self.auth)).file

    async def complete(self, file_id: str) -> file_pb2.File:
        return (await self.stub.CompleteFile(pb.CompleteFileRequest(file_id=file_id), metadata=self.auth)).file

    async def abort(self, file_id: str) -> file_pb2.File:
        return (await self.stub.AbortFile(pb.AbortFileRequest(file_id=file_id), metadata=self.auth)).file

    async def delete(self, file_id: str) -> None:
        await self.stub.DeleteFile(pb.DeleteFileRequest(file_id=file_id), metadata=self.auth)

    async def download(self, file_id: str, target: int = 0) -> pb.DownloadFileResponse:
        request = pb.DownloadFileRequest(file_id=file_id, target=target)
        return await self.stub.DownloadFile(request, metadata=self.auth)

    async def sign_parts(self, file_id: str, *parts: tuple[int, bytes]) -> list[file_pb2.SignedRequest]:
        declarations = [pb.FilePartDeclaration(number=number, sha256=sha256(data)) for number, data in parts]
        request = pb.CreateFilePartsRequest(file_id=file_id, parts=declarations)
        return [each.upload for each in (await self.stub.CreateFileParts(request, metadata=self.auth)).uploads]

    async def parts(self, file_id: str, **page: Any) -> pb.ListFilePartsResponse:
        return await self.stub.ListFileParts(pb.ListFilePartsRequest(file_id=file_id, **page), metadata=self.auth)

    async def uploaded(self, data: bytes = PDF, **changes: Any) -> str:
        """Create and upload a file; return its id."""
        created = await self.create(data, **changes)
        assert await send(created.upload, data) == 200
        return created.file.id


async def send(signed: file_pb2.SignedRequest, data: bytes, **changes: str) -> int:
    """Make a signed upload; `changes` replace headers. Returns the store's status."""
    async with httpx2.AsyncClient(timeout=20) as client:
        headers = {**signed.headers, **{name.replace("_", "-"): value for name, value in changes.items()}}
        return (await client.request(signed.method, signed.url, content=data, headers=headers)).status_code


async def fetch(signed: file_pb2.SignedRequest, **headers: str) -> httpx2.Response:
    async with httpx2.AsyncClient(timeout=20) as client:
        return await client.request(signed.method, signed.url, headers={**signed.headers, **headers})


@dataclass
class FileWorld:
    """The database and the bucket behind the API."""

    settings: FileSettings
    resources: Resources
    channel: grpc.aio.Channel
    server: Server
    issuer: Issuer
    ops: Operations
    passed: timedelta = timedelta()
    """How far the clock of the operations is ahead."""

    @property
    def db(self) -> Database:
        return self.resources.db

    @property
    def objects(self) -> Objects:
        return self.resources.objects

    def person(self) -> Person:
        return Person(FileServiceStub(self.channel), self.issuer)

    @property
    def claims(self) -> FileClaimServiceAsyncStub:
        return FileClaimServiceStub(self.channel)

    @property
    def service_auth(self) -> tuple[tuple[str, str], ...]:
        return bearer(service_tokens("story").mint("file"))

    async def becomes(self, file_id: str, state: State, **values: Any) -> None:
        """Bring a file to a state, as the worker does."""
        async with self.db.transaction() as tx:
            await store.files.change(
                tx, UUID(file_id), within=list(State), state=state, check_step=CheckStep.NONE, **values
            )

    async def ready(self, person: Person, data: bytes = PDF, **changes: Any) -> str:
        """A file that is uploaded and ready; returns its id."""
        file_id = await person.uploaded(data, **changes)
        await person.complete(file_id)
        await self.becomes(file_id, State.READY, completed_at=system_clock())
        return file_id

    async def events(self) -> list[tuple[str, str]]:
        """Type and key of each event in the outbox, oldest first."""
        async with self.db.transaction() as tx:
            rows = await tx.exec_driver_sql("SELECT type, key FROM outbox ORDER BY position")
            return [(row.type.rpartition(".")[2], row.key) for row in rows]


@pytest.fixture
async def gate(object_store: ObjectStore, objects: Objects) -> AsyncIterator[Gate]:
    """The way from the service to the store. Clients have their own."""
    async with gate_to(object_store.endpoint) as opened:
        yield opened


@pytest.fixture
def changes() -> dict[str, Any]:
    """Settings that a test changes."""
    return {}


@pytest.fixture
async def world(
    database_of: Callable[[str], Database],
    migrated: Callable[[str], str],
    redis: Redis,
    object_store: ObjectStore,
    gate: Gate,
    changes: dict[str, Any],
) -> AsyncIterator[FileWorld]:
    db = database_of("file")
    await empty(db)
    issuer = Issuer()
    settings = FileSettings.model_validate(
        {
            "listen": "127.0.0.1:0",
            "database_url": migrated("file"),
            "mesh_key": MESH_KEY,
            "cursor_key": b"c" * 32,
            "s3_endpoint": gate.endpoint,
            "s3_public_endpoint": object_store.endpoint,
            "s3_bucket": object_store.bucket,
            "s3_access_key": object_store.access_key,
            "s3_secret_key": object_store.secret_key,
            "s3_seconds": 2,
            "drain_seconds": 2,
            "heartbeat_seconds": 0.5,
            "write_seconds": 1,
            "watches_per_person": 5,
            **changes,
        }
    )

    def clock() -> datetime:
        return system_clock() + made.passed

    async with Resources(
        "file", settings, clock=clock, db=db, redis=redis, revocations=issuer.revocations
    ) as resources:
        ops = operations(settings, resources)
        server = api(settings, resources, ops)
        running = asyncio.create_task(server.run(issuer.access_tokens(), resources.service_tokens))
        async with grpc.aio.insecure_channel(await server.address) as channel:
            made = FileWorld(settings, resources, channel, server, issuer, ops)
            yield made
        server.stopping.set()
        await running
