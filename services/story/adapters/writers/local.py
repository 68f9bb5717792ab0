"""The local writer: a small model in this process tells a plot that it is given.

A model of 135 million parameters writes pleasant sentences and loses every thread: characters appear from nowhere, numbers and
book titles creep in, and it stops or never stops. So it is led on a short leash. Each paragraph begins with a sentence of the plot,
which the model continues as its own text; an editor reads each sentence before the reader does, and one that drifts is written
again with another seed. Where the model finds nothing usable, the plot's own details stand in. Opening, turning points and ending
are therefore always there; what lies between them is the model's.

The model knows English only, and other languages are refused.
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

# Chosen by reading stories: hotter and with a stronger penalty (0.6, 1.12), the bundled model shuns plain words for odd ones.
SAMPLING = Sampling(temperature=0.5, top_k=40, top_p=0.95, min_p=0.08, repeat_penalty=1.08, repeat_last_n=128)

SYSTEM = "You are a storyteller. You write warm, simple stories in the past tense, in short sentences."

_ATTEMPTS = 4
# Sentences run to some 14 words: a beat with less room than half of one is left as it is, and one may overrun by as much.
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
                # A sentence is approved as a whole. Its words go out while the next one is written, the sooner the more there are.
                for _ in range(-(-len(ready) // 16)):
                    yield Words(ready.popleft())
        while ready:
            yield Words(ready.popleft())
        yield Usage(telling.prompt_tokens, telling.completion_tokens)

    async def aclose(self) -> None:
        await self._llama.aclose()


class _Telling:
    """One story being told. `text` is what the reader gets; the model reads it as what it has written itself so far."""

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
        """Yields prose as it is approved, and "" for each token that approves nothing, so that the caller keeps a steady pace."""
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
        """Goes on from a beat's lead for about `room` words: a sentence from each stem, then one that the model begins itself.

        If these leave more than half of the room, the plot's details take it, so that the story keeps its length.
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
        """Yields "" for each token, then the sentence if it is fit to print."""
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
    """How many words the model may write: what the plot leaves of the target, but a sentence a beat where the bounds have room."""
    given = count_words([*(beat.lead for beat in story.beats), story.closing])
    return max(0, min(max(brief.length.words - given, 14 * len(story.beats)), brief.length.most - 2 * _OVERRUN - given))
