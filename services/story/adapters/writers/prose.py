"""Plain text: fitting a reader's words into a sentence, splitting prose into sentences, and removing a model's markup."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence

# The joiners shape emoji and several scripts; no other control (line breaks, NUL, bidi overrides) has a place in a line.
_JOINERS = "\u200c\u200d"
_QUOTES = str.maketrans({"“": "'", "”": "'", '"': "'", "„": "'", "«": "'", "»": "'"})

# Symbols, and the characters that join and colour them.
_PICTURES = ("So", "Sk", "Cf", "Mn", "Co")
_LONGEST_ABBREVIATION = 8
_MOST_CLOSING = 16
_ABBREVIATIONS = frozenset({"mr", "mrs", "ms", "dr", "st", "prof"})
_STOPS = ".!?…‽⁇⁈⁉؟۔।॥։።။។៕།"  # noqa: RUF001 - other scripts' full stops
_UNSPACED_STOPS = "。！？．｡"  # noqa: RUF001
_CLOSING = r"\"”’'»)\]“‘«›‹」』）】》〉〕"  # noqa: RUF001 - German and Danish close with what others open with
_SENTENCE_END = re.compile(rf"[{_STOPS}]+[\"”’'»)]*(?=\s)|[{_UNSPACED_STOPS}]+[」』”’）]*")  # noqa: RUF001
_COMPLETE = re.compile(rf"[{_STOPS}{_UNSPACED_STOPS}][{_CLOSING}]*$")
_LAST_WORD = re.compile(r"([^\W\d_]+)\.$")


def one_line(text: str) -> str:
    """Return the text in NFC on one line, without control characters, surrogates or runs of white space."""
    spaced = (
        " "
        if (category := unicodedata.category(char)) in ("Cc", "Zl", "Zp")
        else char
        if category[0] != "C" or char in _JOINERS
        else ""
        for char in unicodedata.normalize("NFC", text)
    )
    return " ".join("".join(spaced).split())


def fragment(text: str, *, max_words: int, max_bytes: int) -> str:
    """Sanitize untrusted text to stand inside a sentence or between quotation marks; "" if nothing is left of it.

    The result is one line of at most `max_words` words and `max_bytes` bytes of UTF-8, without double quotes; "…" marks a cut.
    Both bounds are needed: a word may be very long, and tokenizers count the bytes of unknown words.
    """
    flat = one_line(text.translate(_QUOTES))
    cut = " ".join(flat.split()[:max_words]).encode()[:max_bytes].decode(errors="ignore").rstrip(" \u200d")
    return cut.rstrip(" .,;:") + "…" if cut and cut != flat else cut


def phrase(text: str, *, max_words: int, max_bytes: int) -> str:
    """Return a `fragment` without punctuation at its ends, for use in mid-sentence."""
    return fragment(text, max_words=max_words, max_bytes=max_bytes).strip(" .,;:!?'")


def and_list(items: Sequence[str]) -> str:
    """ "a", "a and b", "a, b and c"."""
    return " and ".join(filter(None, (", ".join(items[:-1]), items[-1]))) if items else ""


def word_set(text: str) -> frozenset[str]:
    """Split text into a set of words; long word lists read better as text than as literals."""
    return frozenset(text.split())


def count_words(texts: Iterable[str]) -> int:
    return sum(len(text.split()) for text in texts)


def is_complete(text: str) -> bool:
    """True if the text ends at the end of a sentence. Symbols after it, such as emoji, are ignored."""
    text = text.rstrip()
    while text and text[-1] not in _STOPS and unicodedata.category(text[-1]) in _PICTURES:
        text = text[:-1].rstrip()
    last = _LAST_WORD.search(text[-_LONGEST_ABBREVIATION:])
    return _COMPLETE.search(text[-_MOST_CLOSING:]) is not None and not (last and last[1].lower() in _ABBREVIATIONS)


def split_sentence(text: str) -> tuple[str, str] | None:
    """Return the first sentence and the text after it; None while no sentence is certain to have ended.

    Only white space after the full stop makes that certain: "3." may continue as "3.5", and "Dr." never ends a sentence. Chinese
    and Japanese full stops need no white space.
    """
    for match in _SENTENCE_END.finditer(text):
        before = text[: match.start()].rsplit(maxsplit=1)
        last = before[-1].lstrip("\"“‘'(").lower() if before else ""  # noqa: RUF001
        if text[match.start()] == "." and (last in _ABBREVIATIONS or (len(last) == 1 and last != "i")):
            continue
        return text[: match.end()].strip(), text[match.end() :]
    return None


# Paragraphs that models add after a story, with 0 for any number; none of them could be a paragraph of a story.
_FAREWELLS = (
    *(
        "the end",
        "fin",
        "ende",
        "fim",
        "koniec",
        "конец",
        "кінець",
        "τέλος",
        "النهاية",
        "समाप्त",
        "完",
        "全文完",
        "終わり",
        "おわり",
        "끝",
    ),
    *(
        "word count: 0",
        "word count: 0 words",
        "word count 0",
        "words: 0",
        "total words: 0",
        "0 words",
        "approximately 0 words",
    ),
)
_LONGEST_FAREWELL = 60
_DECORATION = " .!\n~-–—=[]()"  # noqa: RUF001
_RULE = " \n-–—="  # noqa: RUF001
_NUMBER = re.compile(r"\d+")


class Plain:
    """Turns a stream of model output into plain text, holding back a few characters at most.

    It drops control characters, the marks of Markdown (#, *, ` and _), fences with the language they name, and paragraphs that only
    say "The end", count the words or draw a line. Any run of line breaks becomes one empty line. White space is held back until
    text follows, so that the story ends without any.
    """

    def __init__(self) -> None:
        self._held = ""
        self._started = False
        self._fence: str | None = ""
        """The Markdown marks at the beginning of the line; None once other text has begun it."""

    def feed(self, text: str) -> str:
        out: list[str] = []
        for char in text:
            if char in "\r\n\u2028\u2029":
                out.append(self.flush())
                self._held = "\n\n" if self._started else ""
                self._fence = ""
            elif self._is_of_fence(char):
                pass
            elif char.isspace():
                if (self._held or self._started) and not self._held[-1:].isspace():
                    self._held += " "
            elif char not in "#*`_" and (unicodedata.category(char)[0] != "C" or char in _JOINERS):
                self._held += char
                if not self._may_be_farewell():
                    out.append(self._release())
        return "".join(out)

    def flush(self) -> str:
        """Return the held-back text at the end of the stream or of a line, or "" if it is no part of the story."""
        self._held = self._held.rstrip()
        if _farewell(self._held) in _FAREWELLS or not self._held.strip(_RULE):
            self._held = ""
        return self._release()

    def _is_of_fence(self, char: str) -> bool:
        """True for a character of a fence: three marks and the rest of their line. Fewer marks are text."""
        if self._fence is None or (char.isspace() and not self._fence):
            return False
        if len(self._fence) < 3 and char in "`~":
            self._fence += char
        elif len(self._fence) < 3:
            self._held += self._fence.replace("`", "")
            self._fence = None
        return self._fence is not None

    def _release(self) -> str:
        released, self._held = self._held, ""
        self._started = self._started or bool(released)
        return released

    def _may_be_farewell(self) -> bool:
        if (self._started and not self._held.startswith("\n\n")) or len(self._held) > _LONGEST_FAREWELL:
            return False
        bare = _farewell(self._held)
        return any(each.startswith(bare) for each in _FAREWELLS)


def _farewell(paragraph: str) -> str:
    return _NUMBER.sub("0", paragraph.strip(_DECORATION).lower())
