"""Letters: what a template may show of the facts of an event, in both parts and every language."""

from __future__ import annotations

import re
import shutil
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.notification.model import Kind
from services.notification.model.letters import Brand, Letters, kinds, languages
from services.notification.model.letters.samples import samples
from services.notification.model.letters.writing import TEMPLATES, UNPROVEN
from services.notification.model.notices import NOTICES
from services.notification.model.notifications import ShortText
from services.notification.model.rendering import Sender, render

NOW = datetime(2026, 11, 29, 18, 5, tzinfo=UTC)
PUBLIC_URL = "https://stories.example"
UNSUBSCRIBE_URL = "https://stories.example/v1/unsubscribe?token=x&y=1"
SENDER = Sender("a@mail.example")
LETTERS = Letters(Brand(), public_url=PUBLIC_URL + "/")
ALL = [(kind, language) for kind in kinds() for language in languages()]

SECRET = "zebra"
"""A word that no template holds."""


def facts(**others: object) -> dict[str, object]:
    """Facts of every name that a template uses."""
    given = {
        "first_name": "Ada",
        "code": "04071826",
        "expire_time": NOW + timedelta(minutes=10),
        "page_path": "/s/abc_-xyz",
        "title": "The Lighthouse",
        "excerpt": "Nobody had climbed it since the storm.",
        "reason": "CONTENT_REFUSED",
        "reset": False,
        "device_name": "Firefox",
        "description": "The lamp",
        "ip": "2001:db8::a:b",
        "sign_in_time": NOW,
        "stop_token": "sms1_" + 43 * "x",
        "stop_expire_time": NOW + timedelta(days=7),
        "sealed_mail": b"sealed",
        "more": 3,
        **others,
    }
    return {"notices": [("STORY_READY", given), ("STORY_FAILED", given)], **given}


def people(text: str) -> dict[str, object]:
    """Facts whose texts of people are `text`."""
    return facts(first_name=text, title=text, excerpt=text, device_name=text, description=text, reason=text)


ELEMENTS = {"html", "head", "meta", "title", "style", "body", "div", "table", "tr", "td", "p", "h1", "a", "br"}


