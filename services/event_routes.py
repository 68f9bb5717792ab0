"""Which services receive which events: the whole routing of the mesh."""

from __future__ import annotations

from storymesh.events.v1 import auth_events_pb2, story_events_pb2

ROUTES: dict[str, tuple[str, ...]] = {
    message.DESCRIPTOR.full_name: inboxes
    for message, inboxes in (
        (auth_events_pb2.CodeIssued, ("notification",)),
        (auth_events_pb2.RegistrationRepeated, ("notification",)),
        (auth_events_pb2.UserRegistered, ("notification",)),
        (story_events_pb2.StoryRequested, ("story",)),
        (story_events_pb2.StoryCompleted, ("notification",)),
        (story_events_pb2.StoryFailed, ("notification",)),
    )
}
