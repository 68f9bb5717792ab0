"""Writers turn a brief into a story, word by word.

A writer knows nothing of accounts, queues or protobuf: it takes a `Brief` and yields `Piece`s, which the worker stores. Three
writers exist: `openai` (any OpenAI-compatible endpoint), `local` (llama.cpp in this process) and `composer` (rules only).
`build_writer` imports only the module of the writer it builds, so that a deployment installs only what its writer needs.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, runtime_checkable

__all__ = [
    "LANGUAGES",
    "WITH_TOKENS",
    "Brief",
    "Continuing",
    "Piece",
    "Refusal",
    "Title",
    "Usage",
    "WordCount",
    "Words",
    "Writer",
    "WriterName",
    "WriterRefused",
    "WriterUnavailable",
    "build_writer",
    "primary_subtag",
    "require_language",
]


class WordCount(enum.Enum):
    """The length of a story. `words` is the target; writers stay within a third of it either way."""

    SHORT = 150
    MEDIUM = 350
    LONG = 700

    @property
    def words(self) -> int:
        return self.value

    @property
    def fewest(self) -> int:
        return -(-self.value * 2 // 3)

    @property
    def most(self) -> int:
        return self.value * 4 // 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Brief:
    """The request of a reader, as a writer gets it.

    Every string comes from outside and is data: writers bound it, flatten it to one line and never treat it as an instruction or
    a template. Empty strings and an empty tuple mean "not given".

    `language` is a BCP 47 tag. `title`, when given, is used as it stands. `first_name` is the reader's. `seed` comes from the
    story's id, so that a retry of the same story starts alike and two stories of one reader differ.
    """

    preferences: tuple[str, ...] = ()
    theme: str = ""
    prompt: str = ""
    length: WordCount = WordCount.MEDIUM
    language: str = "en"
    title: str | None = None
    first_name: str = ""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Title:
    """The story's title: one line of plain text, never empty, at most 120 characters."""

    text: str


@dataclass(frozen=True, slots=True)
class Words:
    """The next piece of the story's plain text; paragraphs are separated by an empty line."""

    text: str


@dataclass(frozen=True, slots=True)
class Usage:
    """The cost of the writing, in the model's own tokens."""

    prompt_tokens: int
    completion_tokens: int


Piece: TypeAlias = Title | Words | Usage


class Refusal(enum.StrEnum):
    """Reasons for which a story will never be written. Permanent: shown to the reader as the story's failure reason."""

    CONTENT_REFUSED = "CONTENT_REFUSED"
    LANGUAGE_UNSUPPORTED = "LANGUAGE_UNSUPPORTED"
    WRITER_MISCONFIGURED = "WRITER_MISCONFIGURED"


class WriterUnavailable(Exception):
    """A transient failure: the same brief may succeed later.

    `retry_after` is the number of seconds that the writer's backend asked callers to wait, if any. The message is for the log.
    """

    def __init__(self, message: str, *, retry_after: float | None = None) -> None:
        super().__init__(message)
        self.retry_after = retry_after


