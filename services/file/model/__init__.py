"""Files, their states and the steps of a watch, as data and rules. Pure: no clock, no store."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import TypeAlias
from uuid import UUID

from .parts import PartPlan
from .purposes import Purpose


class State(StrEnum):
    PENDING = "PENDING"
    CHECKING = "CHECKING"
    READY = "READY"
    REJECTED = "REJECTED"
    EXPIRED = "EXPIRED"

    @property
    def final(self) -> bool:
        return self not in (State.PENDING, State.CHECKING)


COUNTED = (State.PENDING, State.CHECKING, State.READY)
"""The states of files that count towards their owner's quotas."""


class CheckStep(StrEnum):
    """What is being done with a file in State.CHECKING. NONE in every other state."""

    NONE = ""
    QUEUED = "QUEUED"
    VERIFYING = "VERIFYING"
    SCANNING = "SCANNING"
    RENDERING = "RENDERING"


class Reason(StrEnum):
    """Why a file was rejected or has expired. Permanent: clients may act on them."""

    NONE = ""
    MEDIA_TYPE_MISMATCH = "MEDIA_TYPE_MISMATCH"
    CHECKSUM_MISMATCH = "CHECKSUM_MISMATCH"
    SIZE_MISMATCH = "SIZE_MISMATCH"
    IMAGE_UNREADABLE = "IMAGE_UNREADABLE"
    IMAGE_TOO_LARGE = "IMAGE_TOO_LARGE"
    IMAGE_TOO_COSTLY = "IMAGE_TOO_COSTLY"
    INFECTED = "INFECTED"
    TOO_LARGE_TO_SCAN = "TOO_LARGE_TO_SCAN"
    CONTENT_LOST = "CONTENT_LOST"
    CHECK_FAILED = "CHECK_FAILED"
    UPLOAD_EXPIRED = "UPLOAD_EXPIRED"
    UPLOAD_ABORTED = "UPLOAD_ABORTED"


@dataclass(frozen=True, slots=True)
class Declaration:
    """What a client says that it will upload."""

    purpose: Purpose
    name: str
    size: int
    media_type: str
    sha256: bytes

    def digest(self) -> bytes:
        """A SHA-256 over the parameters. Equal digests mark a repeated request; different ones, a reused request id."""
        parts = [self.purpose, self.name, self.size, self.media_type, self.sha256.hex()]
        return hashlib.sha256(json.dumps(parts).encode()).digest()


@dataclass(frozen=True, slots=True)
class Rendition:
    """An image that was made of an uploaded one."""

    target: int
    """The longest side that it was made for: one of RENDITIONS."""
    object_key: str
    width: int
    height: int
    size: int


@dataclass(frozen=True, slots=True)
class File:
    id: UUID
    owner_id: UUID
    purpose: Purpose
    name: str
    size: int
    media_type: str
    sha256: bytes
    state: State
    check_step: CheckStep
    reason: Reason
    object_key: str
    """Where the store has the bytes as uploaded. Random: it tells neither person nor name."""
    upload_id: str | None
    """The store's name of the upload by parts, once one was begun."""
    part_size: int
    revision: int
    """Grows with each change that a watch tells."""
    claimed: bool
    created_at: datetime
    expires_at: datetime
    """Until when it can be uploaded and completed."""
    completed_at: datetime | None
    renditions: tuple[Rendition, ...] = ()
    """Of an image that is ready, smallest first."""

    @property
    def parts(self) -> PartPlan:
        return PartPlan(self.size, self.part_size)

    def rendition(self, target: int) -> Rendition | None:
        """The rendition of the target, or the largest for 0; None when there is none."""
        if target == 0:
            return self.renditions[-1] if self.renditions else None
        return next((each for each in self.renditions if each.target == target), None)


RENDITION_MEDIA_TYPE = "image/webp"


@dataclass(frozen=True, slots=True)
class Changed:
    """The file as it is now."""

    file: File


@dataclass(frozen=True, slots=True)
class Heartbeat:
    pass


@dataclass(frozen=True, slots=True)
class Done:
    file: File


@dataclass(frozen=True, slots=True)
class Reconnect:
    after: timedelta


Step: TypeAlias = Changed | Heartbeat | Done | Reconnect
"""A message to a watcher."""
