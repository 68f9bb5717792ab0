"""Signed requests by which clients send and fetch bytes. Signing asks the store nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from kit.data.objects import Objects
from kit.data.presigning import SignedRequest

from ..model import RENDITION_MEDIA_TYPE, File, Rendition, State
from ..model.file_names import content_disposition, rendition_name
from ..model.parts import SINGLE_MOST

_SHORTEST = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Download:
    """A signed GET of a file, or of a rendition of it."""

    file: File
    request: SignedRequest
    media_type: str
    size: int
    rendition: Rendition | None


class Signing:
    """Signs uploads of pending files and downloads of ready ones."""

    def __init__(
        self, objects: Objects, *, upload_for: timedelta, download_for: timedelta, clock: Callable[[], datetime]
    ) -> None:
        self._objects = objects
        self._upload_for = upload_for
        self._download_for = download_for
        self._clock = clock

    def upload(self, file: File) -> SignedRequest | None:
        """A PUT of the whole file. None unless it is pending, and for one that is so large that it comes by parts."""
        if file.state is not State.PENDING or file.size > SINGLE_MOST:
            return None
        return self._objects.presign_put(
            file.object_key,
            size=file.size,
            media_type=file.media_type,
            sha256=file.sha256,
            valid_for=self._while_pending(file),
        )

    def part(self, file: File, upload_id: str, number: int, sha256: bytes) -> SignedRequest:
        """A PUT of a part. Raises ValueError for a number that the file does not have."""
        return self._objects.presign_part(
            file.object_key,
            upload_id,
            number,
            size=file.parts.size_of(number),
            sha256=sha256,
            valid_for=self._while_pending(file),
        )

    def download(
        self, file: File, target: int, valid_for: timedelta | None = None, *, named: bool = True
    ) -> Download | None:
        """A GET of a ready file: of its rendition, if it has some, else of its bytes. None for a target that it does not have.

        The URL tells the file's name to everybody who has it, unless `named` is False and it is that of a rendition.
        """
        rendition = file.rendition(target)
        if rendition:
            key, media_type, size = rendition.object_key, RENDITION_MEDIA_TYPE, rendition.size
            # Re-encoded by us, so that a browser may show it.
            disposition = content_disposition(rendition_name(file.name), inline=True) if named else "inline"
        elif target:
            return None
        else:
            key, media_type, size = file.object_key, file.media_type, file.size
            disposition = content_disposition(file.name)
        request = self._objects.presign_get(
            key, valid_for=valid_for or self._download_for, media_type=media_type, disposition=disposition
        )
        return Download(file, request, media_type, size, rendition)

    def _while_pending(self, file: File) -> timedelta:
        """Not longer than the file is pending: what would be uploaded afterwards nobody could complete."""
        return max(min(self._upload_for, file.expires_at - self._clock()), _SHORTEST)
