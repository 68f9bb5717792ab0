"""The file service's worker in the process of the test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from uuid import UUID

from sqlalchemy import select

from kit.events.inbox_stream import InboxTuning
from kit.events.relay import Relay
from mesh.event_routes import routes
from services.file.adapters.clamd import Scanner
from services.file.adapters.images.pool import ImagePool
from services.file.config import FileWorkerSettings
from services.file.model.object_keys import IMAGES, UPLOADS
from services.file.operations import WorkerOperations, worker_operations
from services.file.tables import files
from services.file.worker import inboxes
from tests.file.conftest import FileWorld
from tests.identity import MESH_KEY

QUICK = InboxTuning(block_seconds=0.05, look_seconds=0.1, outage_seconds=0.05)


def worker(world: FileWorld, images: ImagePool, scanner: Scanner | None = None, **changes: Any) -> WorkerOperations:
    return worker_operations(worker_settings(world, **changes), world.resources, images, scanner)


def worker_settings(world: FileWorld, **changes: Any) -> FileWorkerSettings:
    given = world.settings.model_dump(include=set(FileWorkerSettings.model_fields))
    return FileWorkerSettings.model_validate({**given, "mesh_key": MESH_KEY, **changes})


@asynccontextmanager
async def working(world: FileWorld, ops: WorkerOperations, **changes: Any) -> AsyncIterator[None]:
    """Run the inboxes and the relay during the block."""
    stopping = asyncio.Event()
    relay = Relay(world.db, world.resources.redis, routes(), service="file", database_url=world.resources.database_url)
    async with asyncio.TaskGroup() as group:
        group.create_task(relay.run(stopping))
        for inbox in inboxes(worker_settings(world, **changes), world.resources, ops, tuning=QUICK):
            group.create_task(inbox.run(stopping))
        try:
            yield
        finally:
            stopping.set()


async def stored(world: FileWorld) -> set[str]:
    """The keys of all objects in the bucket but seals."""
    listed = [each for prefix in (UPLOADS, IMAGES) for each in (await world.objects.list(prefix)).objects]
    return {each.key for each in listed if each.size}


async def object_key(world: FileWorld, file_id: str) -> str:
    async with world.db.single() as tx:
        return str((await tx.execute(select(files.c.object_key).where(files.c.id == UUID(file_id)))).scalar_one())


async def rows(world: FileWorld) -> int:
    async with world.db.single() as tx:
        return len((await tx.execute(select(files.c.id))).all())
