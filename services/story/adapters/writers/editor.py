"""The editor of the local writer: it judges each sentence of the model before the reader gets it."""

from __future__ import annotations

import re
from collections.abc import Iterator

from .plot import Plot
from .prose import is_complete, word_set

_SHORTEST = 3
_GRAM = 4
_TOLERATED_REPETITION = 0.34

_ODD_CHARACTERS = re.compile(r"[^A-Za-zÀ-ÖØ-öø-ÿ ,.;!?'’“”…–—-]")  # noqa: RUF001 - typographic on purpose
_SHOUTING = re.compile(r"\b[A-Z]{2,}\b")
_QUOTED = re.compile(r"“[^”]*”")
_NARRATOR = re.compile(r"\b(I|we|me|us|my|our|you|your|let's)\b", re.IGNORECASE)
_ABOUT_THE_TEXT = re.compile(
    r"\b(stor(y|ies)|tales?|readers?|narrator|authors?|novels?|chapters?|paragraphs?|sentences?|titles?|prompts?|assistant|characters?"
    r"|words|the end|ever after|from (that|this) day|once upon|moral|lessons?|to be continued|wikipedia|copyright)\b",
    re.IGNORECASE,
)
_UNFIT = re.compile(
    r"\b(kill\w*|dead|death|die[ds]?|dying|murder\w*|blood\w*|gun(s|shot)?|kni(fe|ves)|suicid\w*|sex\w*|naked|drunk\w*|rape\w*|slave\w*"
    r"|hate[ds]?|scream\w*|corpses?|weapons?|wars?|prison|police|drugs?|money|dollars?|jesus|gods?|president|america\w*|wine|beer|whisky"
    r"|pubs?|marr(y|ies|ied|iage)|weddings?|kiss\w*|bathrooms?|toilets?|television)\b",
    re.IGNORECASE,
)
_FEMALE = frozenset({"she", "her", "hers", "herself"})
_MALE = frozenset({"he", "him", "his", "himself"})
_PEOPLE = word_set("""
    mother father mom mum dad daughter son sister brother wife husband aunt uncle grandmother grandfather
    parents family man men woman women lady gentleman boy girl boys girls child children people person
    villagers king queen prince princess captain teacher doctor friends master knight sailor wizard witch
    soldier stranger strangers crowd
""")
_WORDS = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")  # noqa: RUF001

# Words that may be capitalized at the beginning of a sentence. Any other capital is taken for a name that the plot does not have.
_OPENERS = word_set("""
    a about above across after again all almost along already also although always an and another any anyone
    anything around as at away back because before behind below beneath beside between beyond both but by
    could did do down during each eight either even every everybody everyone everything far finally first five
    for four from had has have he her here high his how however if in inside instead into is it its just last
    later like long look maybe meanwhile more most much must my near neither never next no nobody none not
    nothing now of off oh old on once one only or other our out outside over perhaps please quite rain right
    she should since slowly small so some somebody someone something somewhere soon still stop such sunlight
    sure ten thank that the their then there these they thick things this those though three through
    throughout till to today together tomorrow tonight too toward towards two under until up upon very was we well
    were what whatever when whenever where wherever which while who why will wind with within without would
    yes yet you your
""")


class Editor:
    """Judges the next sentence by the plot and by the text so far."""

    def __init__(self, plot: Plot) -> None:
        leads = [beat.lead for beat in plot.beats]
        others = [text for beat in plot.beats for text in (*beat.stems, *beat.details)]
        told = " ".join([plot.loves, plot.theme, plot.closing, *leads])
        self._names = {word for word in _WORDS.findall(" ".join([told, *others])) if word[0].isupper()} | {"I"}
        # The prompt is only a note in the story: people whom it names do not appear.
        present = _normal(told.replace(f"“{plot.wish}”", ""))
        others_pronouns = _FEMALE if plot.pronouns[0] == "he" else _MALE
        self._strangers = (_PEOPLE | others_pronouns).difference(present)
        self._grams: set[tuple[str, ...]] = set()
        self._last_opening: tuple[str, ...] = ()

    def polish(self, sentence: str) -> str:
        """Return the sentence with typographic quotation marks, and a comma for a colon before one, as in the plot's sentences."""
        out = ""
        for char in sentence.strip():
            out += char if char != '"' else "”" if out.count("“") > out.count("”") else "“"
        return out.replace(": “", ", “")

    def remember(self, prose: str) -> None:
        words = _normal(prose)
        self._grams.update(_grams(words))
        if words:
            self._last_opening = words[:3]

    def fault(self, sentence: str) -> str | None:
        """Return the fault of a polished sentence, or None if it has none."""
        return next(self._faults(sentence), None)

    def _faults(self, sentence: str) -> Iterator[str]:
        words = _normal(sentence)
        if not is_complete(sentence) or len(words) < _SHORTEST:
            yield "fragment"
        if sentence.count("“") != sentence.count("”"):
            yield "open quotation"
        if _ODD_CHARACTERS.search(sentence) or _SHOUTING.search(sentence):
            yield "odd characters"
        if _ABOUT_THE_TEXT.search(sentence):
            yield "talks about the text"
        if _UNFIT.search(sentence):
            yield "unfit"
        if _NARRATOR.search(_QUOTED.sub(" ", sentence)):
            yield "first or second person"
        if any(_without_ending(word) in self._strangers for word in words):
            yield "stranger"
        if any(self._is_new_name(sentence, match) for match in _WORDS.finditer(sentence)):
            yield "new name"
        if words[:3] == self._last_opening:
            yield "same opening"
        grams = _grams(words)
        if grams and sum(gram in self._grams for gram in grams) > _TOLERATED_REPETITION * len(grams):
            yield "repetition"

    def _is_new_name(self, sentence: str, match: re.Match[str]) -> bool:
        word = match.group()
        if not word[0].isupper() or _without_ending(word) in self._names:
            return False
        before = sentence[: match.start()].rstrip()
        begins = not before or before[-1] in ".!?…“"
        return not begins or not (word.lower() in _OPENERS or word.lower().endswith(("ing", "ly", "n't")))


def _normal(text: str) -> tuple[str, ...]:
    return tuple(word.lower() for word in _WORDS.findall(text))


def _without_ending(word: str) -> str:
    """Return the word before an apostrophe: "mother" for "mother's"."""
    return re.split("['’]", word)[0]  # noqa: RUF001


def _grams(words: tuple[str, ...]) -> list[tuple[str, ...]]:
    return [words[index : index + _GRAM] for index in range(len(words) - _GRAM + 1)]
