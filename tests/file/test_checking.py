"""What becomes of an uploaded file: ready with what was made of it, or refused for a reason that stays."""

from __future__ import annotations

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from grpc import StatusCode
from PIL import Image
from storymesh.file.v1 import file_pb2

from kit.data.object_errors import ObjectStoreUnavailable
from kit.errors import Unavailable
from services.file.adapters.clamd import Clamd as Scanner
from services.file.adapters.clamd import ScannerUnavailable, ScanSizeExceeded
from services.file.adapters.images.pool import ImagePool
from services.file.operations import WorkerOperations
from services.file.operations.checking import ScannerAway
from tests.file.conftest import PDF, FileWorld, Person, fetch, send
from tests.file.gate import Gate
from tests.file.pictures import SECRET, endless, halves, photo, png, saved, with_metadata
from tests.file.scanners import EICAR, clamd
from tests.file.working import object_key, rows, stored, worker, working
from tests.statuses import raises_status
from tests.waiting import until

AVATAR: dict[str, Any] = {"purpose": file_pb2.FILE_PURPOSE_AVATAR, "name": "me.jpg", "media_type": "image/jpeg"}
ATTACHMENT = file_pb2.FILE_PURPOSE_MESSAGE_ATTACHMENT
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
XLSX = "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet"
ODT = "application/vnd.oasis.opendocument.text"
SCRIPT = b"<script>alert(1)</script>"


@pytest.fixture(scope="module")
async def images() -> AsyncIterator[ImagePool]:
    async with ImagePool(processes=2) as pool:
        yield pool


@pytest.fixture
def ops(world: FileWorld, images: ImagePool) -> WorkerOperations:
    return worker(world, images)


async def completed(person: Person, data: bytes, **changes: Any) -> str:
    file_id = await person.uploaded(data, **changes)
    await person.complete(file_id)
    return file_id


def archive(*names: str, mimetype: str = "") -> bytes:
    target = io.BytesIO()
    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as made:
        if mimetype:
            made.writestr(zipfile.ZipInfo("mimetype"), mimetype)
        for name in names:
            made.writestr(name, "content " * 2000)
    return target.getvalue()


async def test_an_image_becomes_renditions_and_its_original_is_gone_with_what_it_told(
    world: FileWorld, ops: WorkerOperations
) -> None:
    person = world.person()
    file_id = await completed(person, with_metadata(6), **AVATAR)
    key = await object_key(world, file_id)
    async with working(world, ops):
        await until(lambda: _is(person, file_id, file_pb2.FILE_STATE_READY))
    file = await person.get(file_id)
    assert [(each.target, each.width, each.height) for each in file.renditions] == [
        (96, 96, 96),
        (512, 200, 200),
        (1600, 200, 200),
    ]
    assert file.HasField("complete_time")
    assert not file.check_step
    token = key.removeprefix("uploads/")
    assert await stored(world) == {f"images/{token}/{size}" for size in (96, 512, 1600)}
    for target in (96, 512, 1600, 0):
        answer = await fetch((await person.download(file_id, target)).download)
        assert answer.headers["content-type"] == "image/webp"
        assert SECRET.encode() not in answer.content
        with Image.open(io.BytesIO(answer.content), formats=["WEBP"]) as image:
            assert image.size == ((96, 96) if target == 96 else (200, 200))
    assert [name for name, _ in await world.events()] == ["FileUploaded", "FileReady"]


@pytest.mark.parametrize("ends", ["ready", "refused", "aborted", "deleted", "erased"])
async def test_an_upload_that_is_replayed_after_its_bytes_were_removed_is_refused(
    world: FileWorld, ops: WorkerOperations, ends: str
) -> None:
    person, data = world.person(), photo() if ends == "ready" else b"\xff\xd8\xff no image"
    created = await person.create(data, **AVATAR)
    assert await send(created.upload, data) == 200
    if ends in ("ready", "refused"):
        await person.complete(created.file.id)
        await ops.checking.check(UUID(created.file.id))
    elif ends == "aborted":
        await person.abort(created.file.id)
        await ops.pruning.prune()
    elif ends == "deleted":
        await person.delete(created.file.id)
        await ops.removing.remove_hidden(UUID(created.file.id))
    else:
        await ops.erasing.erase(person.id)
    before = await stored(world)
    assert await send(created.upload, data) == 412
    assert await stored(world) == before
    # What refuses it goes once no signature is good any more, and nobody is told of it.
    world.passed = timedelta(days=1, seconds=5)
    found = await ops.sweeper.sweep()
    assert (len(found.seals), found.unneeded) == (1, frozenset())
    assert {each.key for each in (await world.objects.list("uploads/")).objects} == set()


async def _is(person: Person, file_id: str, state: int) -> bool:
    return (await person.get(file_id)).state == state


