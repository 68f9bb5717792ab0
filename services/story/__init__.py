"""Stories on demand: request, background writing, progress.

Owns the tables stories, story_links and admissions, kit's tables for the outbox, the inboxes and erasure, the Redis streams
`progress:<story>`, `inbox:story` and `inbox:story-accounts`, and the relay's `memory:*`. Publishes StoryRequested (to itself),
StoryCompleted and StoryFailed. Takes StoryRequested, and UserDeleted, on which it erases the account's stories and admissions.
Calls auth for an account's preferences.
"""
