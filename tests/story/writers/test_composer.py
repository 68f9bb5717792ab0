"""The composer keeps the rules of stories for any input of readers."""

from __future__ import annotations

import asyncio
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.story.adapters.writers import Brief, Refusal, Title, WordCount, Words, WriterRefused
from services.story.adapters.writers.composer import CREDIT, ComposerWriter

from .briefs import ODD_TEXTS, PLAIN, briefs
from .reading import assert_well_formed, read

WRITER = ComposerWriter(pace_seconds=0)


@settings(max_examples=150, deadline=None)
@given(brief=briefs)
async def test_any_brief_becomes_a_whole_story_of_its_length(brief: Brief) -> None:
    assert_well_formed(await read(WRITER, brief), brief)


@pytest.mark.parametrize("length", list(WordCount))
async def test_the_length_is_met_for_many_seeds(length: WordCount) -> None:
    for seed in range(100):
        brief = replace(PLAIN, length=length, seed=seed)
        assert_well_formed(await read(WRITER, brief), brief)


async def test_the_same_brief_gives_the_same_story() -> None:
    assert await read(WRITER, PLAIN) == await read(WRITER, replace(PLAIN))


async def test_another_seed_gives_another_story() -> None:
    stories = {(await read(WRITER, replace(PLAIN, seed=seed))).text for seed in range(50)}

    assert len(stories) == 50


async def test_the_reader_finds_what_they_asked_for() -> None:
    brief = Brief(
        preferences=("cats", "rainy days"), theme="courage", prompt="With a dragon, please!", first_name="Ada"
    )

    story = await read(WRITER, brief)

    for wanted in ("cats and rainy days", "courage", "“With a dragon, please!”", "Ada"):
        assert wanted in story.text


@pytest.mark.parametrize("text", ODD_TEXTS[:1])
async def test_templates_in_a_readers_words_stay_words(text: str) -> None:
    story = await read(WRITER, replace(PLAIN, prompt=text, theme=text))

    assert f"“{text}.”" in story.text


@given(brief=briefs, cut=st.floats(0, 1))
@settings(max_examples=50, deadline=None)
async def test_it_goes_on_wherever_it_was_broken_off(brief: Brief, cut: float) -> None:
    story = await read(WRITER, brief)
    had = story.text[: int(cut * len(story.text))]

    rest = WRITER.go_on(brief, story.title, had)

    assert rest is not None
    assert had + "".join([piece.text async for piece in rest if isinstance(piece, Words)]) == story.text


@pytest.mark.parametrize(("title", "text"), [("", "Somebody else's words"), ("Another", ""), ("", "")])
async def test_it_does_not_go_on_with_what_it_would_not_have_written(title: str, text: str) -> None:
    own = await read(WRITER, PLAIN)

    assert (WRITER.go_on(PLAIN, title or own.title, text) is None) is bool(title or text)


async def test_the_story_says_how_it_was_made() -> None:
    assert (await read(WRITER, PLAIN)).text.endswith(CREDIT)
    assert (WRITER.name, WRITER.model) == ("composer", "composer-1")


async def test_a_given_title_stands_on_one_line() -> None:
    assert (await read(WRITER, replace(PLAIN, title=" My\nown  title "))).title == "My own title"


@pytest.mark.parametrize("language", ["de", "ja-JP", "english", "zxx"])
async def test_other_languages_are_refused(language: str) -> None:
    with pytest.raises(WriterRefused) as refused:
        await read(WRITER, replace(PLAIN, language=language))

    assert refused.value.reason == Refusal.LANGUAGE_UNSUPPORTED


async def test_words_come_one_at_a_time_at_their_pace() -> None:
    began = asyncio.get_running_loop().time()
    writing = ComposerWriter(pace_seconds=0.01).write(PLAIN)

    pieces = [await anext(writing) for _ in range(11)]
    await writing.aclose()

    assert asyncio.get_running_loop().time() - began >= 0.1
    assert isinstance(pieces[0], Title)
    assert [len(piece.text.split()) for piece in pieces[1:] if isinstance(piece, Words)] == [1] * 10


async def test_a_story_can_be_cancelled_between_two_words() -> None:
    writing = ComposerWriter(pace_seconds=3600).write(PLAIN)
    await anext(writing)
    next_word = asyncio.ensure_future(anext(writing))
    await asyncio.sleep(0)

    next_word.cancel()

    with pytest.raises(asyncio.CancelledError):
        await next_word
    with pytest.raises(StopAsyncIteration):
        await anext(writing)