@pytest.mark.parametrize(
    ("data", "changes"),
    [
        (PDF, {}),
        (photo(), {"media_type": "image/jpeg"}),
        (saved(halves(), "GIF"), {"media_type": "image/gif", "purpose": ATTACHMENT}),
        ("héllo, wörld\r\n\tañb".encode() * 900, {"media_type": "text/plain", "purpose": ATTACHMENT}),
        (b"\xef\xbb\xbfa,b\n1,2\n", {"media_type": "text/csv"}),
        (b'{"a": 1}', {"media_type": "application/json"}),
        (archive("a.txt"), {"media_type": "application/zip"}),
        (archive("[Content_Types].xml", "_rels/.rels", "word/document.xml"), {"media_type": DOCX}),
        (archive("docProps/app.xml", "xl/workbook.xml", "[Content_Types].xml"), {"media_type": XLSX}),
        (archive("content.xml", mimetype=ODT), {"media_type": ODT}),
        (b"\0\0\0\x18ftypisom\0\0\0\0isommp42" + bytes(64), {"media_type": "video/mp4", "purpose": ATTACHMENT}),
        (b"\0\0\0\x18ftypiso5\0\0\0\0iso5iso6" + bytes(64), {"media_type": "audio/mp4", "purpose": ATTACHMENT}),
        (b"\x1a\x45\xdf\xa3\x9fB\x86\x81\x01B\x82\x84webm" + bytes(64), {"media_type": "audio/webm"}),
        (b"OggS" + bytes(64), {"media_type": "audio/ogg"}),
        (b"ID3\x04" + bytes(64), {"media_type": "audio/mpeg"}),
    ],
    ids=lambda value: value.get("media_type", "application/pdf") if isinstance(value, dict) else "",
)
async def test_what_is_what_it_was_declared_as_is_kept_as_it_is(
    world: FileWorld, ops: WorkerOperations, data: bytes, changes: dict[str, Any]
) -> None:
    person = world.person()
    file_id = await completed(person, data, **changes)
    await ops.checking.check(UUID(file_id))
    file = await person.get(file_id)
    assert (file.state, file.reason, list(file.renditions)) == (file_pb2.FILE_STATE_READY, "", [])
    answer = await fetch((await person.download(file_id)).download)
    assert answer.content == data
    assert answer.headers["content-disposition"].startswith("attachment;")


@pytest.mark.parametrize(
    ("data", "changes", "reason"),
    [
        (b"<html>" + SCRIPT, {}, "MEDIA_TYPE_MISMATCH"),
        (photo(), {}, "MEDIA_TYPE_MISMATCH"),
        (b" \n<html>" + SCRIPT, {"media_type": "text/plain"}, "MEDIA_TYPE_MISMATCH"),
        (b"\xef\xbb\xbf<?xml version='1.0'?><svg/>", {"media_type": "text/plain"}, "MEDIA_TYPE_MISMATCH"),
        (b"a\0b", {"media_type": "text/plain"}, "MEDIA_TYPE_MISMATCH"),
        (b"caf\xe9", {"media_type": "text/csv"}, "MEDIA_TYPE_MISMATCH"),
        ("<svg/>".encode("utf-16"), {"media_type": "text/plain"}, "MEDIA_TYPE_MISMATCH"),
        (b"MZ\x90" + bytes(100), {"media_type": "application/zip"}, "MEDIA_TYPE_MISMATCH"),
        (archive("a.txt"), {"media_type": DOCX}, "MEDIA_TYPE_MISMATCH"),
        (archive("[Content_Types].xml", "word/document.xml"), {"media_type": XLSX}, "MEDIA_TYPE_MISMATCH"),
        (archive("content.xml", mimetype="text/html"), {"media_type": ODT}, "MEDIA_TYPE_MISMATCH"),
        (b"PK\x03\x04" + SCRIPT * 9, {"media_type": "application/zip"}, "MEDIA_TYPE_MISMATCH"),
        (saved(halves(), "PNG"), AVATAR, "MEDIA_TYPE_MISMATCH"),
        (b"<svg>" + SCRIPT + b"</svg>", AVATAR, "MEDIA_TYPE_MISMATCH"),
        (saved(halves(), "GIF"), AVATAR, "MEDIA_TYPE_MISMATCH"),
        (photo()[:-300], AVATAR, "IMAGE_UNREADABLE"),
        (b"\xff\xd8\xff\xe0" + SCRIPT, AVATAR, "IMAGE_UNREADABLE"),
        (png(30_000, 30_000), {**AVATAR, "media_type": "image/png"}, "IMAGE_TOO_LARGE"),
    ],
)
async def test_what_is_something_else_is_refused_and_its_bytes_are_removed(
    world: FileWorld, ops: WorkerOperations, data: bytes, changes: dict[str, Any], reason: str
) -> None:
    person = world.person()
    file_id = await completed(person, data, **changes)
    await ops.checking.check(UUID(file_id))
    file = await person.get(file_id)
    assert (file.state, file.reason) == (file_pb2.FILE_STATE_REJECTED, reason)
    assert not await stored(world)
    assert [name for name, _ in await world.events()] == ["FileUploaded", "FileRejected"]
    with raises_status(StatusCode.FAILED_PRECONDITION, "FILE_NOT_READY"):
        await person.download(file_id)


