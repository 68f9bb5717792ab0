"""Room data: Postgres and Redis, as every service uses them.

Promises: a transaction is a scope (`Database.transaction`) that commits at its end and rolls back when it raises; a server that
stands still is noticed once for all calls and refused at once (`liveness`); lost connections are replaced; one `migrate`
command builds the kit's tables and the service's own (`migrations`); a page token is good for the query that handed it out and
for no other (`paging`).
Invariants: every wait for a server has an end; values of statements are never logged; no store function opens a transaction.
It is not: a store. No table of a service and no statement about one stands here, and of the kit's tables only their migrations;
the tables themselves, and what is done with them, are in `kit.events`.
It imports `kit.identity` (page tokens are signed), `kit.runtime` and `kit.errors`, and `mesh` for the manifests.
"""
