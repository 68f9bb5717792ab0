"""Uploads by signed requests: what the store takes, and how a file goes on from there."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from google.rpc.error_details_pb2 import RetryInfo
from grpc import StatusCode
from grpc.aio import AioRpcError
from storymesh.file.v1 import file_pb2

from services.file import store
from services.file.model import State
from tests.file.conftest import PDF, FileWorld, Person, send
from tests.file.gate import Gate
from tests.statuses import detail, raises_status, reason_of

OTHER = PDF[:-1] + b"!"


async def key_of(world: FileWorld, file_id: str) -> str:
    async with world.db.transaction() as tx:
        file = await store.files.find(tx, UUID(file_id))
    assert file
    return file.object_key


async def test_a_signed_upload_takes_the_declared_bytes_once_and_nothing_else(world: FileWorld) -> None:
    person = world.person()
    created = await person.create()
    file_id, upload = created.file.id, created.upload
    key = await key_of(world, file_id)
    refused = [
        await send(upload, OTHER),
        await send(upload, PDF + b"more", Content_Length=str(len(PDF) + 4)),
        await send(upload, PDF[:-4], Content_Length=str(len(PDF) - 4)),
        await send(upload, PDF, Content_Type="text/html"),
        await send(upload, PDF, If_None_Match=""),
        await send(upload, PDF, x_amz_checksum_sha256="A" * 43 + "="),
        await send(file_pb2.SignedRequest(method="POST", url=upload.url, headers=upload.headers), PDF),
        await send(file_pb2.SignedRequest(method="GET", url=upload.url), b""),
    ]
    assert all(400 <= status < 500 for status in refused), refused
    assert await world.objects.head(key) is None
    with raises_status(StatusCode.FAILED_PRECONDITION, "FILE_NOT_UPLOADED"):
        await person.complete(file_id)
    assert (await person.get(file_id)).state == file_pb2.FILE_STATE_PENDING

    assert await send(upload, PDF) == 200
    # A replay, with the same bytes or others, and also after the file was completed.
    assert [await send(upload, PDF), await send(upload, OTHER)] == [412, 412]
    assert (await person.complete(file_id)).state == file_pb2.FILE_STATE_CHECKING
    assert await send(upload, PDF) == 412
    assert await world.objects.read(key, first=0, last=len(PDF)) == PDF


async def test_a_key_tells_nothing_and_a_signature_is_good_for_its_own_key_alone(world: FileWorld) -> None:
    person, stranger = world.person(), world.person()
    mine = await person.create(name="diary of Ada.pdf")
    theirs = await stranger.create()
    my_key, their_key = await key_of(world, mine.file.id), await key_of(world, theirs.file.id)
    for told in (str(person.id), person.id.hex, mine.file.id, "diary", "Ada"):
        assert told not in mine.upload.url
    forged = file_pb2.SignedRequest(
        method="PUT", url=mine.upload.url.replace(my_key, their_key), headers=mine.upload.headers
    )
    assert await send(forged, PDF) == 403
    assert await world.objects.head(their_key) is None


async def test_an_upload_expires_and_a_repeated_request_signs_a_fresh_one(world: FileWorld) -> None:
    person = world.person()
    world.passed = -timedelta(minutes=16)
    old = await person.create(request_id="again")
    world.passed = timedelta()
    assert await send(old.upload, PDF) == 403
    fresh = await person.create(request_id="again")
    assert fresh.file.id == old.file.id
    assert await send(fresh.upload, PDF) == 200
    await person.complete(fresh.file.id)
    further = await person.create(request_id="again")
    assert (further.file.id, further.file.state) == (old.file.id, file_pb2.FILE_STATE_CHECKING)
    assert not further.HasField("upload")
    with raises_status(StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"):
        await person.create(OTHER, request_id="again")


async def test_of_many_requests_with_one_id_at_once_one_makes_the_file(world: FileWorld) -> None:
    person = world.person()
    made = await asyncio.gather(*(person.create(request_id="once") for _ in range(16)))
    assert len({each.file.id for each in made}) == 1
    # Request ids are each person's own.
    assert (await world.person().create(request_id="once")).file.id != made[0].file.id


async def test_a_file_is_checked_once_however_often_and_concurrently_it_is_completed(world: FileWorld) -> None:
    person = world.person()
    file_id = await person.uploaded()
    states = {(await each).state for each in [asyncio.ensure_future(person.complete(file_id)) for _ in range(12)]}
    assert states == {file_pb2.FILE_STATE_CHECKING}
    assert await world.events() == [("FileUploaded", file_id)]
    await world.becomes(file_id, State.READY)
    assert (await person.complete(file_id)).state == file_pb2.FILE_STATE_READY
    assert await world.events() == [("FileUploaded", file_id)]


async def test_a_file_that_was_not_uploaded_in_time_or_was_given_up_cannot_be_completed(world: FileWorld) -> None:
    person = world.person()
    late, given_up = await person.uploaded(), await person.uploaded()
    aborted = await person.abort(given_up)
    assert (aborted.state, aborted.reason) == (file_pb2.FILE_STATE_EXPIRED, "UPLOAD_ABORTED")
    assert (await person.abort(given_up)) == aborted
    world.passed = timedelta(days=1, seconds=1)
    for file_id in (late, given_up):
        with raises_status(StatusCode.FAILED_PRECONDITION, "FILE_EXPIRED"):
            await person.complete(file_id)
        with raises_status(StatusCode.FAILED_PRECONDITION, "FILE_NOT_PENDING"):
            await person.sign_parts(file_id, (1, PDF))
    world.passed = timedelta()
    await person.complete(late)
    with raises_status(StatusCode.FAILED_PRECONDITION, "FILE_NOT_PENDING"):
        await person.abort(late)


async def test_a_file_that_is_deleted_while_it_is_checked_is_gone_for_everybody(world: FileWorld) -> None:
    person = world.person()
    file_id = await person.uploaded(request_id="mine")
    await person.complete(file_id)
    await person.delete(file_id)
    async with world.db.transaction() as tx:
        assert not await store.files.change(tx, UUID(file_id), within=list(State), state=State.READY)
    with raises_status(StatusCode.NOT_FOUND, "FILE_NOT_FOUND"):
        await person.complete(file_id)
    assert await world.events() == [("FileUploaded", file_id), ("FileErased", file_id)]
    # Its request id is free again.
    assert (await person.create(OTHER, request_id="mine")).file.id != file_id


@pytest.mark.parametrize("away", ["gone", "silent"])
async def test_while_the_store_is_away_calls_that_need_it_are_refused_and_nothing_is_lost(
    world: FileWorld, gate: Gate, away: str
) -> None:
    person = world.person()
    whole = await person.uploaded()
    in_parts = (await person.create()).file.id
    if away == "gone":
        gate.close()
    gate.silent = away == "silent"
    for refused in (person.complete(whole), person.sign_parts(in_parts, (1, PDF))):
        with pytest.raises(AioRpcError) as raised:
            await refused
        assert (raised.value.code(), reason_of(raised.value)) == (StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")
        retry = detail(raised.value, RetryInfo)
        assert retry
        assert retry.retry_delay.ToTimedelta() > timedelta()
    # Declaring and signing need Postgres alone, and the client has its own way to the store.
    meanwhile = await person.uploaded()
    assert await world.events() == []
    gate.open()
    assert (await person.complete(whole)).state == file_pb2.FILE_STATE_CHECKING
    assert (await person.complete(meanwhile)).state == file_pb2.FILE_STATE_CHECKING
    assert await person.sign_parts(in_parts, (1, PDF))


async def test_a_strangers_file_looks_like_one_that_does_not_exist(world: FileWorld) -> None:
    owner, stranger = world.person(), world.person()
    file_id = await owner.uploaded()

    async def refusals(person: Person, file_id: str) -> list[str]:
        found = []
        for call in (
            person.get(file_id),
            person.complete(file_id),
            person.abort(file_id),
            person.delete(file_id),
            person.download(file_id),
            person.sign_parts(file_id, (1, PDF)),
            person.parts(file_id),
        ):
            with pytest.raises(AioRpcError) as raised:
                await call
            found.append(f"{raised.value.code()} {raised.value.details()} {raised.value.trailing_metadata()}")
        return found

    theirs, none = await refusals(stranger, file_id), await refusals(stranger, str(uuid4()))
    assert theirs == none
    assert all("NOT_FOUND" in each for each in theirs)
    assert (await owner.get(file_id)).state == file_pb2.FILE_STATE_PENDING
