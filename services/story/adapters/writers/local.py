"""The local writer: a small model in this process tells a given plot.

A model of 135 million parameters writes pleasant sentences but cannot keep to a plot: characters, numbers and book titles appear
without reason, and it stops early or never. So each paragraph begins with a sentence of the plot, which the model continues as its
own text. An editor judges each sentence before the reader gets it; a rejected one is written again with another seed. If the model
writes no acceptable sentence, details of the plot replace it. The opening, turning points and ending are therefore always there,
and only the sentences between them are the model's.

The model knows English only; other languages are refused.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import AsyncGenerator
from contextlib import aclosing

from . import Brief, Piece, Title, Usage, Words, require_language
from .editor import Editor
from .llama import Llama, Message, Sampling
from .plot import Beat, Plot, plot
from .prose import count_words, split_sentence

# Chosen by reading stories: with a higher temperature and penalty (0.6, 1.12), the bundled model prefers odd words to plain ones.
SAMPLING = Sampling(temperature=0.5, top_k=40, top_p=0.95, min_p=0.08, repeat_penalty=1.08, repeat_last_n=128)

SYSTEM = "You are a storyteller. You write warm, simple stories in the past tense, in short sentences."

_ATTEMPTS = 4
# Half of a typical sentence of 14 words: a beat with less room gets no further sentence, and a beat may overrun by as much.
_SHORTEST_ROOM = 7
_OVERRUN = 10
_WORD = re.compile(r"\s*\S+")


class LocalWriter:
    """Writes with a GGUF through llama.cpp; `model` is the file's name without its suffix."""

    name = "local"

    def __init__(self, llama: Llama) -> None:
        self.model = llama.path.stem
        self._llama = llama

    async def warm_up(self) -> None:
        await self._llama.load()

    async def write(self, brief: Brief) -> AsyncGenerator[Piece, None]:
        require_language(brief, "local")
        await self._llama.load()
        telling = _Telling(self._llama, brief)
        yield Title(telling.plot.title)
        ready: deque[str] = deque()
        async with aclosing(telling.tell()) as progress:
            async for prose in progress:
                ready.extend(_WORD.findall(prose))
                # A sentence is approved as a whole. Its words go out while the next one is written, faster if more of them wait.
                for _ in range(-(-len(ready) // 16)):
                    yield Words(ready.popleft())
        while ready:
            yield Words(ready.popleft())
        yield Usage(telling.prompt_tokens, telling.completion_tokens)

    async def aclose(self) -> None:
        await self._llama.aclose()


class _Telling:
    """One story being told. The reader gets `text`, and the model reads it as its own answer so far."""

    def __init__(self, llama: Llama, brief: Brief) -> None:
        self.plot = plot(brief)
        self.prompt_tokens = 0
        self.completion_tokens = 0
        self._llama = llama
        self._brief = brief
        self._editor = Editor(self.plot)
        self._text = ""
        self._attempts = 0
        self._spare = _spare_words(self.plot, brief)

    async def tell(self) -> AsyncGenerator[str, None]:
        """Yield prose as it is approved, and "" for each token that approves nothing, so that the caller keeps a steady pace."""
        for index, beat in enumerate(self.plot.beats):
            yield self._add(("\n\n" if self._text else "") + beat.lead)
            room = self._spare // (len(self.plot.beats) - index)
            async with aclosing(self._elaborate(beat, room)) as progress:
                async for prose in progress:
                    yield prose
        yield self._add("\n\n" + self.plot.closing)

    def _add(self, prose: str) -> str:
        self._text += prose
        self._editor.remember(prose)
        return prose

    async def _elaborate(self, beat: Beat, room: int) -> AsyncGenerator[str, None]:
        """Continue a beat's lead for about `room` words: a sentence from each stem, then one that the model begins itself.

        If these leave more than half of the room, the plot's details fill it, so that the story keeps its length.
        """
        left = room
        for stem in (*beat.stems, ""):
            for _ in range(_ATTEMPTS if left >= _SHORTEST_ROOM else 0):
                sentence = ""
                async with aclosing(self._attempt(stem, left + _OVERRUN)) as attempt:
                    async for sentence in attempt:
                        yield sentence and self._add(" " + sentence)
                if sentence:
                    left -= count_words([sentence])
                    break
        for detail in beat.details:
            if left > room // 2 and left >= (size := count_words([detail])):
                left -= size
                yield self._add(" " + detail)
        self._spare -= room - left

    async def _attempt(self, stem: str, most_words: int) -> AsyncGenerator[str, None]:
        """Yield "" for each token, then the sentence if the editor finds no fault."""
        self._attempts += 1
        seed = self._brief.seed + self._attempts
        sentence, rest = "", stem
        usage = Usage(0, 0)
        answer = self._llama.chat(self._conversation(stem), SAMPLING, seed=seed, max_tokens=2 * most_words)
        async with aclosing(answer):
            async for generated in answer:
                rest += generated.text
                usage = generated.usage
                if cut := split_sentence(rest):
                    sentence, rest = self._editor.polish(f"{sentence} {cut[0]}"), cut[1]
                    if sentence.count("“") == sentence.count("”"):
                        break
                yield ""
        self.prompt_tokens += usage.prompt_tokens
        self.completion_tokens += usage.completion_tokens
        if count_words([sentence]) <= most_words and self._editor.fault(sentence) is None:
            yield sentence

    def _conversation(self, stem: str) -> list[Message]:
        wish = f" The reader wishes: {self.plot.wish}" if self.plot.wish else ""
        request = (
            f"Tell a story about {self.plot.theme}. The hero is {self.plot.hero}, who loves {self.plot.loves}.{wish}"
        )
        return [
            {"role": "system", "content": SYSTEM},
            {"role": "user", "content": request},
            {"role": "assistant", "content": f"{self._text} {stem}".rstrip()},
        ]


def _spare_words(story: Plot, brief: Brief) -> int:
    """Return how many words the model may write: the target less the plot's words, and a sentence per beat if the bounds allow."""
    given = count_words([*(beat.lead for beat in story.beats), story.closing])
    return max(0, min(max(brief.length.words - given, 14 * len(story.beats)), brief.length.most - 2 * _OVERRUN - given))
