"""Files of a disk, uploaded and downloaded by the client through a way that breaks, to the file service and SeaweedFS."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from storymesh.file.v1 import file_pb2
from storymesh.file.v1 import file_service_pb2 as pb

from kit.data.objects import ObjectStore
from services.file.model import State
from storymesh_client import MemoryTokens, Storymesh, StorymeshError, Tokens, TransferFailed, downloads, uploads
from storymesh_client.tokens import Kept
from tests.file.conftest import FileWorld
from tests.file.store_way import StoreWay, way_to

MIB = 1024 * 1024
PART = 8 * MIB


@pytest.fixture
async def way(object_store: ObjectStore) -> AsyncIterator[StoreWay]:
    async with way_to(object_store.endpoint) as opened:
        yield opened


@pytest.fixture
def changes(way: StoreWay) -> dict[str, Any]:
    return {"s3_public_endpoint": way.endpoint}


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(uploads, "_PAUSE_SECONDS", 0.01)


@pytest.fixture
async def mesh(world: FileWorld) -> AsyncIterator[Storymesh]:
    """Signed in at the service itself."""
    target = await world.server.address
    tokens = MemoryTokens()
    later = datetime.now(UTC) + timedelta(hours=1)
    tokens.change(target, lambda _: Kept(Tokens(world.issuer.token(uuid4()), later, "refresh", later)))
    async with Storymesh(target, tokens=tokens) as client:
        yield client


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "page.pdf"
    path.write_bytes(b"%PDF-1.7\n" + os.urandom(100_000))
    return path


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Three parts."""
    path = tmp_path / "a  long book.pdf"
    path.write_bytes(b"%PDF-1.7\n" + os.urandom(2 * PART + MIB))
    return path


def size_of(path: Path) -> int:
    return path.stat().st_size


def content(path: Path) -> bytes:
    return path.read_bytes()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


async def ready(world: FileWorld, file: file_pb2.File) -> None:
    await world.becomes(file.id, State.READY, completed_at=datetime.now(UTC))


@pytest.mark.parametrize("name", ["small", "large"])
async def test_a_file_comes_back_as_it_went(
    mesh: Storymesh,
    world: FileWorld,
    way: StoreWay,
    tmp_path: Path,
    name: str,
    request: pytest.FixtureRequest,
) -> None:
    source: Path = request.getfixturevalue(name)
    told: list[tuple[int, int]] = []
    file = await mesh.upload(source, wait=False, progress=lambda done, size: told.append((done, size)))
    size = size_of(source)
    assert (file.name.split(), file.size, file.media_type) == (source.name.split(), size, "application/pdf")
    assert file.state == file_pb2.FILE_STATE_CHECKING
    assert told[-1] == (size, size)
    assert max(done for done, _ in told) == size
    assert way.most <= 4
    await ready(world, file)
    for _ in range(2):
        await mesh.download(file.id, tmp_path / "back")
        assert content(tmp_path / "back") == content(source)
    assert names(tmp_path) == sorted([source.name, "back"])


async def test_connections_that_break_and_answers_that_are_lost_cost_only_repetitions(
    mesh: Storymesh, way: StoreWay, small: Path, large: Path
) -> None:
    way.cuts = [3 * MIB, 100, 5 * MIB, 0]
    told: list[int] = []
    file = await mesh.upload(large, wait=False, progress=lambda done, size: told.append(done))
    assert file.state == file_pb2.FILE_STATE_CHECKING
    assert told[-1] == size_of(large)
    assert min(told) >= 0
    way.cuts, way.lost_answers = [50_000], 2
    assert (await mesh.upload(small, wait=False)).state == file_pb2.FILE_STATE_CHECKING


