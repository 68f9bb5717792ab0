"""Stories on demand: request, background writing, progress.

Owns the tables stories, outbox and dead_letters, and the Redis streams `progress:<story>` and `inbox:story`.
Gives StoryRequested (to itself), StoryCompleted and StoryFailed. Takes StoryRequested. Calls auth for an account's preferences.
"""
