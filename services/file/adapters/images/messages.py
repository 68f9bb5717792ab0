"""The messages between the worker and an image process, over the process's standard input and output.

The answer is read as what a stranger sent, because whoever takes over the decoder writes it: a line of JSON of bounded length, then
bytes whose number it says. Nothing is unpickled.
"""

from __future__ import annotations

import json
import struct
from dataclasses import dataclass
from enum import StrEnum

READY = b"ready\n"
"""Said once, when Pillow is loaded and the first image may come."""

HEADER = struct.Struct("!?Q")
"""Of a request: whether the renditions are squares, and the number of bytes that follow."""

SIZES = (96, 512, 1600)
"""The renditions of each image, ascending: the bound of both sides in pixels."""

MOST_RENDITION_BYTES = 16 << 20
"""A bound for what is read of an answer. A WebP of 1600 x 1600 pixels without loss has 10 MB at most."""

_WEBP_MARKS = (b"RIFF", b"WEBP")


class Refusal(StrEnum):
    """Why an image has no renditions, and never will have."""

    UNREADABLE = "IMAGE_UNREADABLE"
    """Not a JPEG, PNG or WebP, truncated or otherwise broken."""
    TOO_LARGE = "IMAGE_TOO_LARGE"
    """More pixels, or more memory for them, than an image may take."""
    TOO_COSTLY = "IMAGE_TOO_COSTLY"
    """Decoding took too long, or ended the process, each time that it was tried."""


class ImageRefused(Exception):
    """The image can have no renditions. Final: another try would end alike."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal)
        self.refusal = refusal


class BadAnswer(Exception):
    """The process answered otherwise than it should."""


@dataclass(frozen=True, slots=True)
class Rendition:
    """A WebP whose longer side has at most `size` pixels."""

    size: int
    width: int
    height: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Rendered:
    """`width` and `height` are those of the original as it is to be seen: after its orientation was applied."""

    width: int
    height: int
    renditions: tuple[Rendition, ...]


def answer_head(rendered: Rendered) -> bytes:
    """The first line of an answer; the bytes of the renditions follow in their order."""
    renditions = [[each.size, each.width, each.height, len(each.data)] for each in rendered.renditions]
    head = {"width": rendered.width, "height": rendered.height, "renditions": renditions}
    return json.dumps(head).encode() + b"\n"


def refusal_head(refusal: Refusal) -> bytes:
    return json.dumps({"refusal": refusal}).encode() + b"\n"


@dataclass(frozen=True, slots=True)
class Head:
    """The first line of an answer, understood."""

    width: int
    height: int
    renditions: tuple[tuple[int, int, int, int], ...]
    """Size, width, height, and number of bytes."""

    @property
    def length(self) -> int:
        """How many bytes follow."""
        return sum(length for *_, length in self.renditions)

    def rendered(self, data: bytes) -> Rendered:
        """Raises BadAnswer when a rendition is no WebP."""
        renditions, start = [], 0
        for size, width, height, length in self.renditions:
            part = data[start : start + length]
            if (part[:4], part[8:12]) != _WEBP_MARKS:
                raise BadAnswer("a rendition is not WebP")
            renditions.append(Rendition(size, width, height, part))
            start += length
        return Rendered(self.width, self.height, tuple(renditions))


def read_head(line: bytes) -> Head:
    """Raises ImageRefused if that is the answer, and BadAnswer unless it has a rendition of each of SIZES."""
    try:
        said = json.loads(line)
        refusal = Refusal(said["refusal"]) if "refusal" in said else None
        found = [tuple(map(int, each)) for each in said.get("renditions", ())]
        head = Head(
            int(said.get("width", 0)),
            int(said.get("height", 0)),
            tuple((size, width, height, length) for size, width, height, length in found),
        )
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise BadAnswer(f"not an answer: {type(error).__name__}") from None
    if refusal:
        raise ImageRefused(refusal)
    if tuple(size for size, *_ in head.renditions) != SIZES or min(head.width, head.height) < 1:
        raise BadAnswer("not the renditions that were asked for")
    for size, width, height, length in head.renditions:
        if not (1 <= width <= size and 1 <= height <= size and 0 < length <= MOST_RENDITION_BYTES):
            raise BadAnswer("a rendition has not the size that was asked for")
    return head
