"""The local writer's rules, with a model whose sentences the test decides."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from services.story.adapters.writers import Brief, Refusal, Usage, WordCount, Words, WriterRefused
from services.story.adapters.writers.llama import Generated, Llama, Message, Sampling
from services.story.adapters.writers.local import LocalWriter
from services.story.adapters.writers.plot import plot
from services.story.adapters.writers.prose import is_complete, split_sentence

from .briefs import ODD_TEXTS, PLAIN
from .reading import assert_well_formed, read

_NOUNS = ["lantern", "river", "bridge", "window", "garden", "kettle", "ladder", "feather", "candle", "meadow", "pebble"]
_VERBS = [
    "shone",
    "waited",
    "rested",
    "trembled",
    "glittered",
    "hummed",
    "rocked",
    "drifted",
    "glowed",
    "slept",
    "leaned",
]


def novel_sentences(words: int) -> Iterator[str]:
    """Yield distinct sentences of that many words in which the editor finds no fault."""
    for number in itertools.count():
        nouns = itertools.cycle(_NOUNS[number % 11 :] + _NOUNS[: number % 11])
        verb = _VERBS[(number // 11 + number) % 11]
        yield " ".join(["The", next(nouns), verb, *itertools.islice(nouns, words)][:words]) + "."


class ScriptedLlama(Llama):
    """Answers each request from an iterator of sentences, in tokens of four characters.

    `conversations` records the requests, `tokens` counts the generated tokens.
    """

    def __init__(self, sentences: Iterator[str]) -> None:
        super().__init__(Path("scripted.gguf"))
        self.conversations: list[Sequence[Message]] = []
        self.tokens = 0
        self._sentences = sentences

    async def load(self) -> None:
        return

    async def chat(
        self, messages: Sequence[Message], sampling: Sampling, *, seed: int, max_tokens: int
    ) -> AsyncGenerator[Generated, None]:
        self.conversations.append(messages)
        answer = " " + _continuing(messages[-1]["content"], next(self._sentences)) + " And so"
        for index, start in enumerate(range(0, len(answer), 4)):
            if index == max_tokens:
                return
            self.tokens += 1
            yield Generated(answer[start : start + 4], Usage(10, index + 1))


def _continuing(text: str, sentence: str) -> str:
    """Adapt the sentence to the text: no capital after a stem, and a closing mark for a quotation that the stem opens."""
    if is_complete(text) or not sentence:
        return sentence
    quoted = text.count("“") > text.count("”")
    return sentence[0].lower() + sentence[1:] + ("”" if quoted else "")


MODELS: dict[str, Callable[[], Iterator[str]]] = {
    "ordinary sentences": lambda: novel_sentences(9),
    "very short sentences": lambda: novel_sentences(3),
    "very long sentences": lambda: novel_sentences(30),
    "sentences without end": lambda: itertools.repeat("word " * 500),
    "one word without end": lambda: itertools.repeat("word" * 500),
    "the same sentence for ever": lambda: itertools.repeat("The river waited for the moon."),
    "only people of its own": lambda: itertools.repeat("Kylo met his wife there."),
    "quotations without end": lambda: itertools.repeat("“Oh no. Oh yes. Oh well."),
    "lists and headings": lambda: itertools.repeat("# Chapter 2\n\n- one\n- two."),
    "the end of the story": lambda: itertools.repeat("They lived happily ever after. The end."),
    "nothing": lambda: itertools.repeat(""),
}


@pytest.mark.parametrize("length", list(WordCount))
@pytest.mark.parametrize("model", MODELS)
async def test_whatever_the_model_writes_the_story_is_whole(model: str, length: WordCount) -> None:
    for seed in range(3):
        brief = replace(PLAIN, length=length, seed=seed)

        story = await read(LocalWriter(ScriptedLlama(MODELS[model]())), brief)

        assert_well_formed(story, brief)
        given = plot(brief)
        assert story.title == given.title
        assert story.text.startswith(given.beats[0].lead)
        assert story.text.endswith(given.closing)


@pytest.mark.parametrize("text", ODD_TEXTS)
async def test_odd_wishes_make_whole_stories(text: str) -> None:
    brief = Brief(preferences=(text,) * 5, theme=text, prompt=text, first_name=text, length=WordCount.SHORT, seed=3)

    assert_well_formed(await read(LocalWriter(ScriptedLlama(novel_sentences(9))), brief), brief)


async def test_the_model_is_asked_again_for_a_sentence_that_drifts() -> None:
    bad = "Then came Kylo with a robot."
    model = ScriptedLlama(itertools.chain([bad, bad], novel_sentences(9)))

    story = await read(LocalWriter(model), PLAIN)

    first, second, third, *_ = model.conversations
    assert first == second == third
    assert "Kylo" not in story.text


async def test_the_model_continues_exactly_what_the_reader_has() -> None:
    model = ScriptedLlama(novel_sentences(9))

    story = await read(LocalWriter(model), PLAIN)

    for conversation in model.conversations:
        told = conversation[-1]["content"]
        whole = told
        while whole and not story.text.startswith(whole):
            whole = whole.rpartition(" ")[0]
        assert whole
        assert split_sentence(told[len(whole) :] + " ") is None


async def test_words_are_released_steadily_while_the_model_writes() -> None:
    """A sentence and a lead are approved at once; the reader gets them a few words at a time between the model's tokens."""
    model = ScriptedLlama(novel_sentences(9))

    seen = [
        (model.tokens, piece.text)
        async for piece in LocalWriter(model).write(replace(PLAIN, length=WordCount.LONG))
        if isinstance(piece, Words)
    ]

    assert all(len(word.split()) == 1 for _, word in seen)
    before_the_last_token = Counter(tokens for tokens, _ in seen if tokens < model.tokens)
    assert len(before_the_last_token) > 300
    assert max(before_the_last_token.values()) <= 12


async def test_tokens_of_rejected_sentences_are_counted() -> None:
    good = await read(LocalWriter(ScriptedLlama(novel_sentences(9))), PLAIN)
    model = ScriptedLlama(itertools.chain(["Then came Kylo with a robot."], novel_sentences(9)))
    wasteful = await read(LocalWriter(model), PLAIN)

    assert good.usage
    assert wasteful.usage
    assert wasteful.usage.completion_tokens > good.usage.completion_tokens


async def test_other_languages_are_refused_before_the_model_is_asked() -> None:
    model = ScriptedLlama(novel_sentences(9))

    with pytest.raises(WriterRefused) as refused:
        await read(LocalWriter(model), replace(PLAIN, language="fr"))

    assert refused.value.reason == Refusal.LANGUAGE_UNSUPPORTED
    assert model.conversations == []


async def test_the_model_is_named_by_its_file() -> None:
    writer = LocalWriter(ScriptedLlama(novel_sentences(9)))

    assert (writer.name, writer.model) == ("local", "scripted")


async def test_a_sentence_too_long_for_its_paragraph_is_left_out() -> None:
    endless = " ".join(
        ["The", *itertools.islice(itertools.cycle(["elm", "oak", "ash", "bay", "fog", "sea", "sky"]), 59)]
    )
    model = ScriptedLlama(itertools.repeat(endless + "."))

    story = await read(LocalWriter(model), PLAIN)

    assert "elm" not in story.text
    assert_well_formed(story, PLAIN)
