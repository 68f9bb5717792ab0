"""The plot that the composer and the local writer share."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given, settings

from services.story.adapters.writers import Brief, WordCount
from services.story.adapters.writers.plot import plot

from .briefs import PLAIN, briefs


@settings(max_examples=50, deadline=None)
@given(brief=briefs)
def test_every_slot_is_filled_and_nothing_is_filled_twice(brief: Brief) -> None:
    story = plot(replace(brief, preferences=("$hero",), theme="$theme", prompt="", first_name=""))
    texts = [story.closing, *(text for beat in story.beats for text in (beat.lead, *beat.stems, *beat.details))]

    assert "$" not in " ".join(texts).replace("$hero", "").replace("$theme", "")


def test_a_longer_story_has_more_beats() -> None:
    beats = [len(plot(replace(PLAIN, length=length)).beats) for length in WordCount]

    assert beats == sorted(set(beats))


def test_preferences_are_taken_once_each_and_five_at_most() -> None:
    story = plot(replace(PLAIN, preferences=("cats", "Cats", "", " ", "a", "b", "c", "d", "e")))

    assert story.loves == "Cats, a, b, c and d"


def test_the_reader_is_not_the_hero() -> None:
    for seed in range(200):
        story = plot(replace(PLAIN, first_name="Mara", seed=seed))
        assert story.hero != "Mara"
        assert "Mara" in story.closing
