"""The same no-op job through three job queues and through the mesh's own inbox, on one Redis.

What is compared: somebody hands in a job, one of the worker processes takes it, runs an async function that does nothing and says
so to Redis, and no job may be lost when its worker dies (each is set to acknowledge after the run). No results are kept. Each has
as many worker processes and slots as the others, and one process that hands in.

- `on_inbox` is that and no more: kit's inbox without Postgres.
- `on_events` is the same work as the mesh does it: handed in by a committed transaction and relayed from the outbox, so that
  neither Redis nor anybody's death loses it. Like theirs, such a job may run twice, and has to be harmless then.
- `on_recorded_events` is that with another committed transaction for each, in which an effect happens once.
"""
