"""Takes the story service's events."""

from __future__ import annotations

from collections.abc import Mapping

from storymesh.events.v1 import auth_events_pb2
from storymesh.events.v1 import story_events_pb2 as events

from kit.events.envelope import Event, uuid_in
from kit.events.inbox import Handler

from .operations.erasing import Erasing
from .operations.writing import Writing


def handlers(writing: Writing) -> Mapping[str, Handler]:
    """By the full name of the event's message."""

    async def write(event: Event) -> None:
        # No record in processed_events: the attempt's guarded updates already make a repeat harmless.
        await writing.write(uuid_in(event.decode(events.StoryRequested), "story_id"))

    return {events.StoryRequested.DESCRIPTOR.full_name: write}


def account_handlers(erasing: Erasing) -> Mapping[str, Handler]:
    """Those of the inbox that the stories do not hold up."""

    async def erase(event: Event) -> None:
        await erasing.erase(uuid_in(event.decode(auth_events_pb2.UserDeleted), "user_id"))

    return {auth_events_pb2.UserDeleted.DESCRIPTOR.full_name: erase}
