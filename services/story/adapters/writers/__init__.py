"""Writers turn a brief into a story, word by word.

A writer knows nothing of accounts, queues or protobuf: it takes a `Brief` and yields `Piece`s. The worker decides what becomes of
them. Three writers exist: `openai` (any OpenAI-compatible endpoint), `local` (llama.cpp in this process) and `composer` (rules
only). Their modules are imported by `build_writer` when asked for, so that a deployment installs only what its writer needs.
"""

from __future__ import annotations

import enum
from collections.abc import AsyncGenerator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias, runtime_checkable

__all__ = [
    "LANGUAGES",
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
    """How long a story is. `words` is the target; writers stay within a third of it either way."""

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
    """What a reader asked for.

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
    """What the writing cost, in the model's own tokens."""

    prompt_tokens: int
    completion_tokens: int


Piece: TypeAlias = Title | Words | Usage


class Refusal(enum.StrEnum):
    """Why a story will never be written; public and permanent, shown to the reader as the story's failure reason."""

    CONTENT_REFUSED = "CONTENT_REFUSED"
    LANGUAGE_UNSUPPORTED = "LANGUAGE_UNSUPPORTED"
    WRITER_MISCONFIGURED = "WRITER_MISCONFIGURED"


class WriterUnavailable(Exception):
    """A passing failure: the same brief may succeed later.

    `retry_after` is the number of seconds the writer's backend asked callers to wait, when it said so. The message is for the log.
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
        """Does what would delay the first story (loads a model), where there is such a thing.

        Raises `WriterRefused` when it can never succeed, so that a worker with a broken set-up fails at start and not per story.
        """

    def write(self, brief: Brief) -> AsyncGenerator[Piece, None]:
        """Yields one `Title`, then `Words`, then at most one `Usage` where the writer counts tokens.

        The concatenated words are the story: plain text that ends with a whole sentence and carries no surrounding white space.
        Nothing yielded is ever taken back. After an error in mid-story the text so far is to be discarded; another call starts
        from the beginning.

        Consume it inside `contextlib.aclosing`, so that leaving early ends the generation at once rather than at the next
        garbage collection; cancelling a task that waits for the next piece does the same.

        Raises `WriterUnavailable` and `WriterRefused`.
        """
        ...

    async def aclose(self) -> None:
        """Frees connections, threads and memory. Stories still being written end with `WriterUnavailable`."""


@runtime_checkable
class Continuing(Protocol):
    """What a writer has besides that can go on where another attempt was broken off.

    The composer can, as it gives the same text for the same brief. Those with a model cannot: it would write something else after a
    sentence that was cut anywhere, and the local writer does not know any more which of its sentences were the model's.
    """

    def go_on(self, brief: Brief, title: str, text: str) -> AsyncGenerator[Piece, None] | None:
        """Yields what follows the text: `Words`, then at most one `Usage`.

        None when title and text are not what this writer would have written for the brief so far; then the story starts over.
        """
        ...


WriterName: TypeAlias = Literal["openai", "local", "composer"]

LANGUAGES: Mapping[WriterName, frozenset[str] | None] = {
    "openai": None,
    "local": frozenset({"en"}),
    "composer": frozenset({"en"}),
}
"""The languages that each writer writes, as primary subtags (RFC 5646, 2.2.1). None: which, only the model knows."""


def primary_subtag(tag: str) -> str:
    """The language that a BCP 47 tag names, without script, region and the rest, which no writer here tells apart."""
    return tag.replace("_", "-").split("-")[0].lower()


def require_language(brief: Brief, writer: WriterName) -> None:
    """Raises WriterRefused for a language that the writer does not write: the server may have been told of another writer."""
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
    """Builds the writer of that name from the arguments that concern it and ignores the others.

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
