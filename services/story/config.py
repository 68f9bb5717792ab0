"""The settings of the story service; the only place that reads its environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr

from kit.runtime.settings import DatabaseSettings, InboxSettings, Key

from .adapters.writers import WriterName

# Set for the server as well as for the workers: the server refuses a language that the workers' writer does not write.
_Writer = Annotated[
    WriterName, Field(description="Who writes: openai, local or composer; the latter two write English only.")
]


class StorySettings(DatabaseSettings):
    """The settings of `serve`."""

    writer: _Writer = "composer"
    cursor_key: Key = Field(description="Signs page tokens and resume tokens; the same for all replicas.")
    link_key: Key = Field(
        description="Signs the links that show a story without signing in; the same for all replicas. A new one ends all links."
    )
    heartbeat_seconds: float = Field(15.0, gt=0, description="Silence on a watch after which a heartbeat is sent.")
    watches: int = Field(5000, ge=1, description="Watches that a process serves at a time.")
    watches_per_person: int = Field(20, ge=1, description="Watches that one person may have open at a process.")
    ratelimit_target: str = Field(
        "",
        description="Address and port of the rate limiter, which bounds a person's watches over all replicas; empty: none.",
    )
    watched_stories: int = Field(
        1500, ge=1, description="Different stories watched at a process; each holds a connection to Redis."
    )
    watch_entries_behind: int = Field(
        500, ge=1, description="Batches of words that may come while a watcher does not read, before it is sent away."
    )
    stories_unfinished: int = Field(5, ge=1, description="Stories that a person may have queued or running.")
    stories_a_day: int = Field(50, ge=1, description="Stories that a person may ask for within 24 hours.")
    stories_backlog: int = Field(1000, ge=1, description="Queued stories beyond which no more are taken from anybody.")


class StoryWorkerSettings(InboxSettings):
    """The settings of `worker`."""

    writer: _Writer = "composer"
    ratelimit_target: str = Field(
        "", description="Address and port of the rate limiter, which bounds a person's tokens; empty: none."
    )
    writer_concurrency: int = Field(2, ge=1, description="Stories that a worker writes at a time.")
    writer_limit: int = Field(
        0,
        ge=0,
        description="Stories that all workers together write with this writer at a time; 0: as many as they can.",
    )
    story_seconds: float = Field(300.0, gt=0, description="The longest that one attempt at a story may take.")
    story_life_seconds: float = Field(
        21600.0,
        gt=0,
        description="The time from its request, or last retry, after which an unfinished story is given up.",
    )
    story_attempts: int = Field(5, ge=1, description="Failed attempts after which a story is given up.")
    model_path: Path | None = Field(
        None, description="Another GGUF for the local writer; empty: SmolLM2-135M-Instruct."
    )
    openai_base_url: str = Field("", description="An OpenAI-compatible endpoint; empty: the provider's own.")
    openai_api_key: SecretStr = Field(SecretStr(""), description="The endpoint's key.")
    openai_model: str = Field("gpt-4o-mini", description="The model to ask the endpoint for.")
    composer_pace: float = Field(
        0.01, ge=0, description="Seconds between the composer's words, so that streaming shows."
    )
