"""The settings of the toy service."""

from pydantic import Field

from kit.runtime.settings import InboxSettings, Key


class ToySettings(InboxSettings):
    """Settings of its server and its worker."""

    toy_key: Key = Field(description="A key of its own.")
    toy_step: int = Field(1, ge=1, description="What each change counts.")
