"""Add the function by which a requested story is admitted: it waits for the person's lock, then counts.

A statement sees the tables as they were when it began, before it waited for a lock. A statement within a function in plpgsql sees
what was committed until that statement began. So one statement can lock, count and insert.

Only adds: the previous version locks and counts in statements of its own, with the same locks.
"""

from alembic import op

revision = "0008"
down_revision = "0007"


def upgrade() -> None:
    op.execute(
        """
        CREATE FUNCTION story_demand(
            person uuid, erasure_lock bigint, locks integer, most integer, a_day integer, backlog integer,
            OUT unfinished bigint, OUT earliest_of_day timestamptz, OUT queued bigint, OUT erased boolean
        ) LANGUAGE plpgsql AS $$
        BEGIN
            PERFORM pg_advisory_xact_lock_shared(erasure_lock), pg_advisory_xact_lock(locks, hashtext(person::text));
            SELECT
                (SELECT count(*) FROM (
                    SELECT FROM stories WHERE owner_id = person AND state IN ('QUEUED', 'RUNNING') LIMIT most
                ) AS own),
                (SELECT admitted_at FROM admissions WHERE owner_id = person
                    ORDER BY admitted_at DESC OFFSET a_day - 1 LIMIT 1),
                (SELECT count(*) FROM (SELECT FROM stories WHERE state = 'QUEUED' LIMIT backlog) AS all_queued),
                EXISTS (SELECT FROM erased_subjects WHERE subject_id = person)
            INTO unfinished, earliest_of_day, queued, erased;
        END
        $$
        """
    )


def downgrade() -> None:
    op.execute("DROP FUNCTION story_demand")
