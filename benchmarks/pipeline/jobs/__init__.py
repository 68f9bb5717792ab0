"""The throughput of a no-op job in three job queues and in the mesh's own inbox, on one Redis.

A producer enqueues a job; a worker process takes it, runs an async function that does nothing, and acknowledges it after the run,
so that no job is lost when its worker dies. No results are kept. All contenders have the same number of worker processes and
slots, and one producer process.

- `on_inbox` does exactly this: kit's inbox without Postgres.
- `on_events` is the mesh's path: an event is published in a committed transaction and relayed from the outbox, so that no crash of
  Redis or of a process loses it. As in the job queues, delivery is at least once, so the job must be idempotent.
- `on_recorded_events` adds a record of each event in a committed transaction, in which its effect happens exactly once.

Jobs are handled one by one, events by a handler of batches, as notification's are. Processor time is that of all processes: the one
that hands in, the workers, Redis and Postgres.
"""