async def test_an_interrupted_upload_goes_on_with_the_parts_that_are_missing(
    mesh: Storymesh, way: StoreWay, large: Path, tmp_path: Path
) -> None:
    def close_after_a_part(done: int, size: int) -> None:
        if done > PART + MIB and way.sent > PART + MIB:
            way.is_open = False

    with pytest.raises(TransferFailed) as failure:
        await mesh.upload(large, progress=close_after_a_part)
    assert failure.value.may_resume
    way.is_open, way.before = True, lambda: None
    pending = (await mesh.files.ListFiles(pb.ListFilesRequest(state=file_pb2.FILE_STATE_PENDING))).files
    there = (await mesh.files.ListFileParts(pb.ListFilePartsRequest(file_id=pending[0].id))).parts
    way.sent = 0

    other = tmp_path / "elsewhere" / large.name
    other.parent.mkdir()
    other.write_bytes(content(large)[:-1] + b"!")
    another = await mesh.upload(other, resume=True, wait=False)
    assert another.id != pending[0].id
    way.sent = 0
    file = await mesh.upload(large, resume=True, wait=False)

    assert (file.id, file.state) == (pending[0].id, file_pb2.FILE_STATE_CHECKING)
    missing = size_of(large) - sum(part.size for part in there)
    assert missing <= way.sent < missing + MIB
    again = await mesh.upload(large, resume=True, wait=False)
    assert again.id != file.id


async def test_what_was_uploaded_and_not_completed_is_completed_without_sending_it_again(
    mesh: Storymesh, way: StoreWay, small: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(self: object, file: object) -> None:
        raise asyncio.CancelledError

    with monkeypatch.context() as patched:
        patched.setattr(uploads.Upload, "_complete", broken)
        with pytest.raises(asyncio.CancelledError):
            await mesh.upload(small)
    way.sent = 0
    file = await mesh.upload(small, resume=True, wait=False)
    assert (file.state, way.sent) == (file_pb2.FILE_STATE_CHECKING, 0)


async def test_a_signature_that_expired_on_the_way_is_asked_for_again(
    mesh: Storymesh,
    world: FileWorld,
    way: StoreWay,
    small: Path,
    large: Path,
    tmp_path: Path,
) -> None:
    def set_right() -> None:
        world.passed = timedelta()

    for path in (small, large):
        way.before, world.passed = set_right, -timedelta(hours=2)
        file = await mesh.upload(path, wait=False)
        assert file.state == file_pb2.FILE_STATE_CHECKING
    await ready(world, file)
    world.passed = -timedelta(hours=2)
    await mesh.download(file.id, tmp_path / "back")
    assert content(tmp_path / "back") == content(large)


async def test_a_download_that_broke_goes_on_and_is_seen_when_it_is_whole(
    mesh: Storymesh,
    world: FileWorld,
    way: StoreWay,
    large: Path,
    tmp_path: Path,
) -> None:
    file = await mesh.upload(large, wait=False)
    await ready(world, file)
    target = tmp_path / "back"
    target.write_bytes(b"the former one")

    def close_halfway(done: int, size: int) -> None:
        way.is_open = done < size // 2

    with pytest.raises(TransferFailed) as failure:
        await mesh.download(file.id, target, progress=close_halfway)
    assert failure.value.may_resume
    assert content(target) == b"the former one"
    part = tmp_path / f".back.{file.id}-0.part"
    assert os.stat(part).st_mode & 0o077 == 0
    have, way.is_open, way.received = size_of(part), True, 0
    assert have > 0

    await mesh.download(file.id, target)

    assert content(target) == content(large)
    assert way.received < size_of(large) - have + MIB
    assert part.name not in names(tmp_path)


async def test_bytes_that_are_not_the_file_s_are_thrown_away(
    mesh: Storymesh,
    world: FileWorld,
    way: StoreWay,
    small: Path,
    tmp_path: Path,
) -> None:
    file = await mesh.upload(small, wait=False)
    await ready(world, file)
    target, whole = tmp_path / "back", content(small)
    way.spoil = lambda data: data.replace(whole[5000:5100], bytes(100))
    with pytest.raises(TransferFailed, match="checksum"):
        await mesh.download(file.id, target)
    way.spoil = bytes
    # What a former attempt left is longer than the file, or other bytes.
    beginning = tmp_path / f".back.{file.id}-0.part"
    beginning.write_bytes(bytes(len(whole) + 1))
    await mesh.download(file.id, target)
    assert content(target) == whole
    beginning.write_bytes(bytes(1000))
    with pytest.raises(TransferFailed, match="checksum"):
        await mesh.download(file.id, target)
    assert content(target) == whole
    assert beginning.name not in names(tmp_path)


async def test_a_download_follows_no_link_and_no_name_of_the_server(
    mesh: Storymesh,
    world: FileWorld,
    small: Path,
    tmp_path: Path,
) -> None:
    file = await mesh.upload(small, wait=False)
    await ready(world, file)
    precious = tmp_path / "precious"
    precious.write_text("precious")
    (tmp_path / f".back.{file.id}-0.part").symlink_to(precious)
    with pytest.raises(OSError, match="symbolic links"):
        await mesh.download(file.id, tmp_path / "back")
    assert precious.read_text() == "precious"


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("holiday.jpg", "holiday.jpg"),
        ("Grüße 日本.pdf", "Grüße 日本.pdf"),
        ("../../etc/passwd", "passwd"),
        ("/etc/passwd", "passwd"),
        ("..\\..\\boot.ini", "boot.ini"),
        ("C:evil.exe", "the-id"),
        ("..", "the-id"),
        (".", "the-id"),
        ("...", "the-id"),
        ("", "the-id"),
        (".bashrc", "the-id"),
        ("a/", "the-id"),
        ("a\x00b\n\x1b[31m.txt", "ab[31m.txt"),
        ("gpj.\u202efdp.exe", "gpj.fdp.exe"),
        ("n" * 255, "the-id"),
    ],
)
def test_a_name_of_the_mesh_becomes_a_harmless_one_here(name: str, safe: str) -> None:
    assert downloads.safe_name(name, "the-id") == safe