async def test_the_digest_of_an_upload_by_parts_is_computed_from_its_bytes(
    world: FileWorld, ops: WorkerOperations
) -> None:
    person = world.person()
    whole = PDF + bytes(9 << 20)
    for data, changes, state in (
        (whole, {}, file_pb2.FILE_STATE_READY),
        (whole, {"sha256": "ab" * 32}, file_pb2.FILE_STATE_REJECTED),
    ):
        created = await person.create(data, **changes)
        parts = [
            (number + 1, data[at : at + created.file.part_size])
            for number, at in enumerate(range(0, len(data), created.file.part_size))
        ]
        for signed, (_, part) in zip(await person.sign_parts(created.file.id, *parts), parts, strict=True):
            assert await send(signed, part) == 200
        await person.complete(created.file.id)
        await ops.checking.check(UUID(created.file.id))
        file = await person.get(created.file.id)
        assert file.state == state
        assert file.reason == ("" if state == file_pb2.FILE_STATE_READY else "CHECKSUM_MISMATCH")


async def test_bytes_that_the_store_has_lost_or_changed_since_are_no_file(
    world: FileWorld, ops: WorkerOperations
) -> None:
    person = world.person()
    for change, reason in (
        ("lost", "CONTENT_LOST"),
        (PDF + b"more", "SIZE_MISMATCH"),
        (PDF[:-1] + b"!", "CHECKSUM_MISMATCH"),
    ):
        file_id = await completed(person, PDF)
        key = await object_key(world, file_id)
        await world.objects.delete([key])
        if isinstance(change, bytes):
            await world.objects.put(key, change, media_type="application/pdf")
        await ops.checking.check(UUID(file_id))
        assert (await person.get(file_id)).reason == reason


async def test_a_repeated_check_and_two_at_once_give_one_verdict(world: FileWorld, ops: WorkerOperations) -> None:
    person = world.person()
    file_id = await completed(person, photo(), **AVATAR)
    await asyncio.gather(*(ops.checking.check(UUID(file_id)) for _ in range(3)))
    before = await person.get(file_id)
    await ops.checking.check(UUID(file_id))
    assert await person.get(file_id) == before
    assert [name for name, _ in await world.events()] == ["FileUploaded", "FileReady"]
    assert len(await stored(world)) == 3


async def test_while_the_store_is_away_a_file_waits_and_nothing_is_lost(
    world: FileWorld, ops: WorkerOperations, gate: Gate
) -> None:
    person = world.person()
    file_id = await completed(person, photo(), **AVATAR)
    gate.close()
    with pytest.raises(ObjectStoreUnavailable):
        await ops.checking.check(UUID(file_id))
    async with working(world, ops):
        await until(lambda: _step(person, file_id, file_pb2.FILE_CHECK_STEP_VERIFYING))
        gate.open()
        await until(lambda: _is(person, file_id, file_pb2.FILE_STATE_READY))


async def test_a_verdict_stands_although_the_store_goes_away_before_the_bytes_are_removed(
    world: FileWorld, images: ImagePool, gate: Gate
) -> None:
    async with clamd() as scanner:
        ops = worker(world, images, Scanner(scanner.address, most_bytes=1000))
        person = world.person()
        file_id = await completed(person, EICAR, media_type="text/plain")
        scanner.may_reply.clear()
        checking = asyncio.create_task(ops.checking.check(UUID(file_id)))
        await until(lambda: len(scanner.streams) == 1)
        gate.close()
        scanner.may_reply.set()
        await checking
        assert (await person.get(file_id)).reason == "INFECTED"
        with pytest.raises(ObjectStoreUnavailable):
            await ops.pruning.prune()
        gate.open()
        assert await stored(world)
        await ops.pruning.prune()
        assert not await stored(world)


async def _step(person: Person, file_id: str, step: int) -> bool:
    return (await person.get(file_id)).check_step == step


