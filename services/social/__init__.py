"""Public profiles, and whom people block and mute.

Owns the tables profiles, former_handles, handle_changes, blocks and mutes, kit's tables for the outbox, the inboxes and erasure,
the Redis streams `inbox:social` and `inbox:social-accounts`, and the relay's `memory:*`. Publishes ProfileDeleted (to itself),
UserBlocked, UserUnblocked, and for avatars FileClaimsConfirmed and FileClaimsReleased. Takes UserRegistered, on which it makes a
profile, FileErased, after which no profile shows the file, and ProfileDeleted and UserDeleted, on which it erases. Calls file to
claim avatars and to have their URLs signed, and auth for its keys and revocations alone.
"""