class Outline(HTMLParser):
    """The elements of a page with their attributes, and the text that is shown."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, tuple[tuple[str, str | None], ...]]] = []
        self.comments: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, tuple(attrs)))

    def handle_endtag(self, tag: str) -> None:
        self.elements.append((f"/{tag}", ()))

    def handle_comment(self, data: str) -> None:
        self.comments.append(data)

    def handle_data(self, data: str) -> None:
        self.text += data

    def all_of(self, attribute: str) -> set[str | None]:
        return {value for _, attributes in self.elements for name, value in attributes if name == attribute}


HOSTILE = [
    '<script>alert(1)</script><img src="https://evil.example/x.png" onerror=alert(1)>',
    '"><a href="https://evil.example">x</a>',
    "'><a href=javascript:alert(1)>x</a>",
    "</title></td></table><style>*{display:none}</style><!--",
    "--> <![endif]--> ]]> &lt;b&gt; &#60;b&#62;",
    "{{ 7 * 7 }}{% raw %}{# x #} ${7*7}",
    "{{ self.__class__ }}",
    "x\r\nBcc: evil@example.com\r\n\r\nYour code is 999999.",
    "https://evil.example www.evil.example evil.example me@evil.example javascript:alert(1)",
    "\u202egpj.exe\u2066\0\ud800",
    "=?utf-8?q?x=0d=0aBcc=3a_b=40evil.example?=",
    "x" * 5000,
]


@pytest.mark.parametrize("text", HOSTILE)
def test_no_text_of_people_adds_an_element_a_link_a_line_or_a_header(text: str) -> None:
    for kind, language in ALL:
        tame, wild = (
            LETTERS.write(kind, given, now=NOW, language=language, unsubscribe_url=UNSUBSCRIBE_URL)
            for given in (people("Ada"), people(text))
        )
        assert Outline(wild.html).elements == Outline(tame.html).elements
        assert Outline(wild.html).comments == Outline(tame.html).comments
        for shown in (wild.subject, wild.body, Outline(wild.html).text):
            assert "evil.example" not in shown
            assert "49" not in shown
        assert len(wild.body.splitlines()) == len(tame.body.splitlines())
        assert len(wild.html) < 20_000
        mail = render(wild, SENDER, "ada@example.com", event_id=UUID(int=7), sent_at=NOW, trace_id="")
        assert not re.search(rb"^Bcc:", mail, re.MULTILINE)


@settings(max_examples=60)
@given(st.text(alphabet=st.sampled_from("<>&\"'`{}%#=/:.@\\-!aZ \u3000\u2028\r\n\0é界"), max_size=80))
def test_whatever_people_write_the_structure_of_a_letter_is_its_template(text: str) -> None:
    tame, wild = (
        LETTERS.write("STORY_READY", given, now=NOW)
        for given in (facts(), facts(first_name=text, title=text, excerpt=f"x{text}"))
    )
    assert Outline(wild.html).elements == Outline(tame.html).elements
    assert len(wild.body.splitlines()) == len(tame.body.splitlines())


def test_a_letter_loads_nothing_runs_nothing_and_links_to_the_mesh_alone() -> None:
    for kind, language in ALL:
        html = LETTERS.write(kind, facts(), now=NOW, language=language, unsubscribe_url=UNSUBSCRIBE_URL).html
        outline = Outline(html)
        assert {tag.strip("/") for tag, _ in outline.elements} <= ELEMENTS
        assert outline.all_of("href") <= {UNSUBSCRIBE_URL, f"{PUBLIC_URL}/s/abc_-xyz"}
        assert not [name for _, attributes in outline.elements for name, _ in attributes if name.startswith("on")]
        assert not re.search(r"url\(|@import|expression\(|src=", html)
        # Screen readers read tables aloud as tables, unless they are told that these only lay out.
        tables = [attributes for tag, attributes in outline.elements if tag == "table"]
        assert all(("role", "presentation") in attributes for attributes in tables)


@pytest.mark.parametrize("language", languages())
@pytest.mark.parametrize("kind", sorted(UNPROVEN))
def test_a_letter_to_an_unproven_address_holds_no_text_of_people(kind: str, language: str) -> None:
    letter = LETTERS.write(kind, people(SECRET), now=NOW, language=language)
    assert SECRET not in letter.subject + letter.body + letter.html
    assert "04071826" in letter.body


@pytest.mark.parametrize("language", languages())
@pytest.mark.parametrize("kind", [kind for kind in kinds() if kind.endswith("CODE")])
def test_the_code_is_the_only_number_in_a_mail_that_could_be_one(kind: str, language: str) -> None:
    letter = LETTERS.write(kind, facts(), now=NOW, language=language)
    assert re.findall(r"\b\d{6,8}\b", letter.body) == ["04071826"]
    assert re.findall(r"\b\d{6,8}\b", letter.html) == ["04071826"]


def test_both_parts_say_the_same() -> None:
    for kind, language in ALL:
        letter = LETTERS.write(kind, facts(), now=NOW, language=language)
        outline = Outline(letter.html)
        html = " ".join([*outline.text.split(), *map(str, outline.all_of("href"))])
        for line in letter.body.splitlines():
            # The full stop after a code belongs to the text part, which shows no box around it.
            for piece in re.split(r" (?=04071826)|(?<=04071826)\.", line.strip().removeprefix("- ")):
                assert piece in html, (kind, language)


def test_a_mailbox_shows_beside_the_subject_what_the_letter_says_and_nothing_of_its_layout() -> None:
    for kind, language in ALL:
        letter = LETTERS.write(kind, facts(), now=NOW, language=language)
        short = LETTERS.short(kind, facts(), now=NOW, language=language).body
        shown = Outline(letter.html.partition("<body")[2]).text.partition(">")[2].lstrip()
        expected = str(facts()["excerpt"]) if kind == "STORY_READY" else short
        assert shown.startswith(expected)
        # Invisible filler, so that mailboxes with room for more do not go on with the greeting.
        assert len(shown[len(expected) :]) - len(shown[len(expected) :].lstrip("\u2007\u200c")) > 100


def test_the_language_is_the_readers_then_the_default_then_english() -> None:
    german = Letters(Brand(), public_url=PUBLIC_URL, default_language="de")
    for letters, language, expected in [
        (LETTERS, "", "en"),
        (LETTERS, "de", "de"),
        (LETTERS, "de-AT", "de"),
        (LETTERS, "DE_ch", "de"),
        (LETTERS, "deu", "en"),
        (LETTERS, "fr", "en"),
        (LETTERS, "../en", "en"),
        (german, "", "de"),
        (german, "fr", "de"),
        (german, "en-GB", "en"),
    ]:
        letter = letters.write("WELCOME", facts(), now=NOW, language=language)
        assert (letter.language, letter.body.partition(" ")[0]) == (expected, {"en": "Hello", "de": "Hallo"}[expected])
        assert f'lang="{expected}"' in letter.html


def test_a_kind_that_a_language_lacks_is_wholly_in_the_default_language(tmp_path: Path) -> None:
    templates = tmp_path / "templates"
    shutil.copytree(TEMPLATES, templates)
    (templates / "de" / "welcome.jinja").unlink()
    letters = Letters(Brand(), public_url=PUBLIC_URL, templates=templates)
    lacking = letters.write("WELCOME", facts(), now=NOW, language="de", unsubscribe_url=UNSUBSCRIBE_URL)
    english = LETTERS.write("WELCOME", facts(), now=NOW, language="en", unsubscribe_url=UNSUBSCRIBE_URL)
    assert lacking == english
    assert letters.write("STORY_READY", facts(), now=NOW, language="de").language == "de"


def test_a_template_that_uses_what_the_event_lacks_or_links_to_a_text_of_people_fails(tmp_path: Path) -> None:
    templates = tmp_path / "templates"
    shutil.copytree(TEMPLATES, templates)
    body = "{%% block subject %%}x{%% endblock %%}{%% block short %%}x{%% endblock %%}{%% block content %%}%s{%% endblock %%}"
    for name, content in {
        "missing": "{{ nothing }}",
        "linking": '{% call button("x", title) %}x{% endcall %}',
        "reaching": "{{ brand.__class__.__mro__ }}",
    }.items():
        (templates / "en" / f"{name}.jinja").write_text(body % content)
        with pytest.raises(Exception, match=r"undefined|no Link|unsafe"):
            Letters(Brand(), public_url=PUBLIC_URL, templates=templates).write(name, facts(), now=NOW)


def test_the_brand_is_in_every_letter_and_no_other_name(tmp_path: Path) -> None:
    brand = Brand("Märchen & Co", "#ffcc00", "https://cdn.example/logo.png?a=1&b=2", "Märchen & Co\nWeg 1 <2>\nBerlin")
    letters = Letters(brand, public_url=PUBLIC_URL)
    for kind, language in ALL:
        letter = letters.write(kind, facts(), now=NOW, language=language)
        assert "Storymesh" not in letter.subject + letter.body + letter.html
        assert letter.body.endswith("\nMärchen & Co\n\n-- \nMärchen & Co\nWeg 1 <2>\nBerlin\n")
        outline = Outline(letter.html)
        assert outline.all_of("src") == {"https://cdn.example/logo.png?a=1&b=2"}
        assert outline.all_of("alt") == {"Märchen & Co"}
        assert "Weg 1 <2>" in outline.text
        assert "#ffcc00" in letter.html


@pytest.mark.parametrize("color", ["#000000", "#ffffff", "#5b4bdb", "#ffcc00", "#777777", "#ff0000", "#00ff00"])
def test_text_on_the_brands_colour_is_readable(color: str) -> None:
    def luminance(of: str) -> float:
        channels = [int(of[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in channels]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted([luminance(color), luminance(Brand(color=color).text_color)])
    assert (high + 0.05) / (low + 0.05) >= 4.5


@pytest.mark.parametrize("color", ["", "red", "#fff", "#12345g", "#123456;}", "#1234567"])
def test_a_colour_is_six_digits_so_that_it_adds_no_style(color: str) -> None:
    with pytest.raises(ValueError, match="colour"):
        Brand(color=color)


def test_a_notice_in_the_application_is_short_and_names_nobody() -> None:
    for kind, language in ALL:
        told = LETTERS.short(kind, people(SECRET), now=NOW, language=language)
        title, short = told.title, told.body
        assert 0 < len(title) <= 200
        assert 0 < len(short) <= 200
        assert not re.search(r"\n|https?:|<|Hello|Hallo", title + short)
    assert LETTERS.short("STORY_READY", facts(), now=NOW) == ShortText(
        "Your story is ready: The Lighthouse", "It has been written for you.", "en"
    )


def test_every_fact_that_a_template_uses_has_a_sample() -> None:
    shown = {kind for kind, _, given, _ in samples() if LETTERS.write(kind, given, now=NOW)}
    assert shown == set(kinds())


@pytest.mark.parametrize(
    ("seconds", "english", "german"), [(600, "10 minutes", "10 Minuten"), (59, "1 minute:", "Minute:")]
)
def test_minutes_are_counted_in_the_readers_grammar(seconds: int, english: str, german: str) -> None:
    given = facts(expire_time=NOW + timedelta(seconds=seconds))
    assert english in LETTERS.write("CODE", given, now=NOW, language="en").body
    assert german in LETTERS.write("CODE", given, now=NOW, language="de").body


def test_each_kind_of_notice_has_a_template_and_each_language_all_of_them() -> None:
    assert set(kinds()) == set(Kind) == set(NOTICES)
    files = {folder.name: {file.name for file in folder.iterdir()} for folder in TEMPLATES.iterdir() if folder.is_dir()}
    assert files["en"] == files["de"]
    assert set(files) == set(languages())