@pytest.mark.parametrize(
    ("file_id", "safe"), [("../../.bashrc", "download"), ("/etc/passwd", "passwd"), ("", "download")]
)
def test_an_id_that_the_mesh_tells_leads_nowhere_either(file_id: str, safe: str) -> None:
    assert downloads.safe_name("..", file_id) == safe


async def test_what_cannot_be_uploaded_is_told(mesh: Storymesh, tmp_path: Path, small: Path) -> None:
    empty = tmp_path / "empty.pdf"
    empty.touch()
    with pytest.raises(TransferFailed, match="is empty"):
        await mesh.upload(empty)
    with pytest.raises(TransferFailed, match="is no file"):
        await mesh.upload(tmp_path)
    with pytest.raises(FileNotFoundError):
        await mesh.upload(tmp_path / "absent")
    with pytest.raises(ValueError, match="FILE_PURPOSE_NOTHING"):
        await mesh.upload(small, purpose="nothing")
    with pytest.raises(StorymeshError) as refused:
        await mesh.upload(small, purpose="avatar")
    assert refused.value.reason == "INVALID_ARGUMENT"

    def change(done: int, size: int) -> None:
        os.utime(small, ns=(1, 1))

    with pytest.raises(TransferFailed, match="was changed"):
        await mesh.upload(small, progress=change)
    # What nobody can go on with counts for no quota.
    listed = (await mesh.files.ListFiles(pb.ListFilesRequest())).files
    assert {(each.state, each.reason) for each in listed} == {(file_pb2.FILE_STATE_EXPIRED, "UPLOAD_ABORTED")}
    with pytest.raises(StorymeshError) as absent:
        await mesh.download(str(uuid4()), tmp_path / "back")
    assert absent.value.reason == "FILE_NOT_FOUND"


async def test_a_cancelled_transfer_ends_at_once(mesh: Storymesh, way: StoreWay, large: Path) -> None:
    begun = asyncio.Event()

    def stand_still(done: int, size: int) -> None:
        if done:
            begun.set()

    upload = asyncio.create_task(mesh.upload(large, progress=stand_still))
    await asyncio.wait_for(begun.wait(), 30)
    upload.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(upload, 10)
