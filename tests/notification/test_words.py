"""People's text as a mail shows it."""

from __future__ import annotations

import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.notification.model.words import plain

ZERO_WIDTH_SPACE, JOINER, NON_JOINER = "\u200b", "\u200d", "\u200c"

FULL_WIDTH = "".join(chr(ord(each) + 0xFEE0) for each in "http://evil.example")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("Ada", "Ada"),
        ("  Ada   Lovelace ", "Ada Lovelace"),
        ("J. R. R. Tolkien", "J. R. R. Tolkien"),
        ("O'Hara-Şahin Jr.", "O'Hara-Şahin Jr."),
        ("灯台の物語", "灯台の物語"),
        ("👩\u200d🚀 and the moon", "👩\u200d🚀 and the moon"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
        ("3:10 to Yuma, 2001: A Space Odyssey", "3:10 to Yuma, 2001: A Space Odyssey"),
        ("Firefox 128.0 on Linux 6.1", "Firefox 128.0 on Linux 6.1"),
        ("Wait... and see", "Wait... and see"),
        ("either/or", "either/or"),
        ("<b>x</b>", "<b>x</b>"),
        ("=?utf-8?q?x?=", "=?utf-8?q?x?="),
        # Text that mail clients turn into a link.
        ("Win at https://evil.example/x now", "Win at … now"),
        ("HTTP://EVIL.EXAMPLE", "…"),
        ("http:\u200b//evil.example", "…"),
        (FULL_WIDTH, "…"),
        ("www.evil.example", "…"),
        ("WWW\u3002evil\u3002example", "…"),
        ("mailto:me", "…"),
        ("tel:+1900", "…"),
        ("me@evil.example", "…"),
        ("me\uff20evil.example", "…"),
        (r"\\evil\share", "…"),
        ("evil.example", "evil. example"),
        ("evil.example/path?q", "evil. example/path?q"),
        ("evil\u3002example", "evil\u3002 example"),
        ("evil\uff0eexample", "evil\uff0e example"),
        ("evil\uff61example", "evil\uff61 example"),
        ("evil\u2024example", "evil\u2024 example"),
        (f"evil.{ZERO_WIDTH_SPACE}example", "evil. example"),
        (f"evil{JOINER}.{NON_JOINER}example", "evil. example"),
        ("evil.\u00adexample", "evil. example"),
        ("evil.ⓔⓧample", "evil. ⓔⓧample"),
        ("пример.испытание", "пример. испытание"),
        ("Dr.Jekyll", "Dr. Jekyll"),
        # Characters that are invisible.
        ("x\r\nBcc: evil", "x Bcc: evil"),
        ("x\u2028y\u2029z\x85a\x0bb", "x y z a b"),
        ("a\0b\x1b[31mc", "a b [31mc"),
        ("\u202egpj.exe\u2066", "gpj. exe"),
        ("\ufeffAda\u2060", "Ada"),
        ("a\ud800b", "a b"),
        ("\U000e0041Ada", "Ada"),
        ("", ""),
        ("\u200b \u202e", ""),
    ],
)
def test_words_are_shown_without_links_and_without_what_nobody_sees(text: str, shown: str) -> None:
    assert plain(text, 60) == shown


def test_words_are_cut_to_their_length() -> None:
    assert plain("x" * 40, 40) == "x" * 40
    assert plain("x" * 41, 40) == "x" * 39 + "…"
    assert plain("x" * 38 + " yyyy", 40) == "x" * 38 + "…"
    assert len(plain("e\N{COMBINING ACUTE ACCENT}" * 5 + "\N{COMBINING GRAVE ACCENT}" * 500, 40)) == 40
    assert len(plain("a.b" * 500, 40)) <= 40


@given(st.text(alphabet=st.sampled_from("aZ1 ./:@\\w\u3002\uff0e\u200b\u200d\u202e\u0301é\r\n\t界"), max_size=60))
def test_whatever_the_words_nothing_is_left_that_becomes_a_link(text: str) -> None:
    shown = plain(text, 40)
    assert len(shown) <= 40
    assert not [each for each in shown if unicodedata.category(each) == "Cc"]
    assert not re.search(r"//|@|\\\\|www\.\S|\w\.[^\W\d_]", unicodedata.normalize("NFKC", shown).replace("。", "."))
