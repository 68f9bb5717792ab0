"""Renders the templates of a kind into a letter."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import FileSystemLoader, StrictUndefined, Template
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from .. import Letter
from ..notices import NOTICES
from ..notifications import ShortText
from .brand import Brand
from .moments import Moments
from .values import Facts, Link, harmless, headed

TEMPLATES = Path(__file__).parent / "templates"
_BASE = "en"
"""The language that has all kinds."""

UNPROVEN = frozenset(notice.kind for notice in NOTICES.values() if not notice.proven)
"""The kinds that go to addresses which nobody has proven: text of people in them would reach strangers."""

_LAYOUT = "layout"
_UTC = "UTC"
_EMPTY_LINES = re.compile(r"\n{3,}")


class Letters:
    """Writes letters in the brand's look and the reader's language."""

    def __init__(
        self, brand: Brand, *, public_url: str, default_language: str = _BASE, templates: Path = TEMPLATES
    ) -> None:
        self._public_url = public_url.rstrip("/")
        self._default_language = default_language
        self._templates = templates
        given = {"brand": brand, "public_link": self._public_link}
        self._html = _Format(_environment(templates, html=True), given, "html")
        self._text = _Format(_environment(templates, html=False), given, "txt")

    def write(
        self,
        kind: str,
        facts: Facts,
        *,
        now: datetime,
        language: str = "",
        time_zone: str = _UTC,
        unsubscribe_url: str = "",
    ) -> Letter:
        """Write a letter of the facts, by the names that the event's contract gives them.

        The fact `notices`, which digests have, is a list of kinds and facts; the template gets the title and link of each.
        `language` is the reader's, as a BCP 47 tag; empty: the default. `time_zone` is the reader's, by its IANA name.
        The greeting names the fact `first_name`, if there is one.
        With `unsubscribe_url`, a page where the reader stops such mails, the letter ends with a link to it.
        """
        found = self._language(kind, language)
        given = self._given(kind, facts, now, found, time_zone)
        given["first_name"] = given.get("first_name", "")
        given["unsubscribe_url"] = Link(unsubscribe_url) if unsubscribe_url else ""
        text = self._text.of(found, kind, given)
        around = self._text.of(found, _LAYOUT, given)
        given |= {name: around.block(name) for name in around.names}
        given["language"] = found
        given["subject"] = subject = headed(text.block("subject"), facts, found)
        given["preheader"] = text.block("preheader" if "preheader" in text.names else "short")
        given["heading"] = text.block("heading") if "heading" in text.names else subject
        body = self._text.whole(given, text.content())
        html = self._html.whole(given, self._html.of(found, kind, given).content())
        return Letter(subject, body, html, found)

    def short(self, kind: str, facts: Facts, *, now: datetime, language: str = "", time_zone: str = _UTC) -> ShortText:
        """The title and the text of a notice inside the application, which names nobody."""
        found = self._language(kind, language)
        blocks = self._text.of(found, kind, self._given(kind, facts, now, found, time_zone))
        return ShortText(blocks.block("subject"), blocks.block("short"), found)

    def _language(self, kind: str, language: str) -> str:
        """The language of the letter: the reader's, or the default, or English, the first that has the kind."""
        wanted = re.split(r"[-_]", language.lower(), maxsplit=1)[0]
        has = _languages_of(kind, self._templates)
        return next((each for each in (wanted, self._default_language) if each in has), _BASE)

    def _given(self, kind: str, facts: Facts, now: datetime, language: str, time_zone: str) -> dict[str, Any]:
        def minutes_until(time: datetime) -> int:
            return max(math.ceil((time - now).total_seconds() / 60), 0)

        moments = Moments(time_zone, language, now)
        given = {
            **harmless(facts, of_people=kind not in UNPROVEN),
            "minutes_until": minutes_until,
            "moment": moments.moment,
            "clock": moments.clock,
        }
        if "notices" in facts:
            given["notices"] = [self._entry(kind, of_it, now, language, time_zone) for kind, of_it in facts["notices"]]
        return given

    def _entry(self, kind: str, facts: Facts, now: datetime, language: str, time_zone: str) -> dict[str, str]:
        """What a digest shows of a notice: its title and, if a mail of its own would lead to a page, the link and its words."""
        found = self._language(kind, language)
        given = self._given(kind, facts, now, found, time_zone)
        blocks = self._text.of(found, kind, given)
        path = given.get("page_path", "")
        leads = bool(path) and "action" in blocks.names
        return {
            "title": headed(blocks.block("subject"), facts, found),
            "link": self._public_link(path) if leads else "",
            "action": blocks.block("action") if leads else "",
        }

    def _public_link(self, path: str) -> Link:
        return Link(self._public_url + path)


