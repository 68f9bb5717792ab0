"""Downloads a file to a path that the caller names, resumed where it broke, and under its name only when it is whole."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from storymesh.file.v1 import file_service_pb2 as pb
from storymesh.stubs import Stubs

from .errors import TransferFailed
from .transfers import Interrupted, Refused, Transfers
from .uploads import FORBIDDEN, TRIES, Progress, patiently, pause

RANGE_NOT_SATISFIABLE = 416
_LONGEST_NAME = 200
_NAMELESS = "download"


def safe_name(name: str, file_id: str) -> str:
    """The name of a file in the mesh as one on this disk. What could lead elsewhere, or hide, becomes the file's id.

    The id is a word of the server, too, and so is held to the same.
    """
    return _harmless(name) or _harmless(file_id) or _NAMELESS


def _harmless(name: str) -> str:
    """Empty for a name that could lead elsewhere, or hide."""
    plain = "".join(each for each in name if each.isprintable())
    base = plain.replace("\\", "/").rpartition("/")[2].strip()
    if base.strip(". ") == "" or base.startswith(".") or ":" in base or len(os.fsencode(base)) > _LONGEST_NAME:
        return ""
    return base


class Download:
    """One download of one file."""

    def __init__(self, mesh: Stubs, transfers: Transfers, file_id: str, target: int, progress: Progress) -> None:
        self._mesh = mesh
        self._transfers = transfers
        self._request = pb.DownloadFileRequest(file_id=file_id, target=target)
        self._progress = progress
        self._loop = asyncio.get_running_loop()
        self._done = 0

    async def run(self, path: Path) -> None:
        """Raises StorymeshError, TransferFailed and OSError."""
        file_id, target = self._request.file_id, self._request.target
        file = (await patiently(lambda: self._mesh.files.GetFile(pb.GetFileRequest(file_id=file_id)))).file
        # The bytes of a file never change, so that the beginning of an earlier download is its beginning still.
        beginning = path.with_name(f".{path.name}.{file_id}-{target}.part")
        try:
            with _opened(beginning) as opened:
                answer = await self._fetch(opened)
            size = beginning.stat().st_size
            # The bytes of images that were made of one are told by their size alone.
            expected = "" if file.renditions else file.sha256
            whole = size == answer.size
            if whole and expected:
                whole = (await self._transfers.digest(str(beginning))).hex() == expected
            if not whole:
                beginning.unlink(missing_ok=True)
                raise TransferFailed("What came is not the file: its size or checksum differs. Download it again.")
        except Interrupted:
            raise TransferFailed("The object store does not answer.", may_resume=True) from None
        except Refused as refusal:
            raise TransferFailed(f"The object store refuses the download (status {refusal.status}).") from None
        os.replace(beginning, path)

    async def _fetch(self, opened: BinaryIO) -> pb.DownloadFileResponse:
        """Fetches what is missing. Each attempt has a signature of its own, and one that got further begins the count again."""
        attempt, best = 0, -1
        while True:
            answer = await patiently(lambda: self._mesh.files.DownloadFile(self._request))
            self._done = opened.seek(0, os.SEEK_END)
            if self._done > answer.size:
                opened.truncate(0)
                self._done = 0
            self._tell(0, answer.size)
            if self._done == answer.size:
                return answer
            attempt = 0 if self._done > best else attempt + 1
            best = max(best, self._done)
            try:
                await self._transfers.receive(
                    answer.download.url,
                    answer.download.headers,
                    opened,
                    got=partial(self._tell_later, answer.size),
                )
                opened.flush()
            except Refused as refusal:
                # Expired on the way, if at all: the next attempt has a new one.
                if refusal.status not in (FORBIDDEN, RANGE_NOT_SATISFIABLE) or attempt:
                    raise
                attempt = 1
            except Interrupted:
                if attempt >= TRIES - 1:
                    raise
            else:
                if opened.seek(0, os.SEEK_END) == answer.size:
                    return answer
            opened.flush()
            await asyncio.sleep(pause(attempt))

    def _tell_later(self, size: int, count: int) -> None:
        """Called from the transfer's thread."""
        self._loop.call_soon_threadsafe(self._tell, count, size)

    def _tell(self, count: int, size: int) -> None:
        self._done += count
        self._progress(self._done, size)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Opens for reading and writing, made if needed, for its owner alone; never through a link that somebody laid there."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "r+b") as opened:
        yield opened