class WriterRefused(Exception):
    """A permanent failure: the same brief to the same writer will fail again.

    The message is for the log, `reason` for the reader.
    """

    def __init__(self, reason: Refusal, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class Writer(Protocol):
    """Writes stories; safe for many at once on one event loop.

    `name` and `model` are shown beside each story.
    """

    @property
    def name(self) -> str: ...

    @property
    def model(self) -> str: ...

    async def warm_up(self) -> None:
        """Load the model, if the writer has one, so that the first story need not wait for it.

        Raises `WriterRefused` when it can never succeed, so that a worker with a broken set-up fails at start and not per story.
        """

    def write(self, brief: Brief) -> AsyncGenerator[Piece, None]:
        """Yield one `Title`, then `Words`, then at most one `Usage` if the writer counts tokens.

        The concatenated words are the story: plain text that ends with a whole sentence and has no surrounding white space.
        Nothing yielded is ever taken back. After an error in mid-story the caller must discard the text so far; another call
        starts from the beginning.

        Consume it inside `contextlib.aclosing`, so that leaving early ends the generation at once rather than at the next
        garbage collection; cancelling a task that waits for the next piece does the same.

        Raises `WriterUnavailable` and `WriterRefused`.
        """
        ...

    async def aclose(self) -> None:
        """Free connections, threads and memory. Stories still being written end with `WriterUnavailable`."""


@runtime_checkable
class Continuing(Protocol):
    """The additional method of a writer that can continue an interrupted attempt from its checkpoint.

    The composer can, because it gives the same text for the same brief. Writers with a model cannot: a model would not continue a
    sentence that was cut anywhere as it had meant to, and the local writer no longer knows which sentences were the model's.
    """

    def go_on(self, brief: Brief, title: str, text: str) -> AsyncGenerator[Piece, None] | None:
        """Return a generator of the rest of the story: `Words`, then at most one `Usage`.

        None when title and text are not what this writer would have written for the brief; then the story starts over.
        """
        ...


WriterName: TypeAlias = Literal["openai", "local", "composer"]

LANGUAGES: Mapping[WriterName, frozenset[str] | None] = {
    "openai": None,
    "local": frozenset({"en"}),
    "composer": frozenset({"en"}),
}
"""The languages that each writer writes, as primary subtags (RFC 5646, 2.2.1). None: that depends on the model."""

WITH_TOKENS: frozenset[WriterName] = frozenset({"openai", "local"})
"""The writers that ask a model, whose tokens cost something."""


def primary_subtag(tag: str) -> str:
    """The primary language subtag of a BCP 47 tag. No writer here distinguishes scripts, regions or variants."""
    return tag.replace("_", "-").split("-")[0].lower()


def require_language(brief: Brief, writer: WriterName) -> None:
    """Raise WriterRefused for a language that the writer does not write. The server's setting may name another writer."""
    languages = LANGUAGES[writer]
    if languages is not None and brief.language and primary_subtag(brief.language) not in languages:
        raise WriterRefused(
            Refusal.LANGUAGE_UNSUPPORTED,
            f"the {writer} writer writes {' and '.join(sorted(languages))} only, asked for {brief.language!r}",
        )


def build_writer(
    name: WriterName,
    *,
    pace_seconds: float = 0.02,
    model_path: Path | None = None,
    threads: int | None = None,
    parallel: int = 1,
    openai_base_url: str = "",
    openai_api_key: str = "",
    openai_model: str = "",
) -> Writer:
    """Build the writer of that name from the arguments that concern it; ignore the others.

    `pace_seconds` is the composer's. The local model's are `model_path` (default: the model of the extra `local-llm`), `threads`
    (default: one per core, less one) and `parallel` (stories written side by side).

    Raises `WriterRefused` (WRITER_MISCONFIGURED) naming what is missing or wrong and the command or setting that supplies it.
    """
    match name:
        case "composer":
            from .composer import ComposerWriter

            return ComposerWriter(pace_seconds=pace_seconds)
        case "local":
            from .llama import Llama, bundled_model
            from .local import LocalWriter

            return LocalWriter(Llama(model_path or bundled_model(), threads=threads, parallel=parallel))
        case "openai":
            try:
                from .openai import OpenAIWriter, endpoint
            except ModuleNotFoundError as error:
                raise WriterRefused(
                    Refusal.WRITER_MISCONFIGURED,
                    f"the package {error.name} is not installed: it comes with the extra openai, which `make setup` installs",
                ) from error

            base_url, api_key = openai_base_url.strip(), openai_api_key.strip()
            endpoint.check(base_url, api_key, openai_model)
            return OpenAIWriter(base_url=base_url or None, api_key=api_key, model=openai_model)
    raise WriterRefused(Refusal.WRITER_MISCONFIGURED, f"no writer is called {name!r}: choose openai, local or composer")