@cache
def languages() -> tuple[str, ...]:
    """The languages of letters, as primary subtags (BCP 47): English first, which has all kinds."""
    others = {folder.name for folder in TEMPLATES.iterdir() if folder.is_dir()} - {_BASE}
    return (_BASE, *sorted(others))


@cache
def kinds() -> tuple[str, ...]:
    """The kinds of letters, by the names of `Kind`."""
    return tuple(sorted(file.stem.upper() for file in (TEMPLATES / _BASE).glob("*.jinja") if file.stem != _LAYOUT))


@cache
def _languages_of(kind: str, templates: Path) -> frozenset[str]:
    """The languages in which a kind is written."""
    return frozenset(file.parent.name for file in templates.glob(f"*/{kind.lower()}.jinja"))


class _Format:
    """The templates of one part of mails, with the macros by which kinds write their contents."""

    def __init__(self, environment: ImmutableSandboxedEnvironment, given: Mapping[str, Any], suffix: str) -> None:
        self._environment = environment
        parts = environment.get_template(f"parts.{suffix}.jinja").make_module(dict(given))
        macros = {name: macro for name, macro in vars(parts).items() if not name.startswith("_")}
        self._given = {**given, **macros}
        self._layout = environment.get_template(f"layout.{suffix}.jinja")

    def of(self, language: str, kind: str, given: Mapping[str, Any]) -> _Blocks:
        """The blocks of a kind. Facts never take the place of what every template has."""
        template = self._environment.get_template(f"{language}/{kind.lower()}.jinja")
        return _Blocks(template, {**given, **self._given})

    def whole(self, given: Mapping[str, Any], content: str) -> str:
        """The whole part, around a kind's content."""
        return self._layout.render({**given, **self._given, "content": content}).strip("\n") + "\n"


class _Blocks:
    """The blocks of one file."""

    def __init__(self, template: Template, given: dict[str, Any]) -> None:
        self._template = template
        self._context = template.new_context(given)
        self.names = template.blocks.keys()

    def block(self, name: str) -> str:
        """A block on one line."""
        return _one_line(self._rendered(name))

    def content(self) -> str:
        """The block of the content, its paragraphs an empty line apart, as HTML if its template is."""
        content = _EMPTY_LINES.sub("\n\n", self._rendered("content").strip("\n"))
        return Markup(content) if self._context.eval_ctx.autoescape else content  # noqa: S704 - rendered with autoescape

    def _rendered(self, name: str) -> str:
        return "".join(self._template.blocks[name](self._context))


@cache
def _environment(templates: Path, *, html: bool) -> ImmutableSandboxedEnvironment:
    """The templates, compiled once per process. Sandboxed, so that a template cannot do more than show its values."""
    environment = ImmutableSandboxedEnvironment(
        loader=FileSystemLoader(templates),
        autoescape=html,  # The text part is no HTML; its values are on one line each, which is all that its syntax needs.
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
        cache_size=-1,
    )
    environment.filters |= {"one_line": _one_line, "href": _href}
    return environment


def _one_line(text: str) -> str:
    return type(text)(" ".join(text.split()))


def _href(url: object) -> str:
    """What may stand in a link. Raises TypeError for any text that the mesh did not make as a link."""
    if not isinstance(url, Link):
        raise TypeError("a template links to something that is no Link")
    return url


def page(name: str, **given: object) -> str:
    """A page that is no letter, from the same folder of templates."""
    return _environment(TEMPLATES, html=True).get_template(name).render(**given)