@pytest.mark.parametrize("by", ["owner", "erasure"])
async def test_a_file_that_is_deleted_while_it_is_checked_leaves_nothing(
    world: FileWorld, images: ImagePool, by: str
) -> None:
    async with clamd() as scanner:
        ops = worker(world, images, Scanner(scanner.address, most_bytes=1 << 20))
        person = world.person()
        file_id = await completed(person, photo(), **AVATAR)
        scanner.may_reply.clear()
        checking = asyncio.create_task(ops.checking.check(UUID(file_id)))
        await until(lambda: _step(person, file_id, file_pb2.FILE_CHECK_STEP_SCANNING))
        if by == "owner":
            await person.delete(file_id)
            await ops.removing.remove_hidden(UUID(file_id))
        else:
            await ops.erasing.erase(person.id)
        scanner.may_reply.set()
        await checking
        assert not await stored(world)
        assert not await rows(world)
        assert "FileReady" not in {name for name, _ in await world.events()}


async def test_a_file_that_is_deleted_while_images_are_made_of_it_leaves_nothing(
    world: FileWorld, ops: WorkerOperations
) -> None:
    person = world.person()
    file_id = await completed(person, endless(60), **{**AVATAR, "purpose": file_pb2.FILE_PURPOSE_POST_PHOTO})
    checking = asyncio.create_task(ops.checking.check(UUID(file_id)))
    await until(lambda: _step(person, file_id, file_pb2.FILE_CHECK_STEP_RENDERING))
    await person.delete(file_id)
    await ops.removing.remove_hidden(UUID(file_id))
    await checking
    assert not await stored(world)
    assert not await rows(world)


async def test_what_a_scanner_finds_is_refused_and_without_a_verdict_nothing_is_handed_out(
    world: FileWorld, images: ImagePool
) -> None:
    async with clamd() as scanner:
        ops = worker(world, images, Scanner(scanner.address, most_bytes=1000, silent_seconds=0.3))
        person = world.person()
        clean, infected = b"nothing bad", b"behold: " + EICAR
        for data, reason in ((clean, ""), (infected, "INFECTED"), (b"a" * 1001, "TOO_LARGE_TO_SCAN")):
            file_id = await completed(person, data, media_type="text/plain")
            await ops.checking.check(UUID(file_id))
            file = await person.get(file_id)
            assert (file.state, file.reason) == (5 - bool(not reason) - 1, reason)
        assert scanner.streams == [clean, infected]
        file_id = await completed(person, clean, media_type="text/plain")
        for reply in (b"stream: lstat() failed. ERROR", b"stream: OK stream: OK", b"", b"stream: FOUND"):
            scanner.reply = reply or b" "
            with pytest.raises(ScannerAway) as refused:
                await ops.checking.check(UUID(file_id))
            assert isinstance(refused.value, Unavailable)
            assert (await person.get(file_id)).check_step == file_pb2.FILE_CHECK_STEP_SCANNING
        scanner.reply = None
        scanner.may_reply.clear()
        with pytest.raises(ScannerAway):
            await ops.checking.check(UUID(file_id))
        scanner.may_reply.set()
        async with working(world, ops):
            await until(lambda: _is(person, file_id, file_pb2.FILE_STATE_READY))


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def test_a_scanner_is_asked_over_either_kind_of_socket_and_never_trusted_with_half_a_file(tmp_path: Path) -> None:
    for socket in (None, tmp_path / "clamd"):
        async with clamd(socket) as served:
            scanner = Scanner(served.address, most_bytes=10 << 20)
            await scanner.check()
            big = bytes(3 << 20)
            assert await scanner.scan(chunks(big, EICAR), size=len(big)) == "Eicar-Test-Signature"
            assert await scanner.scan(chunks(big, b"a"), size=len(big)) is None
            assert served.streams[-1] == big + b"a"
            served.stream_max = 1000
            with pytest.raises((ScanSizeExceeded, ScannerUnavailable)):
                await scanner.scan(chunks(*[bytes(1 << 20)] * 9), size=9 << 20)
            served.reply = b"stream: OK"
            with pytest.raises(ScannerUnavailable):
                await scanner.scan(chunks(*[bytes(1 << 20)] * 9), size=9 << 20)
    with pytest.raises(ScannerUnavailable):
        await scanner.check()


async def test_a_check_that_was_lost_is_asked_for_again_and_one_that_nobody_can_do_is_given_up(
    world: FileWorld, ops: WorkerOperations
) -> None:
    person = world.person()
    file_id = await completed(person, PDF)
    async with world.db.transaction() as tx:
        await tx.exec_driver_sql("DELETE FROM outbox")
    assert await ops.lost_checks.look() == 0
    world.passed = timedelta(minutes=6)
    assert await ops.lost_checks.look() == 1
    assert await ops.lost_checks.look() == 0
    assert await world.events() == [("FileUploaded", file_id)]
    world.passed = timedelta(days=2, minutes=1)
    await ops.pruning.prune()
    file = await person.get(file_id)
    assert (file.state, file.reason) == (file_pb2.FILE_STATE_REJECTED, "CHECK_FAILED")
    assert [name for name, _ in await world.events()] == ["FileUploaded", "FileRejected"]
    assert not await stored(world)
