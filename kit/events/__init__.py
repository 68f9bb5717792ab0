"""Room events: from a committed change in one service to its effect in another.

Promises: an event exists exactly if the change was committed (`outbox`); it reaches each subscribing inbox at least once, in
order for each key (`relay`), also when Redis lost what it was told (`redis_memory`); it is handled under a lease and retried
with backoff (`inbox`), together with others where its handler takes batches (`handlers`); what cannot be handled waits for an
administrator's decision (`dead_letters`); nothing is written about an erased person (`erasure`).
Invariants: Postgres holds the truth and Redis copies; an entry is acknowledged after the commit of its effect; a handler that
has an effect calls `mark_processed` or `mark_all_processed` in the same transaction.
It is not: exactly once, nor a queue for calls that want an answer. It imports all other rooms and is imported by none.
"""
