"""Takes the story service's events."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import UUID

from storymesh.events.v1 import story_events_pb2 as events

from services.kit.events import Event
from services.kit.inbox import Handler

from .writing import Writing


def handlers(writing: Writing) -> Mapping[str, Handler]:
    """By the full name of the event's message."""

    async def write(event: Event) -> None:
        # No record in processed_events: the attempt's guarded updates already make a repeat harmless.
        await writing.write(UUID(event.decode(events.StoryRequested).story_id))

    return {events.StoryRequested.DESCRIPTOR.full_name: write}
