"""Renditions of a photo: by the worker's image process, and by Pillow alone."""

from __future__ import annotations

import io
import time
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import psutil
from PIL import Image, ImageOps

from services.file.adapters.images.messages import SIZES
from services.file.adapters.images.pool import ImagePool

_QUALITY = 80


def photo(megapixels: int) -> bytes:
    """A JPEG with the detail of a photo, where one colour would be decoded faster."""
    width = round((megapixels * 1e6 * 4 / 3) ** 0.5)
    noise = Image.effect_noise((width // 8, width * 3 // 4 // 8), 60).resize((width, width * 3 // 4))
    shade = Image.linear_gradient("L").resize(noise.size)
    written = io.BytesIO()
    Image.merge("RGB", (noise, shade, noise.rotate(180))).save(written, "JPEG", quality=90)
    return written.getvalue()


async def confined(pool: ImagePool, data: bytes, count: int) -> float:
    """Processor seconds of this process and its children for `count` photos."""
    own, children = psutil.Process(), _children()
    before = own.cpu_times()
    for _ in range(count):
        await pool.render(data, square=False)
    after = own.cpu_times()
    return after.user + after.system - before.user - before.system + _children() - children


def bare(executor: ProcessPoolExecutor, data: bytes, count: int) -> float:
    """Processor seconds of Pillow alone for `count` photos, in a process of its own."""
    return executor.submit(_bare, data, count).result()


def process() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(1, mp_context=get_context("spawn"))


def _bare(data: bytes, count: int) -> float:
    before = time.process_time()
    for _ in range(count):
        with Image.open(io.BytesIO(data)) as source:
            source.draft("RGB", (SIZES[-1], SIZES[-1]))
            image = ImageOps.exif_transpose(source)
        for size in reversed(SIZES):
            image.thumbnail((size, size), Image.Resampling.LANCZOS)
            image.save(io.BytesIO(), "WEBP", quality=_QUALITY)
    return time.process_time() - before


def _children() -> float:
    """Processor seconds of the image process, its ended children included."""
    while True:
        try:
            return sum(map(_seconds, psutil.Process().children(recursive=True)))
        except psutil.NoSuchProcess:
            # The child of the last photo has ended and is not counted to its parent yet.
            time.sleep(0.001)


def _seconds(child: psutil.Process) -> float:
    if "services.file.adapters.images.process" not in " ".join(child.cmdline()):
        return 0.0
    times = child.cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)
