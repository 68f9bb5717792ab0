"""The settings of the social service; the only place that reads its environment."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from kit.runtime.settings import DatabaseSettings, InboxSettings, Key

_HandleKey = Annotated[
    Key,
    Field(
        description="Keys the digests under which former handles are reserved; the same for all processes. A new one frees all."
    ),
]


class SocialSettings(DatabaseSettings):
    """The settings of `serve`."""

    cursor_key: Key = Field(description="Signs page tokens; the same for all replicas.")
    handle_key: _HandleKey
    file_target: str = Field("127.0.0.1:50051", description="Address and port of the file service.")


class SocialWorkerSettings(InboxSettings):
    """The settings of `worker`."""

    handle_key: _HandleKey
