"""Images as people and attackers upload them."""

from __future__ import annotations

import io
import struct
import zlib
from typing import Any

from PIL import Image, ImageCms

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)

GPS = 0x8825
ORIENTATION = 0x0112
SECRET = "a secret place"


def saved(image: Image.Image, format_: str = "JPEG", **options: Any) -> bytes:
    target = io.BytesIO()
    image.save(target, format_, **options)
    return target.getvalue()


def halves(width: int = 400, height: int = 200) -> Image.Image:
    """Red at the left, blue at the right."""
    image = Image.new("RGB", (width, height), RED)
    image.paste(BLUE, (width // 2, 0, width, height))
    return image


def photo(width: int = 400, height: int = 200) -> bytes:
    return saved(halves(width, height), quality=95)


def with_metadata(orientation: int = 1) -> bytes:
    """A JPEG that says where it was taken, by EXIF, XMP and a comment, and how it is to be turned."""
    image = halves()
    exif = image.getexif()
    exif[ORIENTATION] = orientation
    exif[0x010E] = SECRET
    exif.get_ifd(GPS).update({1: "N", 2: (48.0, 8.0, 12.0)})
    return saved(image, quality=95, exif=exif, comment=SECRET.encode(), xmp=f"<x>{SECRET}</x>".encode())


def with_profile() -> bytes:
    """A red JPEG whose profile exchanges red and blue."""
    profile = (
        ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes().replace(b"\0s\0R\0G\0B", b"\0o\0R\0G\0B")
    )
    return saved(
        Image.new("RGB", (64, 64), RED),
        icc_profile=profile.replace(b"rXYZ", b"####").replace(b"bXYZ", b"rXYZ").replace(b"####", b"bXYZ"),
    )


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack("!I", len(data)) + kind + data + struct.pack("!I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, pixels: bytes | None = None) -> bytes:
    """A greyscale PNG; without `pixels`, one whose header alone is true."""
    header = chunk(b"IHDR", struct.pack("!IIBBBBB", width, height, 8, 0, 0, 0, 0))
    data = chunk(b"IDAT", zlib.compress(b"" if pixels is None else pixels, 9))
    return b"\x89PNG\r\n\x1a\n" + header + b"".join(chunks) + data + chunk(b"IEND", b"")


def bomb(width: int = 6300, height: int = 6300) -> bytes:
    """Few bytes for many white pixels."""
    packer = zlib.compressobj(9)
    row = b"\0" + b"\xff" * width
    packed = b"".join([*(packer.compress(row) for _ in range(height)), packer.flush()])
    header = chunk(b"IHDR", struct.pack("!IIBBBBB", width, height, 8, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


def endless(scans: int = 4000) -> bytes:
    """A progressive JPEG of few bytes that repeats its last scan, which decoders work through for minutes."""
    data = saved(Image.new("L", (6000, 6000), 128), progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * scans + data[-2:]


def animated(format_: str) -> bytes:
    """Red, then blue."""
    first, second = Image.new("RGB", (64, 64), RED), Image.new("RGB", (64, 64), BLUE)
    return saved(first, format_, save_all=True, append_images=[second], duration=100)


def two_in_one() -> bytes:
    """A JPEG of two pictures (MPO), as phones and stereo cameras make them."""
    return saved(halves(), "MPO", save_all=True, append_images=[Image.new("RGB", (400, 200), GREEN)])
