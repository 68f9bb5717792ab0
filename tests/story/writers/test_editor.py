"""The sentences that the editor accepts and rejects."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.story.adapters.writers import WordCount
from services.story.adapters.writers.editor import Editor
from services.story.adapters.writers.plot import Plot, plot

from .briefs import PLAIN


def plot_about(pronoun: str) -> Plot:
    """Return the first plot whose hero has this pronoun."""
    plots = (plot(replace(PLAIN, length=WordCount.LONG, prompt="My daughter reads.", seed=seed)) for seed in range(100))
    return next(found for found in plots if found.pronouns[0] == pronoun)


SHE, HE = plot_about("she"), plot_about("he")


@pytest.mark.parametrize(
    "sentence",
    [
        "The wind blew all the leaves away.",
        "Very carefully she opened the door.",
        "“Perhaps it belongs to you,” she said.",
        "Her feet were cold, and the café was closed.",
        f"{SHE.hero} smiled at the moon.",
        f"It was {SHE.hero}’s favourite place.",  # noqa: RUF001 - models write both apostrophes
    ],
)
def test_a_plain_sentence_may_stand(sentence: str) -> None:
    assert Editor(SHE).fault(sentence) is None


@pytest.mark.parametrize(
    ("sentence", "fault"),
    [
        ("The wind blew all", "fragment"),
        ("She smiled.", "fragment"),
        ("“Perhaps it belongs to you, she said.", "open quotation"),
        ("There were 12 cats on the roof.", "odd characters"),
        ("The wind - *really* - blew.", "odd characters"),
        ("It said HELP in large letters.", "odd characters"),
        ("This is the moral of it all.", "talks about the text"),
        ("They lived happily ever after.", "talks about the text"),
        ("The soup tasted of blood and salt.", "unfit"),
        ("I went home with the lantern.", "first or second person"),
        ("It shows that you are brave.", "first or second person"),
        ("He looked at the stars.", "stranger"),
        ("Her mother's kitchen was warm.", "stranger"),
        ("She thought of her daughter all day.", "stranger"),
        ("She met a robot called Kylo there.", "new name"),
        ("Kylo came in through the window.", "new name"),
    ],
)
def test_a_sentence_that_drifts_is_found_out(sentence: str, fault: str) -> None:
    assert Editor(SHE).fault(sentence) == fault


def test_the_heros_pronoun_decides_who_is_a_stranger() -> None:
    assert Editor(HE).fault("He looked at the stars.") is None
    assert Editor(HE).fault("She looked at the stars.") == "stranger"


def test_what_has_been_said_is_not_said_again() -> None:
    editor = Editor(SHE)
    editor.remember("The wind blew all the leaves from the old trees.")

    assert editor.fault("The wind blew all the leaves from the old house.") == "same opening"
    assert editor.fault("And the wind blew all the leaves from the old house.") == "repetition"
    assert editor.fault("Soon it was quite dark.") is None


@pytest.mark.parametrize(
    ("raw", "polished"),
    [
        ('"Go," she said, "now."', "“Go,” she said, “now.”"),
        ('“Go," she said.', "“Go,” she said."),
        (' She said: "Go." ', "She said, “Go.”"),
    ],
)
def test_quotation_marks_become_the_plots_own(raw: str, polished: str) -> None:
    assert Editor(SHE).polish(raw) == polished
