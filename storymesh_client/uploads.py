"""Uploads a file of the disk: declared to the mesh, sent to the object store in one piece or in parts, resumed where it broke."""

from __future__ import annotations

import asyncio
import contextlib
import mimetypes
import os
import random
import uuid
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from grpc import StatusCode
from storymesh.file.v1 import file_pb2
from storymesh.file.v1 import file_service_pb2 as pb
from storymesh.stubs import Stubs

from .errors import StorymeshError, TransferFailed
from .transfers import PARALLEL, Changed, Interrupted, Refused, Transfers

Progress = Callable[[int, int], None]
"""Is told how many bytes are there, and of how many."""

TRIES = 6
"""For each piece, with pauses between them that double."""

_PAUSE_SECONDS = 0.25
_LONGEST_PAUSE_SECONDS = 10.0
_WHOLE_BYTES = 16 << 20
"""Up to this size a file goes in one piece: if it breaks, little is lost."""

_PARTS_SIGNED_AT_ONCE = 16
_ROUNDS = 3
"""How often parts that the store lacks in the end are sent again."""

_PAGE = 100
_PAGE_OF_PARTS = 1000
_PURPOSES = "FILE_PURPOSE_"
_UNKNOWN_TYPE = "application/octet-stream"

PRECONDITION_FAILED, FORBIDDEN, NOT_FOUND, BAD_REQUEST = 412, 403, 404, 400

T = TypeVar("T")


def no_progress(done: int, size: int) -> None:
    """Tells nobody."""


@dataclass(frozen=True)
class Source:
    """A file of the disk, as it was when the upload began."""

    path: str
    size: int
    changed_at: int
    sha256: bytes

    @classmethod
    async def of(cls, path: Path, transfers: Transfers) -> Source:
        """Reads the file once. Raises OSError, and TransferFailed for what is no file with bytes."""
        found = await asyncio.to_thread(path.stat)
        if not await asyncio.to_thread(path.is_file):
            raise TransferFailed(f"{path} is no file.")
        if not found.st_size:
            raise TransferFailed(f"{path} is empty.")
        digest = await transfers.digest(str(path), size=found.st_size)
        return cls(str(path), found.st_size, found.st_mtime_ns, digest)

    def require_unchanged(self) -> None:
        """Raises Changed."""
        now = os.stat(self.path)
        if (now.st_size, now.st_mtime_ns) != (self.size, self.changed_at):
            raise Changed("the file was changed while it was uploaded")


def media_type_of(path: Path) -> str:
    """By the name's ending."""
    found, encoding = mimetypes.guess_type(path.name)
    return found if found and not encoding else _UNKNOWN_TYPE


def purpose(name: str) -> file_pb2.FilePurpose.ValueType:
    """By its name in lower case, such as `document`. Raises ValueError."""
    return file_pb2.FilePurpose.Value(_PURPOSES + name.upper())


