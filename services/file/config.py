"""The settings of the file service; the only place that reads its environment."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from kit.runtime.settings import DatabaseSettings, InboxSettings, Key, ObjectStoreSettings


class FileSettings(ObjectStoreSettings, DatabaseSettings):
    """The settings of `serve`."""

    cursor_key: Key = Field(description="Signs page tokens and resume tokens; the same for all replicas.")
    files_bytes: int = Field(10 << 30, ge=1, description="Bytes of the files that a person may have.")
    files_most: int = Field(5000, ge=1, description="Files that a person may have.")
    files_bytes_a_day: int = Field(
        10 << 30, ge=1, description="Bytes of the files that a person may create within 24 hours."
    )
    files_a_day: int = Field(1000, ge=1, description="Files that a person may create within 24 hours.")
    files_upload_seconds: int = Field(
        900, ge=1, le=86_400, description="How long a signed upload is taken by the store."
    )
    files_download_seconds: int = Field(
        600, ge=1, le=604_800, description="How long a signed download is taken by the store."
    )
    files_pending_seconds: int = Field(
        86_400, ge=1, description="How long a file may take from its creation until it is uploaded and completed."
    )
    heartbeat_seconds: float = Field(15.0, gt=0, description="Silence on a watch after which a heartbeat is sent.")
    watches: int = Field(5000, ge=1, description="Watches that a process serves at a time.")
    watches_per_person: int = Field(20, ge=1, description="Watches that one person may have open at a process.")
    ratelimit_target: str = Field(
        "",
        description="Address and port of the rate limiter, which bounds a person's watches over all replicas; empty: none.",
    )


_ClamdAddress = Annotated[str, Field(pattern=r"^$|^tcp://\S+:\d+$|^unix:/\S+$")]


class FileWorkerSettings(ObjectStoreSettings, InboxSettings):
    """The settings of `worker`."""

    files_checks: int = Field(4, ge=1, description="Files that a worker checks at a time.")
    files_image_processes: int = Field(
        2, ge=1, description="Processes of a worker that decode images; each works on one at a time."
    )
    files_sweep: Literal["report", "delete"] = Field(
        "delete",
        description="What becomes of objects that no file needs, a day old and found twice: they are told, or deleted too.",
    )
    files_sweep_seconds: float = Field(
        21_600.0, gt=0, description="Between two comparisons of the files with the objects of the store."
    )
    clamd_address: _ClamdAddress = Field(
        "",
        description="The virus scanner clamd, such as tcp://clamd:3310 or unix:/run/clamd.sock; empty: files are not scanned.",
    )
    clamd_most_bytes: int = Field(
        100 << 20,
        ge=1,
        description="The largest file that clamd takes (its StreamMaxLength). Larger ones are refused.",
    )
