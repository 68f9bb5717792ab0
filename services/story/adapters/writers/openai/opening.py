"""Finds the title at the beginning of a model's answer, and drops text that is neither title nor story.

Models announce what they are about to do ("Sure! Here is your story:"), label it ("Title:"), and wrap it into a fence or a rule.
"""

from __future__ import annotations

import re

from .. import WriterUnavailable
from ..prose import fragment, one_line

TITLE_LIMIT = 120
# A first line longer than this is not a title: the story begins without one.
_LINE_LIMIT = 200
_TITLE_MARKS = "#*_`~\"'“”„«»「」『』《》 "

_ASSENTS = (
    r"sure(?: thing)?|certainly|of course|absolutely|definitely|okay|ok|alright|all right|gladly|got it|understood|no problem"
    r"|with pleasure|happy to help|as requested|claro(?: que sí)?|por supuesto|natürlich|gern|gerne|selbstverständlich|bien sûr"
    r"|avec plaisir|certo|certamente|com certeza|конечно|当然(?:可以)?|好的|もちろん(?:です)?|はい|물론(?:입니다|이죠)?"
)
_ANNOUNCEMENTS = (
    r"here(?:['’]s| is| are| you go)|below is|the following is|please find|enjoy"  # noqa: RUF001
    r"|i(?:['’]ve| have) (?:written|created|crafted|composed|prepared)|i(?:['’]d| would) be (?:happy|glad|delighted)"  # noqa: RUF001
    r"|i(?:['’]ll| will) (?:write|tell|create|craft)|let me (?:write|tell|share)|i hope|thank you for"  # noqa: RUF001
    r"|aquí (?:tienes|está|va)|hier ist|voici|ecco|aqui está|вот|以下是|这是|以下は|こちら|다음은|여기"
)
_ASSENT = re.compile(rf"(?:{_ASSENTS})\s*(?:[!！]+|,[^\n:：]*[!.](?=\n)|(?=\n))\s*", re.IGNORECASE)  # noqa: RUF001
_GREETING = r"(?:[^\s:：,!.][^:：\n,!.！，。—]{0,40}(?:[!,.！，。…—]+|\s[-–])\s*){0,2}"  # noqa: RUF001
_TO_COLON = re.compile(rf"{_GREETING}(?:{_ANNOUNCEMENTS})(?![A-Za-z])[^:：\n]*[:：][\s*_#]*", re.IGNORECASE)  # noqa: RUF001
_SENTENCE = re.compile(
    rf"{_GREETING}(?:{_ANNOUNCEMENTS})(?![A-Za-z])[^\n]*?\b(?:story|tale|title|words|request\w*|asked|historia|cuento|geschichte|histoire|conte|storia)\b"
    r"[^\n]*?(?:[.!…]+[\"”’']*\s+|\n)",  # noqa: RUF001
    re.IGNORECASE,
)
_ALONE = re.compile(
    rf"(?:here(?: goes| we go| you are| you go| it is)|your story is ready|let['’]s (?:begin|start|go)|thinking|story"  # noqa: RUF001
    rf"|{_ANNOUNCEMENTS})[^\w\n]*\n",
    re.IGNORECASE,
)
_LABEL = re.compile(
    r"\W*(?:story\s+)?(?:assistant|title|titel|titre|título|titulo|titolo|название|заголовок|标题|标題|題目|题目|タイトル|제목)\W*(?:[:：]|\s[-–—]\s)\W*",  # noqa: RUF001
    re.IGNORECASE,
)
# A line that ends with a colon and is too long for a title: an announcement.
_REMARK = re.compile(r"\W*(?:(?:your |the )?story|(?:\S+\s+){4,}\S+)\s*[:：]\W*$", re.IGNORECASE)  # noqa: RUF001
_MARKS = " \t#*_>"
_COLONS = ": ："  # noqa: RUF001
_FENCE = re.compile(r"\s*(?:`{3}|~{3})")
_DATA = re.compile(r"""\s*(?:[\[{]\s*$|\{\s*["']?\w+["']?\s*:|\[\s*[{"'])""")

# Beginnings of announcements between the title and the story.
_ANNOUNCING = (
    *("sure", "certainly", "of course", "absolutely", "okay", "ok,", "ok!", "alright"),
    *("here is", "here's", "here\u2019s", "here you", "here goes", "below is", "story:"),
)


def without_announcement(line: str) -> str:
    """Return the line without the words that announce the story. Often "" is left; without a line break the story may follow."""
    rest = line.lstrip(_MARKS)
    for announcement in (_ASSENT, _TO_COLON, _SENTENCE, _ALONE):
        if found := announcement.match(rest, 0, 2 * _LINE_LIMIT):
            rest = rest[found.end() :]
    return rest


class Opening:
    """Finds the title: call `feed` with text until it returns True; `rest` then is the story so far."""

    def __init__(self, given_title: str = "") -> None:
        self.title = ""
        self.rest = ""
        self._given = one_line(given_title)[:TITLE_LIMIT]
        self._head = ""

    def start_over(self) -> None:
        self._head = ""

    def feed(self, text: str, *, is_all: bool = False) -> bool:
        """Add text; return True once the title is known. Raises WriterUnavailable when the model answers with data, not a story."""
        self._head = (self._head + text).lstrip()
        while self._head and (is_all or "\n" in self._head or len(self._head) > _LINE_LIMIT):
            line, newline, rest = self._head.partition("\n")
            if _DATA.match(line):
                raise WriterUnavailable("the model answered with data instead of a story")
            plain = without_announcement(line + newline)
            title = "" if _FENCE.match(line) else _cleaned(plain)
            if newline and (not title or (len(line) <= _LINE_LIMIT and _REMARK.match(line))):
                self._head = rest.lstrip()
                continue
            if not newline or len(title) > TITLE_LIMIT:
                rest = plain + rest
                title = fragment(rest, max_words=6, max_bytes=TITLE_LIMIT).strip(_TITLE_MARKS)
            self._head, self.rest, self.title = "", rest, self._given or title
            return bool(self.title)
        return False


def _cleaned(line: str) -> str:
    title = one_line(line)
    if label := _LABEL.match(title):
        title = title[label.end() :]
    title = title.rstrip(_COLONS).strip(_TITLE_MARKS)
    for pair in ("[]", "{}"):
        if title.endswith(pair[1]) and title.rfind(pair[0]) <= 0:
            title = title.strip(pair).strip(_TITLE_MARKS)
    return title if any(map(str.isalnum, title)) else ""


class Announcement:
    """Holds back the first line of the story while it may be an announcement, and drops it if it is one."""

    def __init__(self) -> None:
        self._held: str | None = ""

    def feed(self, text: str, *, is_all: bool = False) -> str:
        if self._held is None:
            return text
        self._held = (self._held + text).lstrip()
        low = self._held.lstrip(_MARKS)[:12].lower()
        may_be = any(low.startswith(start) or start.startswith(low) for start in _ANNOUNCING)
        if may_be and not is_all and "\n" not in self._held and len(self._held) <= _LINE_LIMIT:
            return ""
        held, self._held = self._held, None
        line, newline, rest = held.partition("\n")
        return without_announcement(line + newline) + rest if may_be else held
