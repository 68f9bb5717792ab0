"""Images become clean renditions in confined processes, and what no decoder should touch harms nobody."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from PIL import Image

from services.file.adapters.images.messages import (
    SIZES,
    BadAnswer,
    ImageRefused,
    Refusal,
    Rendered,
    Rendition,
    answer_head,
    read_head,
)
from services.file.adapters.images.pool import ImageBounds, ImagePool
from tests.file.pictures import (
    BLUE,
    ORIENTATION,
    RED,
    SECRET,
    WHITE,
    animated,
    bomb,
    chunk,
    endless,
    halves,
    photo,
    png,
    saved,
    two_in_one,
    with_metadata,
    with_profile,
)
from tests.waiting import until

SCRIPT = b"<script>alert(document.domain)</script>"


@pytest.fixture(scope="module")
async def images() -> AsyncIterator[ImagePool]:
    async with ImagePool(processes=2) as pool:
        yield pool


@asynccontextmanager
async def own_pool(bounds: ImageBounds | None = None) -> AsyncIterator[tuple[ImagePool, Callable[[], psutil.Process]]]:
    """A pool of one process, and what tells that process."""
    others = set(psutil.Process().children())

    def main() -> psutil.Process:
        (process,) = set(psutil.Process().children()) - others
        return process

    async with ImagePool(processes=1, bounds=bounds) as pool:
        await pool.render(photo(), square=False)
        yield pool, main


def at_work(main: Callable[[], psutil.Process]) -> list[psutil.Process]:
    """The child that works on an image, if one does."""
    try:
        return [child for child in main().children() if sum(child.cpu_times()[:2]) > 0.1]
    except (psutil.NoSuchProcess, ValueError):
        return []  # The process has ended, or the next one is not there yet.


def is_over(process: psutil.Process) -> bool:
    return not process.is_running()


def opened(rendition: Rendition) -> Image.Image:
    image = Image.open(io.BytesIO(rendition.data), formats=["WEBP"])
    assert image.size == (rendition.width, rendition.height)
    return image


def at(rendered: Rendered, x: float, y: float) -> tuple[int, ...]:
    """The colour of the largest rendition, at parts of its width and height."""
    with opened(rendered.renditions[-1]) as image:
        found = image.convert("RGBA" if image.mode == "RGBA" else "RGB").getpixel(
            (int(image.width * x), int(image.height * y))
        )
    assert isinstance(found, tuple)
    return found


def near(found: tuple[int, ...], expected: tuple[int, ...], most: int = 40) -> bool:
    return len(found) == len(expected) and all(abs(a - b) <= most for a, b in zip(found, expected, strict=True))


async def refusal_of(images: ImagePool, data: bytes) -> Refusal:
    with pytest.raises(ImageRefused) as caught:
        await images.render(data, square=False)
    return caught.value.refusal


@pytest.mark.parametrize(
    ("square", "size", "expected"),
    [
        (False, (4000, 3000), [(96, 72), (512, 384), (1600, 1200)]),
        (False, (1000, 2000), [(48, 96), (256, 512), (800, 1600)]),
        (False, (300, 100), [(96, 32), (300, 100), (300, 100)]),
        (False, (9000, 1), [(96, 1), (512, 1), (1600, 1)]),
        (True, (4000, 3000), [(96, 96), (512, 512), (1600, 1600)]),
        (True, (300, 100), [(96, 96), (100, 100), (100, 100)]),
        (True, (1, 1), [(1, 1)] * 3),
    ],
)
async def test_photos_keep_their_proportions_avatars_become_squares_and_nothing_is_enlarged(
    images: ImagePool, square: bool, size: tuple[int, int], expected: list[tuple[int, int]]
) -> None:
    rendered = await images.render(photo(*size), square=square)
    assert (rendered.width, rendered.height) == size
    assert [each.size for each in rendered.renditions] == list(SIZES)
    assert [opened(each).size for each in rendered.renditions] == expected
    if size[0] > 100:
        assert near(at(rendered, 0.1, 0.5), RED)
        assert near(at(rendered, 0.9, 0.5), BLUE)


LEFT, RIGHT, TOP, BOTTOM = (0.1, 0.5), (0.9, 0.5), (0.5, 0.1), (0.5, 0.9)


@pytest.mark.parametrize(
    ("orientation", "red_at"), [*enumerate([LEFT, RIGHT, RIGHT, LEFT, TOP, TOP, BOTTOM, BOTTOM], start=1)]
)
async def test_an_image_is_turned_as_it_asks_and_says_nothing_of_where_it_was_taken(
    images: ImagePool, orientation: int, red_at: tuple[float, float]
) -> None:
    original = with_metadata(orientation)
    assert SECRET.encode() in original
    rendered = await images.render(original, square=False)
    turned = orientation >= 5
    assert (rendered.width, rendered.height) == ((200, 400) if turned else (400, 200))
    assert near(at(rendered, *red_at), RED)
    for each in rendered.renditions:
        assert SECRET.encode() not in each.data
        with opened(each) as image:
            assert not image.getexif()
            assert not {"exif", "icc_profile", "xmp"} & image.info.keys()


@pytest.mark.parametrize("orientation", [3, 6])
@pytest.mark.parametrize("format_", ["PNG", "WEBP"])
async def test_other_formats_are_turned_as_well(images: ImagePool, format_: str, orientation: int) -> None:
    image = halves()
    exif = image.getexif()
    exif[ORIENTATION] = orientation
    rendered = await images.render(saved(image, format_, exif=exif), square=False)
    assert near(at(rendered, *{3: (0.9, 0.5), 6: (0.5, 0.1)}[orientation]), RED)


def grey16() -> bytes:
    return saved(Image.new("I;16", (64, 64), 0x8000), "PNG")


def one_bit() -> bytes:
    return saved(Image.new("1", (64, 64), 1), "PNG")


def inks() -> bytes:
    return saved(Image.new("RGB", (64, 64), RED).convert("CMYK"))


def palette() -> bytes:
    return saved(Image.new("RGB", (64, 64), RED).quantize(4), "PNG")


def clear_palette() -> bytes:
    return saved(Image.new("RGB", (64, 64), RED).quantize(4), "PNG", transparency=0)


def clear_colour() -> bytes:
    return saved(Image.new("RGB", (64, 64), RED), "PNG", transparency=RED)


def half_clear(format_: str) -> bytes:
    return saved(Image.new("RGBA", (64, 64), (255, 0, 0, 128)), format_)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (grey16, (128, 128, 128)),
        (one_bit, WHITE),
        (inks, RED),
        (palette, RED),
        (clear_palette, (0, 0, 0, 0)),
        (clear_colour, (0, 0, 0, 0)),
        (lambda: half_clear("PNG"), (255, 0, 0, 128)),
        (lambda: half_clear("WEBP"), (255, 0, 0, 128)),
        (lambda: saved(Image.new("LA", (64, 64), (200, 128)), "PNG"), (200, 200, 200, 128)),
        (lambda: animated("PNG"), RED),
        (lambda: animated("WEBP"), RED),
    ],
    ids=[
        "16-bit",
        "1-bit",
        "CMYK",
        "palette",
        "clear-palette",
        "clear-colour",
        "RGBA",
        "WebP-alpha",
        "LA",
        "APNG",
        "animated-WebP",
    ],
)
async def test_every_kind_of_pixel_looks_as_it_did_and_of_moving_pictures_the_first_is_shown(
    images: ImagePool, data: Callable[[], bytes], expected: tuple[int, ...]
) -> None:
    found = at(await images.render(data(), square=True), 0.5, 0.5)
    assert near(found, expected, 10) or (len(expected) == 4 and expected[3] == found[3] == 0)


async def test_phones_that_put_two_pictures_into_a_jpeg_get_the_first(images: ImagePool) -> None:
    assert near(at(await images.render(two_in_one(), square=False), 0.1, 0.5), RED)


async def test_colours_of_another_space_are_converted_and_a_broken_profile_is_left_aside(images: ImagePool) -> None:
    assert near(at(await images.render(with_profile(), square=False), 0.5, 0.5), BLUE)
    broken = saved(Image.new("RGB", (64, 64), RED), icc_profile=b"no profile" * 10)
    assert near(at(await images.render(broken, square=False), 0.5, 0.5), RED)


@pytest.mark.parametrize(
    "data",
    [
        photo() + SCRIPT,
        photo()[:2] + b"\xff\xfe" + (len(SCRIPT) + 2).to_bytes(2) + SCRIPT + photo()[2:],
        png(64, 64, chunk(b"tEXt", b"Comment\0" + SCRIPT), pixels=bytes(65 * 64)),
        photo() + b"PK\x03\x04" + SCRIPT,
        with_metadata() + SCRIPT * 1000,
    ],
    ids=["behind", "comment", "text-chunk", "archive-behind", "much-behind"],
)
async def test_nothing_that_hides_in_an_image_is_in_its_renditions(images: ImagePool, data: bytes) -> None:
    rendered = await images.render(data, square=False)
    assert SCRIPT in data
    assert all(SCRIPT not in each.data for each in rendered.renditions)


@pytest.mark.parametrize(
    ("data", "refusal"),
    [
        (b"", Refusal.UNREADABLE),
        (b"\xff\xd8\xff", Refusal.UNREADABLE),
        (b'<svg xmlns="http://www.w3.org/2000/svg"><script>1</script></svg>', Refusal.UNREADABLE),
        (b"<!doctype html>" + SCRIPT, Refusal.UNREADABLE),
        (saved(halves(), "GIF"), Refusal.UNREADABLE),
        (saved(halves(), "BMP"), Refusal.UNREADABLE),
        (saved(halves(), "TIFF"), Refusal.UNREADABLE),
        (saved(halves(), "PDF"), Refusal.UNREADABLE),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", Refusal.UNREADABLE),
        (photo()[:-200], Refusal.UNREADABLE),
        (saved(halves(), "PNG")[:-60], Refusal.UNREADABLE),
        (saved(halves(), "WEBP")[:-60], Refusal.UNREADABLE),
        (png(64, 64), Refusal.UNREADABLE),
        (png(0, 5), Refusal.UNREADABLE),
        (png(30_000, 30_000), Refusal.TOO_LARGE),
        (png(2**31 - 1, 2**31 - 1), Refusal.TOO_LARGE),
        (bomb(6400, 6300), Refusal.TOO_LARGE),
        (png(8, 8, chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(80 << 20))), pixels=bytes(72)), Refusal.UNREADABLE),
    ],
    ids=[
        *("empty", "three-bytes", "SVG", "HTML", "GIF", "BMP", "TIFF", "PDF", "PostScript", "cut-JPEG", "cut-PNG", "cut-WebP"),
        *("no-pixels", "no-width", "30000x30000", "2^31", "bomb", "text-bomb"),
    ],
)  # fmt: skip
async def test_what_is_no_sound_image_of_the_three_formats_is_refused_for_good(
    images: ImagePool, data: bytes, refusal: Refusal
) -> None:
    assert await refusal_of(images, data) is refusal
    await images.render(photo(), square=False)


async def test_the_most_pixels_that_are_allowed_fit_into_the_bounds_in_every_format(images: ImagePool) -> None:
    side = 6324
    whole = Image.new("RGBA", (side, side), (255, 0, 0, 128))
    originals = [
        saved(whole, "WEBP", lossless=True, quality=0, method=0),
        saved(whole, "PNG", compress_level=1),
        saved(Image.new("CMYK", (side, side)), "JPEG"),
    ]
    for original in originals:
        rendered = await images.render(original, square=True)
        assert (rendered.width, rendered.height) == (side, side)


@pytest.mark.parametrize(
    ("bounds", "data", "refusal"),
    [
        (ImageBounds(cpu_seconds=1, attempts=2), endless, Refusal.TOO_COSTLY),
        (ImageBounds(seconds=0.5, attempts=1), endless, Refusal.TOO_COSTLY),
        (ImageBounds(memory_bytes=48 << 20), bomb, Refusal.TOO_LARGE),
    ],
    ids=["processor-time", "time", "memory"],
)
async def test_an_image_that_takes_too_much_is_refused_and_the_next_one_is_not(
    bounds: ImageBounds, data: Callable[[], bytes], refusal: Refusal
) -> None:
    before = set(psutil.Process().children(recursive=True))
    async with ImagePool(processes=1, bounds=bounds) as pool:
        assert await refusal_of(pool, data()) is refusal
        await pool.render(photo(), square=False)
    # What was killed is in the table of processes for a moment more.
    await until(lambda: set(psutil.Process().children(recursive=True)) <= before)


async def test_a_process_that_is_killed_amid_an_image_costs_one_attempt() -> None:
    async with own_pool(bounds=ImageBounds(attempts=2)) as (pool, main):
        for data, kills in ((endless(), 2), (bomb(), 1)):
            rendering = asyncio.create_task(pool.render(data, square=False))
            for _ in range(kills):
                ended = main()
                await until(lambda: bool(at_work(main)))
                os.kill(at_work(main)[0].pid, signal.SIGKILL)
                await until(partial(is_over, ended))
            if kills == 2:
                with pytest.raises(ImageRefused, match=Refusal.TOO_COSTLY):
                    await rendering
                await pool.render(photo(), square=False)
            else:
                assert (await rendering).width == 6300


async def test_a_cancelled_rendering_leaves_no_process_behind() -> None:
    async with own_pool() as (pool, main):
        rendering = asyncio.create_task(pool.render(endless(), square=False))
        await until(lambda: bool(at_work(main)))
        process, (child,) = main(), at_work(main)
        rendering.cancel()
        with pytest.raises(asyncio.CancelledError):
            await rendering
        await until(lambda: not process.is_running() and not child.is_running())


def limits_of(process: psutil.Process) -> dict[str, str]:
    lines = Path(f"/proc/{process.pid}/limits").read_text().splitlines()
    return {line[:26].strip(): line[26:].split()[1] for line in lines}


async def test_an_image_process_has_no_secrets_no_connections_and_can_open_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("STORYMESH_TEST_SECRET", SECRET)
    async with own_pool() as (_, main):
        await until(lambda: len(main().children()) == 1)
        (child,) = main().children()
        for process in (main(), child):
            assert SECRET not in str(process.environ())
            assert process.num_fds() == 3
        hard = limits_of(child)
    names = (
        "Max open files",
        "Max processes",
        "Max file size",
        "Max core file size",
        "Max address space",
        "Max cpu time",
    )
    assert [hard[name] for name in names] == ["3", "0", "0", "0", str(1 << 30), "15"]


async def test_many_images_at_once_wait_for_a_process(images: ImagePool) -> None:
    rendered = await asyncio.gather(*(images.render(photo(200 + each, 100), square=False) for each in range(8)))
    assert [each.width for each in rendered] == [200 + each for each in range(8)]
    assert all(a != b for a, b in pairwise(rendered))


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"not json\n",
        b"[]\n",
        b'{"refusal": "SOMETHING"}\n',
        b'{"width": 1, "height": 1}\n',
        b'{"width": 1, "height": 1, "renditions": [[96, 1, 1, 5], [512, 1, 1, 5]]}\n',
        b'{"width": 1, "height": 1, "renditions": [[96, 1, 1, 5], [512, 1, 1, 5], [1600, 1601, 1, 5]]}\n',
        b'{"width": 1, "height": 1, "renditions": [[96, 1, 1, 5], [512, 1, 1, 5], [1600, 1, 1, 99999999999]]}\n',
        b'{"width": 1, "height": 1, "renditions": [[96, 1, 1, -5], [512, 1, 1, 5], [1600, 1, 1, 5]]}\n',
        b'{"width": 1e999, "height": 1, "renditions": []}\n',
    ],
)
def test_what_a_process_that_was_taken_over_might_say_is_not_believed(line: bytes) -> None:
    with pytest.raises(BadAnswer):
        read_head(line)


def test_a_rendition_that_is_no_webp_is_not_believed() -> None:
    html = [Rendition(size, 1, 1, SCRIPT) for size in SIZES]
    head = read_head(answer_head(Rendered(1, 1, tuple(html))))
    with pytest.raises(BadAnswer):
        head.rendered(SCRIPT * 3)
