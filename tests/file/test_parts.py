"""Uploads by parts: resumed, listed, and put together."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import replace
from uuid import UUID

import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from grpc import StatusCode
from grpc.aio import AioRpcError
from storymesh.file.v1 import file_pb2

from kit.data.object_errors import ObjectMissing
from kit.data.objects import Part
from services.file.adapters.images.pool import ImagePool
from tests.file.conftest import MIB, FileWorld, Person, fetch, send
from tests.file.test_uploads import key_of
from tests.file.working import worker
from tests.statuses import detail, raises_status, violated_fields

DATA = bytes(range(256)) * (17 * MIB // 256) + b"the rest"
PART = 8 * MIB


def parts_of(data: bytes) -> list[tuple[int, bytes]]:
    return [(number, data[start : start + PART]) for number, start in enumerate(range(0, len(data), PART), start=1)]


def digested(parts: Iterable[Part], data: bytes) -> list[Part]:
    """Parts as the store lists them, with the digests that were declared."""
    return [replace(part, sha256=hashlib.sha256(parts_of(data)[part.number - 1][1]).digest()) for part in parts]


async def missing_part(person: Person, file_id: str) -> str:
    with pytest.raises(AioRpcError) as raised:
        await person.complete(file_id)
    info = detail(raised.value, ErrorInfo)
    assert info
    assert info.reason == "FILE_NOT_UPLOADED"
    return info.metadata.get("missing_part", "")


async def test_an_interrupted_upload_goes_on_with_the_parts_that_the_store_lacks(world: FileWorld) -> None:
    person, parts = world.person(), parts_of(DATA)
    created = (await person.create(DATA, media_type="text/plain")).file
    assert (created.part_size, len(parts)) == (PART, 3)
    assert await missing_part(person, created.id) == ""
    first, _, last = await person.sign_parts(created.id, *parts)
    assert await send(first, parts[0][1]) == 200
    # Other bytes than those of the checksum, more of them, another part's.
    refused = [
        await send(last, wrong, Content_Length=str(len(wrong))) for wrong in (b"the rust", DATA[-9:], parts[0][1])
    ]
    assert all(400 <= status < 500 for status in refused), refused
    assert await missing_part(person, created.id) == "2"
    assert await send(last, parts[2][1]) == 200

    # Another day, another process: what is there is listed.
    listed = await person.parts(created.id)
    assert [part.number for part in listed.parts] == [1, 3]
    assert [part.size for part in listed.parts] == [PART, len(parts[2][1])]
    page = await person.parts(created.id, page_size=1)
    assert [part.number for part in page.parts] == [1]
    rest = await person.parts(created.id, page_size=1, page_token=page.next_page_token)
    assert ([part.number for part in rest.parts], rest.next_page_token) == ([3], "")

    # A part may be sent again.
    (second,) = await person.sign_parts(created.id, parts[1])
    assert [await send(second, parts[1][1]), await send(second, parts[1][1])] == [200, 200]
    assert (await person.complete(created.id)).state == file_pb2.FILE_STATE_CHECKING
    assert (await person.complete(created.id)).state == file_pb2.FILE_STATE_CHECKING
    assert await send(second, parts[1][1]) in (403, 404)
    key = await key_of(world, created.id)
    assert b"".join([chunk async for chunk in world.objects.stream(key)]) == DATA


async def test_a_completion_that_was_broken_off_after_the_store_had_put_the_parts_together_is_repeated(
    world: FileWorld,
) -> None:
    person = world.person()
    file_id = (await person.create(DATA, media_type="text/plain")).file.id
    for signed, (_, data) in zip(await person.sign_parts(file_id, *parts_of(DATA)), parts_of(DATA), strict=True):
        assert await send(signed, data) == 200
    (upload,) = [each async for each in world.objects.list_uploads(await key_of(world, file_id))]
    checked = digested(await world.objects.list_parts(upload.key, upload.upload_id), DATA)
    await world.objects.complete_parts(upload.key, upload.upload_id, checked)
    assert (await person.complete(file_id)).state == file_pb2.FILE_STATE_CHECKING


async def test_parts_that_are_put_together_after_a_check_do_not_replace_what_was_checked(world: FileWorld) -> None:
    person = world.person()
    whole = b"%PDF-1.7" + DATA
    other = whole[::-1]
    created = await person.create(whole)
    file_id = created.file.id
    for signed, (_, part) in zip(await person.sign_parts(file_id, *parts_of(other)), parts_of(other), strict=True):
        assert await send(signed, part) == 200
    # What a completion has looked up that is overtaken by the PUT of the whole and by another completion.
    key = await key_of(world, file_id)
    (upload,) = [each async for each in world.objects.list_uploads(key)]
    listed = digested(await world.objects.list_parts(key, upload.upload_id), other)
    assert await send(created.upload, whole) == 200
    await person.complete(file_id)
    async with ImagePool(processes=1) as images:
        await worker(world, images).checking.check(UUID(file_id))
    assert (await person.get(file_id)).state == file_pb2.FILE_STATE_READY
    with pytest.raises(ObjectMissing):
        await world.objects.complete_parts(key, upload.upload_id, listed)
    assert (await fetch((await person.download(file_id)).download)).content == whole
    # Nor do they stay beside it, uncounted.
    assert not [each async for each in world.objects.list_uploads(key)]


async def test_parts_that_the_file_does_not_have_are_refused(world: FileWorld) -> None:
    person = world.person()
    file_id = (await person.create(DATA, media_type="text/plain")).file.id
    with pytest.raises(AioRpcError) as raised:
        await person.sign_parts(file_id, (1, b""), (4, b""), (1, b""))
    assert violated_fields(raised.value) == ["parts[1].number", "parts[2].number"]
    stranger = world.person()
    page = await person.parts(file_id)
    assert page.next_page_token == ""
    with raises_status(StatusCode.NOT_FOUND, "FILE_NOT_FOUND"):
        await stranger.parts(file_id)


async def test_a_file_of_five_gibibytes_comes_by_parts_alone(world: FileWorld) -> None:
    person = world.person()
    size = 5 * 1024 * MIB
    created = await person.create(size=size, sha256="0" * 64)
    assert not created.HasField("upload")
    last = size // PART
    assert len(await person.sign_parts(created.file.id, (last, b""))) == 1
    with raises_status(StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"):
        await person.sign_parts(created.file.id, (last + 1, b""))


async def test_a_download_takes_ranges_and_is_an_attachment_with_its_name(world: FileWorld) -> None:
    person = world.person()
    file_id = await world.ready(person, name='naïve "page" 100%.pdf')
    signed = await person.download(file_id)
    whole = await fetch(signed.download)
    assert (whole.status_code, len(whole.content)) == (200, signed.size)
    disposition = whole.headers["content-disposition"]
    assert disposition.startswith("attachment;")
    assert "filename*=UTF-8''na%C3%AFve%20" in disposition
    assert whole.headers["content-type"] == "application/pdf"
    part = await fetch(signed.download, Range="bytes=1-3")
    assert (part.status_code, part.content) == (206, b"PDF")
