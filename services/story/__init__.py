"""Stories on demand: request, background writing, progress.

Owns the tables stories and admissions, of the kit's tables the outbox, the inbox's and the record of erased people, the Redis
streams `progress:<story>`, `inbox:story` and `inbox:story-accounts`, and the relay's `memory:*`. Gives StoryRequested (to itself),
StoryCompleted and StoryFailed. Takes StoryRequested, and UserDeleted, on which it erases the person's stories and whatever it
holds about them. Calls auth for an account's preferences.
"""
