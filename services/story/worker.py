"""The inboxes of the story service, and the writer that its worker opens."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from storymesh.events.v1 import auth_events_pb2
from storymesh.events.v1 import story_events_pb2 as events

from kit.events.envelope import Event, uuid_in
from kit.events.handlers import Handler
from kit.events.inbox import Inbox
from kit.rpc.resources import Resources
from kit.runtime.process import Misconfigured

from .adapters.writers import Writer, WriterRefused, build_writer
from .config import StoryWorkerSettings
from .operations.erasing import Erasing
from .operations.writing import Writing

_ERASED_AT_A_TIME = 2


@asynccontextmanager
async def warm_writer(settings: StoryWorkerSettings) -> AsyncIterator[Writer]:
    """Build the writer, warm it up, and close it after the block. Raises Misconfigured when it cannot write with these settings."""
    try:
        writer = build_writer(
            settings.writer,
            pace_seconds=settings.composer_pace,
            model_path=settings.model_path,
            parallel=settings.writer_concurrency,
            openai_base_url=settings.openai_base_url,
            openai_api_key=settings.openai_api_key.get_secret_value(),
            openai_model=settings.openai_model,
        )
    except WriterRefused as refused:
        raise Misconfigured(refused) from None
    try:
        try:
            await writer.warm_up()
        except WriterRefused as refused:
            raise Misconfigured(refused) from None
        yield writer
    finally:
        await writer.aclose()


def stories_inbox(settings: StoryWorkerSettings, resources: Resources, writing: Writing) -> Inbox:
    """The inbox of StoryRequested: it writes stories."""

    async def write(event: Event) -> None:
        # No row in processed_events: the attempt's guarded updates already make a repeated event harmless.
        await writing.write(uuid_in(event.decode(events.StoryRequested), "story_id"))

    handlers = {events.StoryRequested.DESCRIPTOR.full_name: write}
    return _inbox(settings, resources, "story", handlers, concurrency=settings.writer_concurrency)


def accounts_inbox(settings: StoryWorkerSettings, resources: Resources, erasing: Erasing) -> Inbox:
    """The inbox of UserDeleted, apart from `stories_inbox` so that an erasure does not wait for stories that are being written."""

    async def erase(event: Event) -> None:
        await erasing.erase(uuid_in(event.decode(auth_events_pb2.UserDeleted), "user_id"))

    handlers = {auth_events_pb2.UserDeleted.DESCRIPTOR.full_name: erase}
    return _inbox(settings, resources, "story-accounts", handlers, concurrency=_ERASED_AT_A_TIME)


def _inbox(
    settings: StoryWorkerSettings, resources: Resources, name: str, handlers: Mapping[str, Handler], *, concurrency: int
) -> Inbox:
    return Inbox(
        resources.db,
        resources.redis,
        name,
        handlers,
        lease_seconds=settings.lease_seconds,
        concurrency=concurrency,
        max_failures=settings.max_failures,
    )
