"""The composer: a writer by rules, with no model, no download and no network.

It serves tests, benchmarks and machines on which no model runs. The same brief always gives the same text. It writes English
only, it cannot follow a prompt (the story's people find it as a note), and its last line says that rules wrote the story.
"""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing

from . import Brief, Piece, Title, Words, require_language
from .plot import Plot, plot
from .prose import count_words

CREDIT = "(Composed by rule, without a language model.)"

_WORD = re.compile(r"\s*\S+")


class ComposerWriter:
    """Writes at a steady pace: `pace_seconds` between two words; 0: as fast as the caller takes them."""

    name = "composer"
    model = "composer-1"

    def __init__(self, *, pace_seconds: float = 0.02) -> None:
        self._pace_seconds = pace_seconds

    async def warm_up(self) -> None:
        """Do nothing: there is no model to load."""

    async def write(self, brief: Brief) -> AsyncGenerator[Piece, None]:
        require_language(brief, "composer")
        story = plot(brief)
        yield Title(story.title)
        async with aclosing(self._words(compose(story, brief))) as words:
            async for word in words:
                yield word

    def go_on(self, brief: Brief, title: str, text: str) -> AsyncGenerator[Piece, None] | None:
        story = plot(brief)
        whole = compose(story, brief)
        if title != story.title or not whole.startswith(text):
            return None
        return self._words(whole[len(text) :])

    async def _words(self, text: str) -> AsyncGenerator[Piece, None]:
        for word in _WORD.findall(text):
            if self._pace_seconds > 0:
                await asyncio.sleep(self._pace_seconds)
            yield Words(word)

    async def aclose(self) -> None:
        """Do nothing: there is nothing to free."""


def compose(story: Plot, brief: Brief) -> str:
    """Compose the whole text: every lead, and as many details as the length allows, spread evenly and in their order."""
    rng = random.Random(brief.seed)  # noqa: S311 - to be repeatable, not secret
    chosen: set[tuple[int, int]] = set()
    words = count_words([*(beat.lead for beat in story.beats), story.closing, CREDIT])
    candidates = [
        (rng.random() + rank, beat, detail)
        for beat, details in enumerate(story.beats)
        for rank, detail in enumerate(_shuffled(rng, details.details))
    ]
    for _, beat, detail in sorted(candidates):
        size = count_words([story.beats[beat].details[detail]])
        if words + size <= brief.length.words:
            chosen.add((beat, detail))
            words += size
    paragraphs = [
        " ".join([beat.lead, *(text for j, text in enumerate(beat.details) if (i, j) in chosen)])
        for i, beat in enumerate(story.beats)
    ]
    return "\n\n".join([*paragraphs, story.closing, CREDIT])


def _shuffled(rng: random.Random, details: tuple[str, ...]) -> list[int]:
    order = list(range(len(details)))
    rng.shuffle(order)
    return order
