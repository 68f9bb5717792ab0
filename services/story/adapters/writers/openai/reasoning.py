"""Removes reasoning, tags and control tokens from a model's text.

Reasoning models write their reasoning between tags. Endpoints that know a model's tags send it apart or drop it; the others pass it
on in the content: DeepSeek's and Qwen's `<think>`, Magistral's `[THINK]`, Kimi's `◁think▷`, Cohere's `<|START_THINKING|>`, and the
channels of gpt-oss (`<|channel|>analysis<|message|>`).
"""

from __future__ import annotations

import re

from ..prose import word_set

# Bounded, so that the search is fast on any text.
_TAG = r"(?:<|&lt;)/?\s{0,10}[A-Za-z][\w:-]{0,40}(?:\s[^<>&]{0,200})?/?(?:>|&gt;)"
_TOKEN = r"<[|｜][^<>|｜\n]{1,40}[|｜]>"  # noqa: RUF001 - DeepSeek's tokens have wide bars
_MARK = re.compile(rf"{_TAG}|{_TOKEN}|\[/?THINK\]|◁/?think▷", re.IGNORECASE)
_MAY_BECOME_MARK = re.compile(
    r"(?:<(?:/?\s{0,10}[A-Za-z][^<>]{0,240}|[|｜][^<>\n]{0,41}|/?\s{0,10})|&(?:l|lt|lt;[^<>\n]{0,240})?|\[/?(?:T|TH|THI|THIN|THINK)?|◁/?[a-z]{0,5})\Z",  # noqa: RUF001
    re.IGNORECASE,
)
_NAME = re.compile(r"[a-z][\w:-]*")
_EDGE = re.compile(r"(?P<side>start|begin|end)_(?:of_)?(?P<name>.+)")

_THOUGHTS = word_set(
    "think thinking thought thoughts reasoning reason reflection analysis scratchpad antthinking"
    " inner_monologue seed:think"
)
_BLOCKS = word_set(
    "answer article body br chapter content div document final h1 h2 h3 h4 h5 h6 head header html li main"
    " output p paragraph response result section story text title ul"
)
# gpt-oss and Llama: the text between two of these names a role or a channel. In ChatML the name ends with the line.
_HEADERS = frozenset({"start", "channel", "start_header_id", "im_start"})
_HEADER_ENDS = frozenset({"message", "end_header_id"})
_CHANNEL = "channel"

_LONGEST_THOUGHT = 400_000


class Thoughts:
    """Removes reasoning from a stream: `feed` takes the model's text and returns the reader's.

    `thinks_first`: the text begins inside a thought whose opening tag the endpoint omits. If the closing tag does not come either,
    there was no thought, and `finish` returns the text.
    """

    def __init__(self, *, thinks_first: bool = False) -> None:
        self.thinks_first = thinks_first
        self.was_thought = False
        """True after a closing tag without an opening one: all text that `feed` returned before was reasoning."""
        self._rest = ""
        self._thought = ""
        self._depth = 0
        self._header: str | None = None
        self._header_is_line = False
        self._held: list[str] = []
        self._size = 0

    def feed(self, text: str) -> str:
        """Add text; return the part for the reader. Raises ValueError for reasoning beyond the size limit."""
        text = self._rest + text
        out: list[str] = []
        start = 0
        for mark in _MARK.finditer(text):
            self._say(text[start : mark.start()], out)
            self._take(mark.group().lower(), out)
            start = mark.end()
        partial = _MAY_BECOME_MARK.search(text, start)
        end = partial.start() if partial else len(text)
        self._rest = text[end:]
        self._say(text[start:end], out)
        if not self.thinks_first:
            return "".join(out)
        self._held += out
        return ""

    def finish(self) -> str:
        out: list[str] = []
        self._say(self._rest, out)
        self._rest = ""
        self._held, held = [], [*self._held, *out]
        return "".join(held)

    def _say(self, text: str, out: list[str]) -> None:
        if self._header is not None:
            header = self._header + text
            if not self._header_is_line or "\n" not in header:
                self._header = header[:80]
                return
            self._header, text = None, header.partition("\n")[2]
        if not self._thought:
            out.append(text)
        if self._thought or self.thinks_first:
            self._size += len(text)
            if self._size > _LONGEST_THOUGHT:
                raise ValueError("the model does not stop thinking")

    def _take(self, mark: str, out: list[str]) -> None:
        mark = mark.replace("&lt;", "<").replace("&gt;", ">")
        name = found.group() if (found := _NAME.search(mark)) else ""
        if mark[1] in "|｜":  # noqa: RUF001
            self._take_token(name, out)
            return
        closes = "/" in mark[:3]
        if name in _THOUGHTS and not mark.endswith("/>"):
            self._end(name, out) if closes else self._begin(name, out)
        elif name in _BLOCKS and not self._thought:
            out.append("\n\n")

    def _take_token(self, name: str, out: list[str]) -> None:
        if name in _HEADERS:
            self._header, self._header_is_line = "", name == "im_start"
        elif name in _HEADER_ENDS and self._header is not None:
            channel, self._header = self._header.strip().lower(), None
            self._thought = "" if channel.startswith(("final", "assistant")) or not channel else _CHANNEL
        elif self._thought == _CHANNEL:
            self._thought = ""  # The end of the message; the next one names its own channel.
        elif (edge := _EDGE.fullmatch(name)) and edge["name"] in _THOUGHTS:
            self._end(edge["name"], out) if edge["side"] == "end" else self._begin(edge["name"], out)

    def _begin(self, name: str, out: list[str]) -> None:
        if not self._thought:
            self._thought = name
            self.thinks_first = self.thinks_first and bool("".join([*self._held, *out]).strip())
        self._depth += self._thought == name

    def _end(self, name: str, out: list[str]) -> None:
        if self._thought:
            if self._thought == name:
                self._depth -= 1
                self._thought = name if self._depth else ""
            return
        self.was_thought = self.was_thought or not self.thinks_first
        self.thinks_first = False
        self._held.clear()
        out.clear()
