"""What time, deletion and accidents do to files: nothing is left behind, and nothing that was acknowledged is lost."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID

import pytest
from grpc import StatusCode
from sqlalchemy import text
from storymesh.events.v1 import auth_events_pb2
from storymesh.file.v1 import file_pb2

from kit.data.object_errors import ObjectStoreUnavailable
from kit.events.envelope import Event
from kit.runtime.clock import system_clock
from services.file.adapters.clamd import Clamd as Scanner
from services.file.adapters.images.pool import ImagePool
from services.file.operations import WorkerOperations
from services.file.operations.erasing import Erasing
from tests.file.conftest import MIB, PDF, FileWorld, Person, send
from tests.file.gate import Gate
from tests.file.pictures import photo
from tests.file.scanners import clamd
from tests.file.working import object_key, rows, stored, worker, working
from tests.statuses import raises_status
from tests.waiting import until

DAY = timedelta(days=1)
AVATAR = {"purpose": file_pb2.FILE_PURPOSE_AVATAR, "name": "me.jpg", "media_type": "image/jpeg"}


@pytest.fixture(scope="module")
async def images() -> AsyncIterator[ImagePool]:
    async with ImagePool(processes=1) as pool:
        yield pool


@pytest.fixture
def ops(world: FileWorld, images: ImagePool) -> WorkerOperations:
    return worker(world, images)


async def checked(ops: WorkerOperations, person: Person, data: bytes = PDF, **changes: object) -> str:
    file_id = await person.uploaded(data, **changes)
    await person.complete(file_id)
    await ops.checking.check(UUID(file_id))
    return file_id


async def half_uploaded(person: Person) -> str:
    """A file of which one part of two has come."""
    data = PDF + bytes(9 * MIB)
    file_id = (await person.create(data)).file.id
    (signed,) = await person.sign_parts(file_id, (1, data[: 8 * MIB]))
    assert await send(signed, data[: 8 * MIB]) == 200
    return file_id


async def open_uploads(world: FileWorld) -> int:
    return len([each async for each in world.objects.list_uploads("uploads/")])


async def test_what_was_not_completed_in_a_day_expires_with_its_bytes_and_parts_and_is_forgotten_in_a_month(
    world: FileWorld, ops: WorkerOperations
) -> None:
    person = world.person()
    kept = await checked(ops, person)
    late = [(await person.create()).file.id, await person.uploaded(), await half_uploaded(person)]
    await ops.pruning.prune()
    assert [(await person.get(each)).state for each in late] == [file_pb2.FILE_STATE_PENDING] * 3
    world.passed = DAY + timedelta(seconds=5)
    await ops.pruning.prune()
    for each in late:
        file = await person.get(each)
        assert (file.state, file.reason) == (file_pb2.FILE_STATE_EXPIRED, "UPLOAD_EXPIRED")
        with raises_status(StatusCode.FAILED_PRECONDITION, "FILE_EXPIRED"):
            await person.complete(each)
    assert await open_uploads(world) == 0
    assert await stored(world) == {await object_key(world, kept)}
    world.passed = timedelta(days=32)
    await ops.pruning.prune()
    assert await rows(world) == 1
    assert (await person.get(kept)).state == file_pb2.FILE_STATE_READY


async def test_an_upload_that_is_completed_as_it_expires_is_one_or_the_other(
    world: FileWorld, ops: WorkerOperations
) -> None:
    person = world.person()
    file_id = await person.uploaded()
    await person.complete(file_id)
    world.passed = DAY + timedelta(seconds=5)
    await ops.pruning.prune()
    assert (await person.get(file_id)).state == file_pb2.FILE_STATE_CHECKING
    await ops.checking.check(UUID(file_id))
    assert (await person.get(file_id)).state == file_pb2.FILE_STATE_READY
    assert len(await stored(world)) == 1


async def test_a_deletion_that_the_store_was_away_for_is_finished_later(
    world: FileWorld, ops: WorkerOperations, gate: Gate
) -> None:
    person = world.person()
    file_id = await checked(ops, person, photo(), **AVATAR)
    await person.delete(file_id)
    gate.close()
    with pytest.raises(ObjectStoreUnavailable):
        await ops.removing.remove_hidden(UUID(file_id))
    assert await rows(world) == 1
    gate.open()
    world.passed = timedelta(minutes=2)
    await ops.pruning.prune()
    assert not await rows(world)
    assert not await stored(world)


async def test_a_file_waits_for_a_scanner_however_often_it_has_no_verdict(world: FileWorld, images: ImagePool) -> None:
    async with clamd() as scanner:
        ops = worker(world, images, Scanner(scanner.address, most_bytes=1000))
        person = world.person()
        file_id = await person.uploaded()
        await person.complete(file_id)
        scanner.reply = b"lstat() failed. ERROR"
        async with working(world, ops, max_failures=1):
            await until(lambda: len(scanner.streams) > 2)
            scanner.reply = None
            await until(lambda: _is_ready(person, file_id))


async def _is_ready(person: Person, file_id: str) -> bool:
    return (await person.get(file_id)).state == file_pb2.FILE_STATE_READY


def deletion_of(person: Person) -> Event:
    message = auth_events_pb2.UserDeleted(user_id=str(person.id))
    return Event(
        id=UUID(int=7),
        type=message.DESCRIPTOR.full_name,
        key=str(person.id),
        occurred_at=system_clock(),
        traceparent="",
        payload=message.SerializeToString(),
    )


async def test_with_an_account_go_its_files_in_every_state_their_bytes_and_parts_and_all_that_was_counted(
    world: FileWorld, ops: WorkerOperations, gate: Gate
) -> None:
    gone, other = world.person(), world.person()
    kept = await checked(ops, other, photo(), **AVATAR)
    left = await stored(world)
    files = [
        await checked(ops, gone, photo(), **AVATAR),
        await checked(ops, gone),
        await checked(ops, gone, b"no pdf"),
        (await gone.create()).file.id,
        await gone.uploaded(),
        await half_uploaded(gone),
    ]
    waiting = await gone.uploaded()
    await gone.complete(waiting)
    deleted = await checked(ops, gone)
    await gone.delete(deleted)
    gate.close()
    with pytest.raises(ObjectStoreUnavailable):
        await ops.erasing.erase(gone.id)
    for each in (*files, waiting):
        with raises_status(StatusCode.NOT_FOUND, "FILE_NOT_FOUND"):
            await gone.get(each)
    told = [key for name, key in await world.events() if name == "FileErased"]
    assert sorted(told) == sorted([*files, waiting, deleted])
    gate.open()
    await world.resources.redis.xadd("inbox:file-accounts", {"event": deletion_of(gone).to_bytes()})
    async with working(world, ops):
        await until(lambda: _only_one(world))
    assert await stored(world) == left
    assert await open_uploads(world) == 0
    async with world.db.single() as tx:
        assert await tx.scalar(text("SELECT count(DISTINCT owner_id) FROM file_admissions")) == 1
    with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
        await gone.create()
    await ops.erasing.erase(gone.id)
    assert (await other.get(kept)).state == file_pb2.FILE_STATE_READY


async def _only_one(world: FileWorld) -> bool:
    return await rows(world) == 1


async def test_an_erasure_goes_by_batches(world: FileWorld, ops: WorkerOperations) -> None:
    person = world.person()
    for _ in range(5):
        await person.uploaded()
    await Erasing(world.db, ops.removing, world.resources.clock, batch=2).erase(person.id)
    assert not await rows(world)
    assert not await stored(world)


async def test_objects_that_no_row_needs_are_told_at_first_and_deleted_when_they_are_found_again(
    world: FileWorld, images: ImagePool, caplog: pytest.LogCaptureFixture
) -> None:
    ops, telling = worker(world, images), worker(world, images, files_sweep="report")
    person = world.person()
    await checked(ops, person, photo(), **AVATAR)
    await checked(ops, person)
    await person.uploaded()
    await half_uploaded(person)
    needed = await stored(world)
    strays = {"uploads/" + "0" * 32, "images/" + "0" * 32 + "/96", "uploads/zz", "images/zz"}
    for key in strays:
        await world.objects.put(key, b"stray", media_type="image/webp")
    await world.objects.start_parts("uploads/" + "1" * 32, media_type="image/png")
    # What is young may belong to a row that is being written.
    assert not (await ops.sweeper.sweep()).unneeded
    world.passed = DAY + timedelta(minutes=5)
    for sweeper in (telling.sweeper, telling.sweeper, ops.sweeper):
        caplog.clear()
        found = await sweeper.sweep()
        assert found.unneeded == strays
        assert await stored(world) == needed | strays
    assert "no file needs these objects: 4" in caplog.text
    caplog.clear()
    await ops.sweeper.sweep()
    assert await stored(world) == needed
    assert "no file needs" not in caplog.text
    assert await open_uploads(world) == 1


async def test_objects_that_the_store_has_lost_are_told_once_and_their_rows_stay(
    world: FileWorld, ops: WorkerOperations, caplog: pytest.LogCaptureFixture
) -> None:
    person = world.person()
    image, document = await checked(ops, person, photo(), **AVATAR), await checked(ops, person)
    await checked(ops, person)
    token = (await object_key(world, image)).removeprefix("uploads/")
    lost = {f"images/{token}/512", await object_key(world, document)}
    await world.objects.delete(lost)
    await ops.sweeper.check()
    assert not (await ops.sweeper.sweep()).missing
    world.passed = timedelta(hours=2)
    for told in (1, 0):
        caplog.clear()
        assert (await ops.sweeper.sweep()).missing == lost
        errors = [each for each in caplog.records if each.levelno == logging.ERROR]
        assert len(errors) == told
    with pytest.raises(LookupError, match="lost 2 objects"):
        await ops.sweeper.check()
    assert (await person.get(document)).state == file_pb2.FILE_STATE_READY
    await person.delete(document)
    await person.delete(image)
    assert not (await ops.sweeper.sweep()).missing
    await ops.sweeper.check()


async def test_a_database_that_knows_nothing_of_the_objects_deletes_none(
    world: FileWorld, ops: WorkerOperations, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(101):
        await world.objects.put(f"uploads/{number:032x}", b"x", media_type="text/plain")
    world.passed = 2 * DAY
    for _ in range(3):
        assert len((await ops.sweeper.sweep()).unneeded) == 101
    assert len(await stored(world)) == 101
    assert "nothing is deleted" in caplog.text


async def test_while_the_store_or_its_bucket_is_away_nothing_counts_as_lost(
    world: FileWorld, ops: WorkerOperations, gate: Gate
) -> None:
    await checked(ops, world.person())
    world.passed = 2 * DAY
    gate.close()
    with pytest.raises(ObjectStoreUnavailable):
        await ops.sweeper.sweep()
    await ops.sweeper.check()
    gate.open()
    assert not (await ops.sweeper.sweep()).missing
