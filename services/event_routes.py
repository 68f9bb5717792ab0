"""Which inboxes receive which events: the whole routing of the mesh.

An inbox bears the name of its service. The story service has a second one, `story-accounts`: stories take minutes each, and what
happens to an account must not wait behind them.
"""

from __future__ import annotations

from storymesh.events.v1 import auth_events_pb2, story_events_pb2

ROUTES: dict[str, tuple[str, ...]] = {
    message.DESCRIPTOR.full_name: inboxes
    for message, inboxes in (
        (auth_events_pb2.CodeIssued, ("notification",)),
        (auth_events_pb2.RegistrationRepeated, ("notification",)),
        (auth_events_pb2.UserRegistered, ("notification",)),
        # Nobody keeps a copy of a profile: who needs one asks.
        (auth_events_pb2.UserUpdated, ()),
        (auth_events_pb2.UserDeleted, ("story-accounts", "notification")),
        (auth_events_pb2.SessionRevoked, ("notification",)),
        # Whoever ended them is told in other words, and services by the feed of revocations.
        (auth_events_pb2.SessionsRevoked, ()),
        (auth_events_pb2.PasswordChanged, ("notification",)),
        (auth_events_pb2.PasswordDisabled, ("notification",)),
        (auth_events_pb2.EmailChanged, ("notification",)),
        (auth_events_pb2.EmailChangeBegun, ("notification",)),
        (auth_events_pb2.EmailChangeStopped, ("notification",)),
        (auth_events_pb2.AddressClaimed, ("notification",)),
        (auth_events_pb2.NewDeviceSignedIn, ("notification",)),
        (auth_events_pb2.UsernameChanged, ("notification",)),
        (auth_events_pb2.AccountDeleted, ("notification",)),
        (story_events_pb2.StoryRequested, ("story",)),
        (story_events_pb2.StoryCompleted, ("notification",)),
        (story_events_pb2.StoryFailed, ("notification",)),
    )
}
