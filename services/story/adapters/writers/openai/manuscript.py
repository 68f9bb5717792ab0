"""Turns a model's text into a title and plain words, and keeps the story within its length."""

from __future__ import annotations

import re

from .. import Brief, Piece, Refusal, Title, Words, WriterRefused, WriterUnavailable
from ..prose import Plain, is_complete, split_sentence
from .answer import Delta
from .failures import interruption
from .opening import Announcement, Opening

_CHARACTERS_PER_WORD = 12
_FIRST_CHARACTERS = 100
_WORD = re.compile(r"\s*\S{1,40}")
# Thai, Lao, Tibetan, Burmese, Khmer, Japanese and Chinese letters: these scripts put no spaces between words.
_UNSPACED = re.compile(
    r"[\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]"
)
# Thai and Lao have no full stop either.
# English only: in other languages models decline by their finish reason, and these few words occur in most refusals.
_DECLINED = re.compile(
    r"(?:i['’]m |i am )?(?:very |so |really )?sorry\b|(?:unfortunately, )?i (?:can['’]?t|cannot|can not|won['’]t|am unable to)\b"  # noqa: RUF001
    r"|i['’]m (?:unable|not able) to\b|as an ai\b",  # noqa: RUF001
    re.IGNORECASE,
)
_FAREWELL = re.compile(r"[.!?…][\"”’')]*\s+(?:the end|fin|ende)$", re.IGNORECASE)  # noqa: RUF001
_UNSTOPPED = re.compile(r"[\u0e00-\u0eff][\"”’')]*$")  # noqa: RUF001 - typographic on purpose


class Manuscript:
    """Bounds the length of a story.

    Up to the target number of words all text passes at once; after that only whole sentences pass while they fit. A model that
    goes on is cut short at the end of a sentence. One that ends too early or in mid-sentence has failed, because no other model
    could continue its text.
    """

    def __init__(self, brief: Brief) -> None:
        self._length = brief.length
        self._opening = Opening(brief.title or "")
        self._announcement = Announcement()
        self._plain = Plain()
        self._tail = ""
        self._words = 0
        self._unspaced = 0
        self._characters = 0
        self._first = ""
        self._last = ""
        self._finish_reason: str | None = None
        self.is_full = False

    @property
    def has_ended(self) -> bool:
        """True once the model has ended its story. Later errors of the endpoint then no longer fail it."""
        return self._finish_reason is not None and interruption(self._finish_reason) is None

    def take(self, delta: Delta) -> list[Piece]:
        """Add text of the model; return the pieces for the reader. Raises WriterUnavailable when text already sent was no story."""
        if delta.finish_reason and (self._finish_reason is None or self.has_ended):
            self._finish_reason = delta.finish_reason
        if delta.starts_over:
            if self._opening.title:
                raise WriterUnavailable("the model's reasoning came as text")
            self._opening.start_over()
            self._first = ""
        if len(self._first) < _FIRST_CHARACTERS:
            self._first = (self._first + delta.text[:_FIRST_CHARACTERS]).lstrip()
        if self._opening.title:
            return self._body(delta.text)
        return self._begin() if self._opening.feed(delta.text) else []

    def finish(self) -> list[Piece]:
        """Return the last pieces after the end of the stream. Raises WriterUnavailable or WriterRefused for an improper end."""
        if not self.is_full and (failure := interruption(self._finish_reason)):
            raise failure
        pieces = [] if self._opening.title or not self._opening.feed("", is_all=True) else self._begin()
        pieces += self._add(self._plain.feed(self._announcement.feed("", is_all=True)) + self._plain.flush())
        if not self.is_full and _ends_whole(self._last + self._tail):
            pieces += self._pass_on(self._tail)
        if (written := max(self._size(self._words), self._unspaced)) < self._length.fewest:
            if _DECLINED.match(self._first):
                raise WriterRefused(Refusal.CONTENT_REFUSED, "the model declined in words")
            raise WriterUnavailable(
                f"the model ended after {written} words, where {self._length.fewest} are the fewest"
            )
        if not _ends_whole(self._last):
            if not self.is_full:
                raise WriterUnavailable("the model stopped in mid-sentence")
            pieces.append(Words("…"))
        return pieces

    def _begin(self) -> list[Piece]:
        return [Title(self._opening.title), *self._body(self._opening.rest)]

    def _body(self, text: str) -> list[Piece]:
        return self._add(self._plain.feed(self._announcement.feed(text)))

    def _add(self, text: str) -> list[Piece]:
        pieces: list[Piece] = []
        for word in _WORD.findall(text):
            if self.is_full:
                break
            if self._size(self._words) < self._length.words:
                pieces += self._pass_on(word)
                continue
            self._tail += word
            if cut := split_sentence(self._tail):
                sentence, following = self._tail[: len(self._tail) - len(cut[1])], cut[1]
                if self._fits(sentence):
                    pieces += self._pass_on(sentence)
                    self._tail = following
            self.is_full = not self._fits(self._tail)
        return pieces

    def _pass_on(self, text: str) -> list[Piece]:
        if not text:
            return []
        continues_a_word = self._last and not self._last[-1].isspace() and not text[0].isspace()
        self._words += len(text.split()) - bool(continues_a_word)
        self._unspaced += len(_UNSPACED.findall(text))
        self._characters += len(text)
        self._last = (self._last + text)[-32:]
        return [Words(text)]

    def _fits(self, text: str) -> bool:
        return self._size(self._words + len(text.split()), len(text)) <= self._length.most

    def _size(self, words: int, more_characters: int = 0) -> int:
        """Count the words. Text without spaces counts one word per fixed number of characters, which bounds any answer."""
        return max(words, (self._characters + more_characters) // _CHARACTERS_PER_WORD)


def _ends_whole(text: str) -> bool:
    return is_complete(text) or any(end.search(text) for end in (_UNSTOPPED, _FAREWELL))
