"""Splitting, bounding and cleaning of text."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.story.adapters.writers.prose import (
    Plain,
    and_list,
    fragment,
    is_complete,
    one_line,
    phrase,
    split_sentence,
)


@given(st.text())
def test_a_fragment_is_one_bounded_line_without_double_quotes(text: str) -> None:
    cut = fragment(text, max_words=5, max_bytes=40)

    assert cut == one_line(cut)
    assert len(cut.split()) <= 5
    assert len(cut.encode()) <= 40 + len("…".encode())
    assert not set(cut) & set('"“”«»„\n\r\t')


@pytest.mark.parametrize(
    ("text", "max_bytes", "cut"),
    [
        ("one two", 40, "one two"),
        ("one two three", 40, "one two…"),
        ("one, two, three", 40, "one, two…"),
        ("éééééééééééé", 11, "ééééé…"),
        ("a\x00b\u202ec", 40, "a bc"),
        ("👩‍👧 x", 40, "👩‍👧 x"),
        ("👩‍👧‍👧", 7, "👩…"),
        ("", 40, ""),
        (" \n ", 40, ""),
    ],
)
def test_fragments_are_cut_between_characters_and_marked(text: str, max_bytes: int, cut: str) -> None:
    assert fragment(text, max_words=2, max_bytes=max_bytes) == cut


def test_a_phrase_has_no_punctuation_at_its_ends() -> None:
    assert phrase("  'Cats!' ", max_words=3, max_bytes=40) == "Cats"


@pytest.mark.parametrize(
    ("items", "text"), [((), ""), (("a",), "a"), (("a", "b"), "a and b"), (("a", "b", "c"), "a, b and c")]
)
def test_lists_read_as_english(items: tuple[str, ...], text: str) -> None:
    assert and_list(items) == text


@pytest.mark.parametrize(
    ("text", "cut"),
    [
        ("One. Two", ("One.", " Two")),
        ("One.", None),
        ("It was 3.5 metres", None),
        ("Dr. Who came. Then", ("Dr. Who came.", " Then")),
        ("J. R. came! Then", ("J. R. came!", " Then")),
        ("It was I. Then", ("It was I.", " Then")),
        ("“Go!” she said. Then", ("“Go!”", " she said. Then")),
        ("Well... yes", ("Well...", " yes")),
        ("ある日。次の日。", ("ある日。", "次の日。")),
    ],
)
def test_sentences_end_where_they_must(text: str, cut: tuple[str, str] | None) -> None:
    assert split_sentence(text) == cut


@pytest.mark.parametrize(
    ("text", "complete"),
    [
        *(("One.", True), ("“One!”", True), ("One", False), ("One,", False), ("", False)),
        *(
            ("One. 🌟\ufe0f", True),
            ("🌟", False),
            ("One 🌟", False),
            ("„Eins.“", True),
            ("»En.«", True),
            ("He met Dr.", False),
        ),
        *(
            ("एक।", True),
            ("一。」", True),
            ("واحد؟", True),
            ("មួយ។", True),
            ("One:", False),
            ("One —", False),
            ("one st", False),
        ),
    ],
)
def test_complete_text_ends_with_a_sentence(text: str, complete: bool) -> None:
    assert is_complete(text) is complete


@pytest.mark.parametrize(
    ("raw", "plain"),
    [
        ("# One\n**two**  `three`", "One\n\ntwo three"),
        ("\n\n  One\r\n\r\n\r\nTwo \n", "One\n\nTwo"),
        ("One.\n\nThe end.", "One."),
        ("One.\n\nTHE END!\n\nTwo.", "One.\n\nTwo."),
        ("One.\n\nThe end of it.", "One.\n\nThe end of it."),
        ("One. The end.", "One. The end."),
        ("The end", ""),
        *((f"One.\n{rule}\nTwo.", "One.\n\nTwo.") for rule in ("---", "===", "- - -", "—")),
        *((f"One.\n{kept}\nTwo.", f"One.\n\n{kept}\n\nTwo.") for kept in ("...", "— No.", "-5")),
        *((f"One.\n\n{end}\n", "One.") for end in ("~ The End ~", "— Fin —", "(The end)", "ENDE", "完", "[The End.]")),
        *((f"One.\n\n{end}", "One.") for end in ("Word count: 352", "(352 words)", "**Word count:** 99 words")),
        *((f"One.\n\n{kept}", f"One.\n\n{kept}") for kept in ("“The end.”", "Fin ran.", "3 words fell.", "Finn", "7")),
        ("The\nend", "The\n\nend"),
        ("a\x00b\u202ec\u200dd", "abc\u200dd"),
        ("```text\nOne.\n```\nTwo.\n  ~~~~\nThree.", "One.\n\nTwo.\n\nThree."),
        ("`One` ~two~\n~~three~~\n~", "One ~two~\n\n~~three~~"),
    ],
)
@pytest.mark.parametrize("step", [1, 3, 1000])
def test_model_output_becomes_plain_text_however_it_is_cut(raw: str, plain: str, step: int) -> None:
    cleaner = Plain()

    text = "".join(cleaner.feed(raw[start : start + step]) for start in range(0, len(raw), step)) + cleaner.flush()

    assert text == plain


@given(st.lists(st.text(alphabet="The end.\n #a", max_size=5)))
def test_cleaning_does_not_depend_on_where_the_stream_is_cut(parts: list[str]) -> None:
    pieces, whole = Plain(), Plain()

    assert "".join(map(pieces.feed, parts)) + pieces.flush() == whole.feed("".join(parts)) + whole.flush()
