"""Reads the pieces of a writer, and checks the rules that every story must keep."""

from __future__ import annotations

import unicodedata
from contextlib import aclosing
from dataclasses import dataclass

from services.story.adapters.writers import Brief, Title, Usage, Words, Writer
from services.story.adapters.writers.prose import is_complete


@dataclass(frozen=True)
class Story:
    title: str
    text: str
    usage: Usage | None


async def read(writer: Writer, brief: Brief) -> Story:
    """Read the whole story, and check that its pieces come in the order that `Writer.write` promises."""
    async with aclosing(writer.write(brief)) as writing:
        pieces = [piece async for piece in writing]
    first, *rest = pieces
    assert isinstance(first, Title)
    last = rest[-1]
    usage = last if isinstance(last, Usage) else None
    words = [piece.text for piece in rest if isinstance(piece, Words)]
    assert len(words) == len(rest) - (usage is not None)
    assert all(words)
    return Story(first.text, "".join(words), usage)


def assert_well_formed(story: Story, brief: Brief) -> None:
    assert story.title
    assert len(story.title) <= 120
    assert story.title == story.title.strip()
    assert brief.length.fewest <= len(story.text.split()) <= brief.length.most
    assert story.text == story.text.strip()
    assert "\n\n\n" not in story.text
    for paragraph in story.text.split("\n\n"):
        assert is_complete(paragraph)
        assert paragraph == " ".join(paragraph.split(" "))
        assert paragraph == paragraph.strip()
    controls = {char for char in story.title + story.text if unicodedata.category(char)[0] == "C"}
    assert controls <= {"\n", "\u200c", "\u200d"}
