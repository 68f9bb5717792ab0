"""The result of reading an answer does not depend on where the network or the tokenizer has split it."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import AnyStr

from hypothesis import given
from hypothesis import strategies as st

from services.story.adapters.writers.openai.answer import Surrogates
from services.story.adapters.writers.openai.event_stream import EventDecoder, ServerSentEvent
from services.story.adapters.writers.openai.opening import Announcement, Opening
from services.story.adapters.writers.openai.reasoning import Thoughts

LINES = st.sampled_from(
    ["data: a", "data:b", "data", "data: [DONE]", ": x", "event: ping", "id: 1", "retry: 9", "", "\ufeff", "ü"]
)
STREAM = st.lists(st.tuples(LINES, st.sampled_from(["\n", "\r", "\r\n"]))).map(
    lambda lines: "".join(map("".join, lines))
)
CUTS = st.lists(st.integers(0, 60))
MARKS = st.sampled_from(
    [
        *("<think>", "</think>", "<thinking a='b'>", "</thinking>", "[THINK]", "[/THINK]", "[T", "◁think▷", "<|end|>"),
        *("<b>", "<", "<|", "a", " ", "\n"),
    ]
)
HEADS = st.sampled_from(
    [
        *("Sure! ", "Here is ", "your story:", "The Key", "```", "# ", "Title: ", "---", "okay", "Once. ", "“"),
        *("\n", " "),
    ]
)


def cut_up(text: AnyStr, cuts: list[int]) -> list[AnyStr]:
    places = sorted({min(cut, len(text)) for cut in cuts} | {0, len(text)})
    return [text[start:end] for start, end in pairwise(places)]


def decoded(chunks: list[bytes]) -> list[ServerSentEvent]:
    decoder = EventDecoder()
    return [*(event for chunk in chunks for event in decoder.feed(chunk)), *decoder.finish()]


@given(STREAM, CUTS)
def test_events_are_the_same_however_their_bytes_are_cut(stream: str, cuts: list[int]) -> None:
    raw = stream.encode()

    assert decoded(cut_up(raw, cuts)) == decoded([raw])
    assert all(event.data.strip() for event in decoded([raw]))


@given(st.lists(MARKS), CUTS)
def test_thoughts_are_the_same_however_the_text_is_cut(marks: list[str], cuts: list[int]) -> None:
    def read(parts: list[str]) -> str:
        thoughts = Thoughts()
        return "".join(map(thoughts.feed, parts)) + thoughts.finish()

    # Only closing tags that close something, because another one would discard the text before it.
    text = "".join(mark for mark in marks if "/" not in mark)
    closed = f"<reasoning>{''.join(marks)}</reasoning>a{text}"
    assert read(cut_up(closed, cuts)) == read([closed])


@given(st.lists(HEADS), CUTS)
def test_a_title_is_the_same_however_the_text_is_cut(heads: list[str], cuts: list[int]) -> None:
    def read(parts: list[str]) -> tuple[str, str]:
        opening = Opening()
        told = [opening.rest if known else "" for part in parts if not opening.title and (known := opening.feed(part))]
        return opening.title, "".join(told)

    text = "".join(heads) + "\n\nThe Key\n\n"
    assert read(cut_up(text, cuts))[0] == read([text])[0]


@given(st.lists(HEADS), CUTS)
def test_an_announcement_is_the_same_however_the_text_is_cut(heads: list[str], cuts: list[int]) -> None:
    def read(parts: list[str]) -> str:
        announcement = Announcement()
        return "".join(map(announcement.feed, parts)) + announcement.feed("", is_all=True)

    text = "".join(heads) + "\nOnce."
    assert read(cut_up(text, cuts)) == read([text])


@given(st.text(st.sampled_from("a\ud83d\ude00\udc00\ud800é😀")), CUTS)
def test_halves_of_characters_are_joined_or_left_out_wherever_the_text_is_cut(text: str, cuts: list[int]) -> None:
    surrogates = Surrogates()
    joined = "".join(map(surrogates.join, cut_up(text, cuts)))

    assert joined == text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "ignore")
    assert joined.encode().decode() == joined


def test_no_text_takes_long_to_read() -> None:
    began = time.process_time()

    for text in ("<a" + " " * 100_000, "<" * 100_000, "<think " * 20_000, "[THIN" * 20_000, "<|a" * 30_000):
        thoughts = Thoughts()
        thoughts.feed(text)
        thoughts.finish()
    for text in (
        "Here is " * 20_000,
        "a:" * 50_000,
        "Sure, " * 20_000,
        "- " * 50_000,
        "Here is a story " * 10_000 + "\n",
    ):
        Opening().feed(text + "\n", is_all=True)

    assert time.process_time() - began < 10
