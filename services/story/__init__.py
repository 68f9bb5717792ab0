"""Stories on demand: request, background writing, progress.

Owns the tables stories, admissions, outbox, redis_memories, dead_letters, dead_letter_decisions and erased_subjects, the Redis
streams `progress:<story>`, `inbox:story` and `inbox:story-accounts`, and the relay's `memory:*`. Gives StoryRequested (to itself),
StoryCompleted and StoryFailed. Takes StoryRequested, and UserDeleted, on which it erases the person's stories and whatever it
holds about them. Calls auth for an account's preferences.
"""
