"""The settings of the story service; the only place that reads its environment."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field, SecretStr

from services.kit.settings import DatabaseSettings, InboxSettings, Key

from .writers import WriterName


class StorySettings(DatabaseSettings):
    """What `serve` is told."""

    cursor_key: Key = Field(description="Signs page tokens and resume tokens; the same for all replicas.")
    heartbeat_seconds: float = Field(15.0, gt=0, description="Silence on a watch after which a heartbeat is sent.")


class StoryWorkerSettings(InboxSettings):
    """What `worker` is told."""

    writer: WriterName = Field("composer", description="Who writes: openai, local or composer.")
    writer_concurrency: int = Field(2, ge=1, description="Stories that a worker writes at a time.")
    story_seconds: float = Field(300.0, gt=0, description="The longest that one attempt at a story may take.")
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
