"""The main program of an image process: `python -m services.file.adapters.images.process <bounds>`.

It loads Pillow once and then forks a child for each image, so that no image meets what another has left in the decoder's memory,
and each has limits of its own. The child is forked in advance and waits for its image, so that nobody waits for the fork.

What an image can reach by a fault of a decoder is a child that can open nothing (no file, no socket, no pipe), start nothing, write
to no file, and has neither the worker's settings nor its connections. Time and memory have limits that the kernel enforces, also
when the worker is gone.
"""

from __future__ import annotations

import gc
import os
import resource
import signal
import sys
from io import BytesIO

from PIL import Image

from .messages import HEADER, READY, ImageRefused, answer_head, refusal_head
from .rendering import configure, render

_NO_MORE = 3
"""Exit status of a child whose input has ended."""

_NICENESS = 5
_CHUNK = 1 << 20


def main() -> None:
    memory_bytes, cpu_seconds, seconds = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    configure()
    _warm_up()
    os.nice(_NICENESS)
    os.write(1, READY)
    # Until here, standard error tells the worker why the start failed. What decoders print may quote the image.
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    gc.collect()
    gc.freeze()
    while True:
        if (child := os.fork()) == 0:
            gc.disable()
            os._exit(_serve_one(memory_bytes, cpu_seconds, seconds))
        if os.waitpid(child, 0)[1]:
            # The input may hold what is left of an image that ended the child, so no other child may read on.
            return


def _warm_up() -> None:
    """Load what Pillow loads at the first use of a format: a child cannot open the files any more."""
    for format_ in ("JPEG", "PNG", "WEBP"):
        target = BytesIO()
        with Image.new("RGB", (2, 2)) as image:
            exif = image.getexif()
            exif[0x0112] = 6
            image.save(target, format_, exif=exif)
        render(target.getvalue(), square=True)


def _serve_one(memory_bytes: int, cpu_seconds: int, seconds: float) -> int:
    """Read a request, write its answer, and return the exit status."""
    _confine(memory_bytes, cpu_seconds)
    header = _read(HEADER.size)
    if header is None:
        return _NO_MORE
    # Ends the process, also inside of a decoder. The worker kills earlier; this is for the case that it is gone.
    signal.setitimer(signal.ITIMER_REAL, seconds + 1)
    square, length = HEADER.unpack(header)
    data = _read(length)
    if data is None:
        return _NO_MORE
    try:
        rendered = render(data, square=square)
    except ImageRefused as refused:
        _write(refusal_head(refused.refusal))
    else:
        _write(answer_head(rendered), *(each.data for each in rendered.renditions))
    return 0


def _confine(memory_bytes: int, cpu_seconds: int) -> None:
    limits = {
        resource.RLIMIT_CPU: cpu_seconds,
        resource.RLIMIT_FSIZE: 0,
        resource.RLIMIT_CORE: 0,
        # Descriptors 0 to 2 are open, and there can be no others.
        resource.RLIMIT_NOFILE: 3,
        resource.RLIMIT_NPROC: 0,
    }
    if sys.platform == "linux":
        # Elsewhere the kernel knows this limit and does not keep it.
        limits[resource.RLIMIT_AS] = memory_bytes
    for kind, most in limits.items():
        resource.setrlimit(kind, (most, most))


def _read(length: int) -> bytes | None:
    """Exactly `length` bytes of the input; None when it ends before."""
    parts, left = [], length
    while left:
        part = os.read(0, min(left, _CHUNK))
        if not part:
            return None
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


def _write(*parts: bytes) -> None:
    for part in parts:
        rest = memoryview(part)
        while rest:
            rest = rest[os.write(1, rest) :]


if __name__ == "__main__":
    main()