class Upload:
    """One upload of one file."""

    def __init__(self, mesh: Stubs, transfers: Transfers, source: Source, progress: Progress) -> None:
        self._mesh = mesh
        self._transfers = transfers
        self._source = source
        self._progress = progress
        self._loop = asyncio.get_running_loop()
        self._done = 0

    async def run(self, request: pb.CreateFileRequest, *, resume: bool) -> file_pb2.File:
        """The file, uploaded and handed to the checks. Raises StorymeshError and TransferFailed."""
        file: file_pb2.File | None = None
        try:
            file = await self._pending(request) if resume else None
            if file is None:
                request.request_id = str(uuid.uuid4())
                created = await patiently(lambda: self._mesh.files.CreateFile(request))
                file = created.file
                if created.HasField("upload") and file.size <= _WHOLE_BYTES:
                    await self._send_whole(request, created)
                    return await self._complete(file)
            # It may be there already, if the last attempt broke between its end and our word that it was complete.
            elif completed := await self._completed(file):
                return completed
            return await self._send_parts(file)
        except Changed as error:
            await self._give_up(file)
            raise TransferFailed(f"{self._source.path}: {error}; upload it again.") from None
        except Interrupted:
            raise TransferFailed("The object store does not answer.", may_resume=True) from None
        except Refused as refusal:
            await self._give_up(file)
            raise TransferFailed(f"The object store refuses the bytes (status {refusal.status}).") from None

    async def _give_up(self, file: file_pb2.File | None) -> None:
        """Have the mesh drop what nobody can go on with; otherwise it counts for the quotas until it expires."""
        if file is not None:
            with contextlib.suppress(StorymeshError):
                await self._mesh.files.AbortFile(pb.AbortFileRequest(file_id=file.id))

    async def _pending(self, request: pb.CreateFileRequest) -> file_pb2.File | None:
        """An upload of the same bytes for the same purpose, under the same name, that was not completed."""
        name = _plain(request.name)
        listing = pb.ListFilesRequest(page_size=_PAGE, state=file_pb2.FILE_STATE_PENDING, purpose=request.purpose)
        while True:
            page = await patiently(lambda: self._mesh.files.ListFiles(listing))
            for file in page.files:
                if (file.sha256, file.size, _plain(file.name), file.media_type) == (
                    *(request.sha256, request.size, name, request.media_type),
                ):
                    return file
            if not page.next_page_token:
                return None
            listing.page_token = page.next_page_token

    async def _send_whole(self, request: pb.CreateFileRequest, created: pb.CreateFileResponse) -> None:
        signed = created.upload

        async def send() -> None:
            nonlocal signed
            try:
                await self._send(signed, 0, self._source.size)
            except Refused as refusal:
                if refusal.status == PRECONDITION_FAILED:
                    return  # It arrived, and the answer was lost.
                if refusal.status != FORBIDDEN:
                    raise
                again = await self._mesh.files.CreateFile(request)
                if not again.HasField("upload"):
                    return
                expired, signed = signed, again.upload
                if signed.url == expired.url:
                    raise
                raise Interrupted("expired") from None

        await self._again_and_again(send)

    async def _send_parts(self, file: file_pb2.File) -> file_pb2.File:
        everything = list(range(1, -(-file.size // file.part_size) + 1))
        for _ in range(_ROUNDS):
            there = await self._parts(file)
            self._done = sum(self._span(file, number)[1] for number in there)
            self._tell(0)
            # All are there, and yet it was not complete: one of them is not what was signed last.
            missing = [number for number in everything if number not in there] or everything
            for begin in range(0, len(missing), _PARTS_SIGNED_AT_ONCE):
                await self._send_some(file, missing[begin : begin + _PARTS_SIGNED_AT_ONCE])
            if completed := await self._completed(file):
                return completed
        return await self._complete(file)

    async def _parts(self, file: file_pb2.File) -> set[int]:
        """Numbers of the parts that the store has with the bytes of this file."""
        request = pb.ListFilePartsRequest(file_id=file.id, page_size=_PAGE_OF_PARTS)
        found: set[int] = set()
        while True:
            page = await patiently(lambda: self._mesh.files.ListFileParts(request))
            found |= {part.number for part in page.parts if part.size == self._span(file, part.number)[1]}
            if not page.next_page_token:
                return found
            request.page_token = page.next_page_token

    def _span(self, file: file_pb2.File, number: int) -> tuple[int, int]:
        """First byte and size of a part."""
        first = (number - 1) * file.part_size
        return first, max(0, min(file.part_size, file.size - first))

    async def _send_some(self, file: file_pb2.File, numbers: Sequence[int]) -> None:
        uploads = await self._signed(file, numbers)
        places = asyncio.Semaphore(PARALLEL)

        async def one(number: int) -> None:
            async with places:
                await self._send_part(file, number, uploads[number])

        try:
            async with asyncio.TaskGroup() as group:
                for number in numbers:
                    group.create_task(one(number))
        except ExceptionGroup as failures:
            raise _first(failures) from None

    async def _send_part(self, file: file_pb2.File, number: int, signed: file_pb2.SignedRequest) -> None:
        async def send() -> None:
            nonlocal signed
            try:
                await self._send(signed, *self._span(file, number))
            except Refused as refusal:
                if refusal.status != FORBIDDEN:
                    raise
                expired, signed = signed, (await self._signed(file, [number]))[number]
                if signed.url == expired.url:
                    raise
                raise Interrupted("expired") from None

        await self._again_and_again(send)

    async def _signed(self, file: file_pb2.File, numbers: Sequence[int]) -> dict[int, file_pb2.SignedRequest]:
        parts = []
        for number in numbers:
            first, size = self._span(file, number)
            digest = await self._transfers.digest(self._source.path, first=first, size=size)
            parts.append(pb.FilePartDeclaration(number=number, sha256=digest.hex()))
        self._source.require_unchanged()
        request = pb.CreateFilePartsRequest(file_id=file.id, parts=parts)
        answer = await patiently(lambda: self._mesh.files.CreateFileParts(request))
        return {each.number: each.upload for each in answer.uploads}

    async def _send(self, signed: file_pb2.SignedRequest, first: int, size: int) -> None:
        """Sends a piece once; what it had told as sent is taken back if it fails."""
        told = 0

        def sent(count: int) -> None:
            nonlocal told
            told += count
            self._loop.call_soon_threadsafe(self._tell, count)

        try:
            await self._transfers.send(signed.url, signed.headers, self._source.path, first=first, size=size, sent=sent)
        except BaseException:
            self._loop.call_soon(self._tell, -told)
            raise

    def _tell(self, count: int) -> None:
        self._done += count
        self._progress(self._done, self._source.size)

    async def _completed(self, file: file_pb2.File) -> file_pb2.File | None:
        """The file once its bytes are there; None if some are missing. Raises StorymeshError."""
        try:
            return await self._complete(file)
        except StorymeshError as error:
            if error.reason == "FILE_NOT_UPLOADED":
                return None
            raise

    async def _complete(self, file: file_pb2.File) -> file_pb2.File:
        self._source.require_unchanged()
        request = pb.CompleteFileRequest(file_id=file.id)
        return (await patiently(lambda: self._mesh.files.CompleteFile(request))).file

    async def _again_and_again(self, send: Callable[[], Awaitable[None]]) -> None:
        for attempt in range(TRIES):
            try:
                return await send()
            except Interrupted:
                if attempt == TRIES - 1:
                    raise
            await asyncio.sleep(pause(attempt))


async def patiently(call: Callable[[], Awaitable[T]]) -> T:
    """Repeats a call that the mesh cannot answer now, or that is made too often, after the pause that it asks for."""
    for attempt in range(TRIES):
        try:
            return await call()
        except StorymeshError as error:
            asked = error.retry_after.total_seconds() if error.retry_after else 0.0
            if not _passes(error) or attempt == TRIES - 1 or asked > _LONGEST_PAUSE_SECONDS:
                raise
        await asyncio.sleep(max(asked, pause(attempt)))
    raise AssertionError  # The last attempt returned or raised.


async def checked(mesh: Stubs, file: file_pb2.File) -> file_pb2.File:
    """The file once the mesh has checked it. Raises StorymeshError."""
    request = pb.WatchFileRequest(file_id=file.id)
    failures = 0
    while file.state in (file_pb2.FILE_STATE_PENDING, file_pb2.FILE_STATE_CHECKING):
        wait = 0.0
        try:
            async for message in mesh.files.WatchFile(request):
                request.resume_token = message.resume_token
                failures = 0
                match message.WhichOneof("event"):
                    case "file":
                        file = message.file
                    case "done":
                        return message.done.file
                    case "reconnect":
                        wait = message.reconnect.after.ToTimedelta().total_seconds()
        except StorymeshError as error:
            failures += 1
            if not _passes(error) or failures == TRIES:
                raise
        await asyncio.sleep(max(wait, pause(failures)))
    return file


def pause(attempt: int) -> float:
    """Seconds before the next attempt: between a half and all of a time that doubles, so that many do not return at once."""
    longest: float = min(_LONGEST_PAUSE_SECONDS, _PAUSE_SECONDS * 2**attempt)
    return random.uniform(longest / 2, longest)  # noqa: S311  # no secret


def _passes(error: StorymeshError) -> bool:
    """Whether the same call may succeed in a while: a quota that is used up is not given back by waiting some seconds."""
    if error.code() is StatusCode.RESOURCE_EXHAUSTED:
        return error.reason != "FILE_QUOTA_EXCEEDED"
    return error.code() in (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED)


def _plain(name: str) -> str:
    """A name as it can be compared: the mesh may take white space off."""
    return " ".join(name.split())


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    found = group.exceptions[0]
    return _first(found) if isinstance(found, BaseExceptionGroup) else found
