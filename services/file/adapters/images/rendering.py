"""Makes WebP renditions of an image with Pillow. Only image processes call it: it works on bytes that strangers sent.

Nothing of the original but its pixels gets into a rendition: no EXIF with its place and device, no XMP, no comments, no bytes
behind the image. Its orientation is applied and its colours are converted to sRGB, because the renditions cannot say either any
more. Of an animated image the first frame is shown.
"""

from __future__ import annotations

import warnings
from io import BytesIO

# Pillow loads these when an image needs them; a confined process can open no file then.
from PIL import Image, ImageCms, ImageFile, MpoImagePlugin, TiffImagePlugin, WebPImagePlugin  # noqa: F401

from .messages import SIZES, ImageRefused, Refusal, Rendered, Rendition

MOST_PIXELS = 40_000_000
"""More are refused when the header says so, before a pixel is decoded."""

_FORMATS = ("JPEG", "PNG", "WEBP")
_QUALITY = 80
_REDUCING_GAP = 3.0
"""How far Pillow may shrink cheaply before it resamples; at 3 the result can hardly be told from resampling alone."""

_ORIENTATION = 0x0112
_TRANSPOSITIONS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_TURNED = frozenset({5, 6, 7, 8})
"""Orientations that exchange width and height."""

_MOST_PROFILE_BYTES = 1 << 20
_SRGB = ImageCms.createProfile("sRGB")


def configure() -> None:
    """Make Pillow refuse too many pixels and broken files, in this process."""
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS
    warnings.simplefilter("ignore")
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    ImageFile.LOAD_TRUNCATED_IMAGES = False


def render(data: bytes, *, square: bool) -> Rendered:
    """The renditions of SIZES; as squares cut from the middle, or with the proportions of the image.

    A smaller image is not enlarged. Raises ImageRefused.
    """
    try:
        return _render(data, square=square)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError, MemoryError):
        raise ImageRefused(Refusal.TOO_LARGE) from None
    except Exception:
        # Pillow's decoders raise what comes: OSError, SyntaxError, ValueError, struct.error, KeyError.
        raise ImageRefused(Refusal.UNREADABLE) from None


def _render(data: bytes, *, square: bool) -> Rendered:
    with Image.open(BytesIO(data), formats=_FORMATS) as source:
        width, height = source.size
        left, top, right, bottom = _middle_square(width, height) if square else (0, 0, width, height)
        bound = _within(right - left, bottom - top, SIZES[-1])
        # A JPEG is decoded at a half, a quarter or an eighth where that is still enough.
        scale = max(bound[0] / (right - left), bound[1] / (bottom - top))
        source.draft(None, (max(1, round(width * scale)), max(1, round(height * scale))))
        source.load()
        # After the pixels, because a PNG may have its EXIF behind them.
        orientation = _orientation(source)
        profile = source.info.get("icc_profile")
        x, y = source.width / width, source.height / height
        box = (left * x, top * y, min(right * x, source.width), min(bottom * y, source.height))
        image = _resampleable(source).resize(bound, Image.Resampling.LANCZOS, box=box, reducing_gap=_REDUCING_GAP)
    transposition = _TRANSPOSITIONS.get(orientation)
    if transposition is not None:
        image = image.transpose(transposition)
    image = _in_srgb(image, profile)
    image.info = {}
    renditions = [Rendition(SIZES[-1], *image.size, _webp(image))]
    for size in reversed(SIZES[:-1]):
        bound = _within(*image.size, size)
        if bound == image.size:
            renditions.append(Rendition(size, *bound, renditions[-1].data))
        else:
            image = image.resize(bound, Image.Resampling.LANCZOS, reducing_gap=_REDUCING_GAP)
            renditions.append(Rendition(size, *bound, _webp(image)))
    if orientation in _TURNED:
        width, height = height, width
    return Rendered(width, height, tuple(reversed(renditions)))


def _middle_square(width: int, height: int) -> tuple[int, int, int, int]:
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    return left, top, left + side, top + side


def _within(width: int, height: int, size: int) -> tuple[int, int]:
    """The largest width and height of these proportions of which neither exceeds `size` or the given one; at least 1 each."""
    scale = min(1.0, size / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _orientation(source: Image.Image) -> int:
    try:
        return int(source.getexif().get(_ORIENTATION, 1))
    except Exception:
        # Metadata is broken more often than pixels are, and an image without a readable orientation is upright.
        return 1


def _resampleable(source: Image.Image) -> Image.Image:
    """In a mode whose pixels can be averaged: palettes are resolved, and transparency becomes a channel."""
    if source.has_transparency_data:
        return source if source.mode == "RGBA" else source.convert("RGBA")
    if source.mode == "P":
        return source.convert("RGB")
    if source.mode == "1":
        return source.convert("L")
    if source.mode.startswith("I"):
        # Greyscale of 16 bits. A plain conversion would cut off all above 255, not scale it.
        return source.convert("I").point(lambda value: value * (1 / 257) + 0.5).convert("L")
    return source


def _in_srgb(image: Image.Image, profile: bytes | None) -> Image.Image:
    mode = "RGBA" if image.mode in ("RGBA", "LA") else "RGB"
    if profile and len(profile) <= _MOST_PROFILE_BYTES:
        try:
            described = ImageCms.ImageCmsProfile(BytesIO(profile))
            if not ImageCms.getProfileDescription(described).startswith("sRGB"):
                converted = ImageCms.profileToProfile(image, described, _SRGB, outputMode=mode)
                if converted is not None:
                    return converted
        except (ImageCms.PyCMSError, OSError, ValueError):
            pass  # A profile that is broken, or belongs to another kind of pixels: as if there were none.
    return image if image.mode == mode else image.convert(mode)


def _webp(image: Image.Image) -> bytes:
    target = BytesIO()
    image.save(target, "WEBP", quality=_QUALITY)
    return target.getvalue()
