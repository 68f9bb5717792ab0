"""Add the function by which requested stories that meet are admitted together.

As `story_demand` does for one request, it locks and then counts, in statements of its own. It takes a person's locks only if nobody
holds them, so it never waits.

Only adds: the previous version admits requests one by one, with the same locks.
"""

from alembic import op

revision = "0009"
down_revision = "0008"


def upgrade() -> None:
    op.execute(
        """
        CREATE FUNCTION story_demands(
            persons uuid[], erasure_locks bigint[], earlier integer[], locks integer,
            most integer, a_day integer, backlog integer
        ) RETURNS TABLE (
            number integer, unfinished bigint, earliest_of_day timestamptz, queued bigint, erased boolean
        ) LANGUAGE plpgsql AS $$
        DECLARE
            held boolean[];
            all_queued bigint;
        BEGIN
            held := ARRAY(
                SELECT pg_try_advisory_xact_lock_shared(given.erasure_lock)
                    AND pg_try_advisory_xact_lock(locks, hashtext(given.person::text))
                FROM unnest(persons, erasure_locks) WITH ORDINALITY AS given(person, erasure_lock, place)
                ORDER BY given.place
            );
            all_queued := (SELECT count(*) FROM (SELECT FROM stories WHERE state = 'QUEUED' LIMIT backlog) AS all_queued);
            RETURN QUERY
                SELECT
                    given.place::integer,
                    (SELECT count(*) FROM (
                        SELECT FROM stories WHERE owner_id = given.person AND state IN ('QUEUED', 'RUNNING') LIMIT most
                    ) AS own),
                    (SELECT admitted_at FROM admissions WHERE owner_id = given.person
                        ORDER BY admitted_at DESC OFFSET greatest(a_day - 1 - given.before, 0) LIMIT 1),
                    all_queued,
                    EXISTS (SELECT FROM erased_subjects WHERE subject_id = given.person)
                FROM unnest(persons, earlier, held) WITH ORDINALITY AS given(person, before, locked, place)
                WHERE given.locked;
        END
        $$
        """
    )


def downgrade() -> None:
    op.execute("DROP FUNCTION story_demands")
