"""Claims of services, what they keep, and what is signed for those who may see a file."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from google.protobuf.duration_pb2 import Duration
from grpc import StatusCode
from grpc.aio import AioRpcError
from sqlalchemy import insert
from storymesh.events.v1 import file_events_pb2 as events
from storymesh.file.v1 import file_claim_service_pb2 as pb
from storymesh.file.v1 import file_pb2
from uuid_utils.compat import uuid7

from kit.events.envelope import Event
from kit.events.handlers import Later
from kit.runtime.clock import system_clock
from services.file.model import State
from services.file.model.purposes import Purpose
from services.file.tables import file_renditions
from tests.file.conftest import FileWorld, Person, fetch
from tests.statuses import raises_status

HOLDER = "social:avatar:ada"
OTHER = "social:avatar:bob"
ATTACHMENT = file_pb2.FILE_PURPOSE_MESSAGE_ATTACHMENT


async def claim(
    world: FileWorld,
    person: Person,
    *file_ids: str,
    holder: str = HOLDER,
    purpose: file_pb2.FilePurpose.ValueType = ATTACHMENT,
) -> Sequence[file_pb2.File]:
    request = pb.ClaimFilesRequest(holder=holder, owner_id=str(person.id), file_ids=file_ids, purpose=purpose)
    return (await world.claims.ClaimFiles(request, metadata=world.service_auth)).files


def event() -> Event:
    message = events.FileClaimsConfirmed()
    return Event(uuid7(), message.DESCRIPTOR.full_name, HOLDER, system_clock(), "", b"")


async def confirm(world: FileWorld, *file_ids: str, holder: str = HOLDER, once: Event | None = None) -> None:
    await world.ops.claims.take_confirmation(once or event(), holder, [UUID(each) for each in file_ids])


async def release(world: FileWorld, *file_ids: str, holder: str = HOLDER) -> None:
    request = pb.ReleaseFilesRequest(holder=holder, file_ids=file_ids)
    await world.claims.ReleaseFiles(request, metadata=world.service_auth)


async def attached(world: FileWorld, person: Person) -> str:
    return await world.ready(person, purpose=ATTACHMENT)


async def test_a_file_that_something_shows_is_not_deleted_by_its_owner(world: FileWorld) -> None:
    person = world.person()
    file_id = await attached(world, person)
    assert [file.id for file in await claim(world, person, file_id)] == [file_id]
    await claim(world, person, file_id)
    assert (await person.get(file_id)).claimed
    with raises_status(StatusCode.FAILED_PRECONDITION, "FILE_IN_USE"):
        await person.delete(file_id)
    # A claim that nobody confirms ends by itself.
    world.passed = timedelta(hours=1, seconds=1)
    await person.delete(file_id)


async def test_a_confirmed_claim_lasts_and_its_end_deletes_what_nothing_else_shows(world: FileWorld) -> None:
    person = world.person()
    file_id = await attached(world, person)
    for holder in (HOLDER, OTHER):
        await claim(world, person, file_id, holder=holder)
        await confirm(world, file_id, holder=holder)
    world.passed = timedelta(days=30)
    # Claiming again does not make a lasting claim tentative.
    await world.ops.claims.claim(HOLDER, person.id, [UUID(file_id)], Purpose.MESSAGE_ATTACHMENT)
    world.passed = timedelta(days=60)
    with raises_status(StatusCode.FAILED_PRECONDITION, "FILE_IN_USE"):
        await person.delete(file_id)
    world.passed = timedelta()
    await release(world, file_id)
    await release(world, file_id)
    assert (await person.get(file_id)).claimed
    await release(world, file_id, holder=OTHER)
    with raises_status(StatusCode.NOT_FOUND, "FILE_NOT_FOUND"):
        await person.get(file_id)
    assert (await world.events())[-1] == ("FileErased", file_id)


async def test_documents_and_files_that_were_never_shown_stay_when_a_claim_ends(world: FileWorld) -> None:
    person = world.person()
    document, tentative = await world.ready(person), await attached(world, person)
    await claim(world, person, document, purpose=file_pb2.FILE_PURPOSE_DOCUMENT)
    await claim(world, person, tentative)
    await confirm(world, document)
    await release(world, document, tentative, str(uuid4()))
    for file_id in (document, tentative):
        assert not (await person.get(file_id)).claimed


async def test_an_event_that_comes_again_after_its_claim_has_ended_changes_nothing(world: FileWorld) -> None:
    person = world.person()
    file_id = await world.ready(person)
    await claim(world, person, file_id, purpose=file_pb2.FILE_PURPOSE_DOCUMENT)
    confirmation = event()
    await confirm(world, file_id, once=confirmation)
    await release(world, file_id)
    await confirm(world, file_id, once=confirmation)
    assert not (await person.get(file_id)).claimed


async def test_a_release_that_overtakes_its_confirmation_waits_for_it(world: FileWorld) -> None:
    person = world.person()
    shown, lapsed = await attached(world, person), await attached(world, person)
    await claim(world, person, shown)
    released = event()
    with pytest.raises(Later):
        await world.ops.claims.take_release(released, HOLDER, [UUID(shown)])
    await confirm(world, shown)
    await world.ops.claims.take_release(released, HOLDER, [UUID(shown)])
    with raises_status(StatusCode.NOT_FOUND, "FILE_NOT_FOUND"):
        await person.get(shown)
    # A confirmation that never comes is not waited for longer than its claim lasts.
    await claim(world, person, lapsed)
    world.passed = timedelta(hours=1, seconds=1)
    await world.ops.claims.take_release(event(), HOLDER, [UUID(lapsed)])
    await person.delete(lapsed)


async def test_a_file_has_a_hundred_holders_at_most(world: FileWorld) -> None:
    person = world.person()
    file_id = await attached(world, person)
    for number in range(99):
        await confirm(world, file_id, holder=f"chat:message:{number}")
    await claim(world, person, file_id)
    with raises_status(StatusCode.RESOURCE_EXHAUSTED, "FILE_CLAIM_LIMIT"):
        await claim(world, person, file_id, holder=OTHER)
    await claim(world, person, file_id)


async def test_a_holder_that_confirms_too_late_is_told_that_the_file_is_gone(world: FileWorld) -> None:
    person = world.person()
    there, gone = await attached(world, person), await attached(world, person)
    await claim(world, person, there, gone)
    world.passed = timedelta(hours=2)
    await person.delete(gone)
    before = await world.events()
    await confirm(world, there, gone)
    assert await world.events() == [*before, ("FileErased", gone)]
    assert (await person.get(there)).claimed


async def test_claims_are_made_for_ready_files_of_their_owner_and_purpose_all_or_none(world: FileWorld) -> None:
    person, stranger = world.person(), world.person()
    ready, pending = await attached(world, person), await person.uploaded(purpose=ATTACHMENT)
    rejected, document = await person.uploaded(purpose=ATTACHMENT), await world.ready(person)
    await world.becomes(rejected, State.REJECTED)
    for bad, reason in (
        (pending, "FILE_NOT_READY"),
        (rejected, "FILE_NOT_READY"),
        (document, "FILE_PURPOSE_MISMATCH"),
    ):
        with raises_status(StatusCode.FAILED_PRECONDITION, reason):
            await claim(world, person, ready, bad)
    for owner, file_id in ((stranger, ready), (person, str(uuid4()))):
        with raises_status(StatusCode.NOT_FOUND, "FILE_NOT_FOUND"):
            await claim(world, owner, file_id)
    assert not (await person.get(ready)).claimed


async def test_of_a_claim_and_a_deletion_at_once_one_wins(world: FileWorld) -> None:
    person = world.person()
    for file_id in [await attached(world, person) for _ in range(8)]:
        claimed, deleted = await asyncio.gather(
            claim(world, person, file_id), person.delete(file_id), return_exceptions=True
        )
        assert isinstance(claimed, AioRpcError) != isinstance(deleted, AioRpcError)


async def test_people_neither_claim_nor_sign(world: FileWorld) -> None:
    person = world.person()
    for call in (
        world.claims.SignFiles(pb.SignFilesRequest(file_ids=[str(uuid4())]), metadata=person.auth),
        world.claims.ReleaseFiles(pb.ReleaseFilesRequest(holder=HOLDER, file_ids=[str(uuid4())]), metadata=person.auth),
    ):
        with pytest.raises(AioRpcError) as raised:
            await call
        assert raised.value.code() is StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("purpose", "named"),
    [
        (file_pb2.FILE_PURPOSE_AVATAR, False),
        (file_pb2.FILE_PURPOSE_POST_PHOTO, False),
        (file_pb2.FILE_PURPOSE_MESSAGE_ATTACHMENT, True),
    ],
)
async def test_a_picture_that_is_shown_to_others_does_not_tell_its_name(
    world: FileWorld, purpose: file_pb2.FilePurpose.ValueType, named: bool
) -> None:
    person = world.person()
    picture = await world.ready(person, purpose=purpose, media_type="image/png", name="clinic.png")
    async with world.db.transaction() as tx:
        key = f"images/{uuid4().hex}"
        await world.objects.put(key, b"W", media_type="image/webp")
        values = {"object_key": key, "width": 96, "height": 96, "size": 1}
        await tx.execute(insert(file_renditions).values(file_id=UUID(picture), target=96, **values))
    request = pb.SignFilesRequest(file_ids=[picture], target=96)
    (shown,) = (await world.claims.SignFiles(request, metadata=world.service_auth)).files
    answer = await fetch(shown.download)
    assert ("clinic" in shown.download.url, "clinic" in answer.headers["content-disposition"]) == (named, named)
    assert answer.headers["content-disposition"].startswith("inline")
    own = await fetch((await person.download(picture)).download)
    assert own.headers["content-disposition"].startswith('inline; filename="clinic.webp"')


async def test_what_is_signed_is_a_rendition_or_an_attachment_and_only_of_ready_files(world: FileWorld) -> None:
    person = world.person()
    document, pending = await world.ready(person), await person.uploaded()
    picture = await world.ready(person, purpose=file_pb2.FILE_PURPOSE_AVATAR, media_type="image/png", name="me.png")
    async with world.db.transaction() as tx:
        for target in (96, 512):
            key = f"images/{uuid4().hex}"
            await world.objects.put(key, b"W" * target, media_type="image/webp")
            values = {"object_key": key, "width": target, "height": 48, "size": target}
            await tx.execute(insert(file_renditions).values(file_id=UUID(picture), target=target, **values))

    async def signed(target: int = 0) -> Sequence[pb.SignedFile]:
        request = pb.SignFilesRequest(
            file_ids=[picture, str(uuid4()), pending, document], target=target, valid_for=Duration(seconds=3600)
        )
        return (await world.claims.SignFiles(request, metadata=world.service_auth)).files

    small, whole = await signed(96)
    assert (small.file_id, small.width, small.height, small.media_type) == (picture, 96, 48, "image/webp")
    assert (whole.file_id, whole.width, whole.name) == (document, 0, "page.pdf")
    shown, saved = await fetch(small.download), await fetch(whole.download)
    assert (shown.content, shown.headers["content-type"]) == (b"W" * 96, "image/webp")
    assert shown.headers["content-disposition"] == "inline"
    assert saved.headers["content-disposition"].startswith("attachment;")
    # The largest that there is; a picture without one of the target is left out.
    assert (await signed())[0].size == 512
    assert [each.file_id for each in await signed(1600)] == [document]

    assert (await person.download(picture)).size == 512
    with raises_status(StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"):
        await person.download(document, 96)
    with raises_status(StatusCode.FAILED_PRECONDITION, "FILE_NOT_READY"):
        await person.download(pending)
