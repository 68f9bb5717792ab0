"""Databases that were built while each service migrated the kit's tables itself, with data in them.

`former_databases/` holds the SQL of those histories, a file for each service; they have ended, so the files never change.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any
from uuid import UUID

import psycopg
import pytest
from psycopg import sql
from psycopg.rows import dict_row

from kit.data import migrations
from local.harness import Servers
from tests.kit.data.test_migrations import fresh_database

pytestmark = pytest.mark.slow

Rows = list[tuple[Any, ...]]

_MARK = re.compile(r"^-- Running upgrade .*-> (\d+)$", re.MULTILINE)


def _history(service: str) -> list[tuple[str, str]]:
    """Each revision with the SQL that leads to it from the one before."""
    text = (Path(__file__).parent / "former_databases" / f"{service}.sql").read_text()
    start, *parts = _MARK.split(text)
    steps = list(zip(parts[::2], parts[1::2], strict=True))
    return [(steps[0][0], start + steps[0][1]), *steps[1:]]


EVENT, LETTER, DECIDED, PERSON, ADMINISTRATOR = (UUID(int=number) for number in range(1, 6))

_ROWS = {
    "outbox": f"""
        INSERT INTO outbox (id, key, type, version, payload, traceparent) VALUES ('{EVENT}', 'k', 't', 1, 'payload', '')
    """,
    "dead_letters": f"""
        INSERT INTO dead_letters (event_id, type, key, event, reason, failures) VALUES
          ('{LETTER}', 'storymesh.events.v1.UserDeleted', 'k', 'event', 'no such story', 8)
    """,
    "processed_events": f"INSERT INTO processed_events (event_id) VALUES ('{EVENT}')",
    "erased_subjects": f"INSERT INTO erased_subjects (subject_id) VALUES ('{PERSON}')",
    "redis_memories": "INSERT INTO redis_memories (name, epoch, run_id) VALUES ('outbox', 'epoch', 'run')",
}

REVISIONS = [
    (service, revision)
    for service in ("auth", "story", "notification")
    for revision, statements in _history(service)
    if revision == _history(service)[-1][0] or re.search(r"\b(" + "|".join(_ROWS) + r")\b", statements)
]
"""Those that changed one of the kit's tables, and the last of each history."""

_INSERT_DECIDED = """
    INSERT INTO dead_letters (event_id, type, key, event, reason, failures, settled_at, settlement, settled_by, settled_because)
    VALUES (%s, '', '', '', '', 1, now(), 'DISCARDED', %s, 'nobody waits for it')
"""

_SCHEMA = (
    """
    SELECT table_name, column_name, ordinal_position, data_type, is_nullable, column_default, identity_generation
    FROM information_schema.columns WHERE table_schema = 'public' ORDER BY table_name, ordinal_position
    """,
    "SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY 1",
    """
    SELECT conrelid::regclass::text, conname, pg_get_constraintdef(oid)
    FROM pg_constraint WHERE connamespace = 'public'::regnamespace ORDER BY 1, 2
    """,
    "SELECT tgname, tgrelid::regclass::text, pg_get_triggerdef(oid) FROM pg_trigger WHERE NOT tgisinternal ORDER BY 1, 2",
    "SELECT * FROM alembic_version UNION SELECT * FROM kit_alembic_version ORDER BY 1",
)


def _schema(url: str) -> list[Rows]:
    with psycopg.connect(url.replace("+psycopg", "")) as connection:
        return [connection.execute(query).fetchall() for query in _SCHEMA]


def _rows(connection: psycopg.Connection, table: str) -> list[dict[str, Any]]:
    """Without what is unset."""
    with connection.cursor(row_factory=dict_row) as cursor:
        rows = cursor.execute(sql.SQL("SELECT * FROM {}").format(sql.Identifier(table))).fetchall()
    return [{name: value for name, value in row.items() if value is not None} for row in rows]


def _tables(connection: psycopg.Connection) -> set[str]:
    return {name for (name,) in connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")}


@pytest.mark.parametrize(("service", "revision"), REVISIONS)
def test_a_former_database_becomes_what_a_new_one_is_and_keeps_its_rows(
    servers: Servers, migrated: Callable[[str], str], service: str, revision: str
) -> None:
    with fresh_database(servers) as url, psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        for reached, statements in _history(service):
            connection.execute(statements.encode())
            if reached == revision:
                break
        tables = _tables(connection) & _ROWS.keys()
        for table in tables:
            connection.execute(_ROWS[table].encode())
        before = {table: _rows(connection, table) for table in tables}
        migrations.upgrade(f"services.{service}", url)
        after = {table: _rows(connection, table) for table in tables}
        # The rest of a row is what was added, such as the inbox where a letter died.
        assert {table: [row | before[table][0] for row in rows] for table, rows in after.items()} == after
        assert all(len(rows) == 1 for rows in after.values())
        assert _schema(url) == _schema(migrated(service))


@pytest.mark.parametrize(("service", "revision"), [("story", "0004"), ("notification", "0003")])
def test_what_was_decided_before_decisions_had_a_table_is_among_them_once(
    servers: Servers, service: str, revision: str
) -> None:
    with fresh_database(servers) as url, psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        for reached, statements in _history(service):
            connection.execute(statements.encode())
            if reached == revision:
                break
        connection.execute(_INSERT_DECIDED, [DECIDED, ADMINISTRATOR])
        for _ in range(2):
            migrations.upgrade(f"services.{service}", url)
            kept = connection.execute("SELECT event_id, inbox, decision, actor, because FROM dead_letter_decisions")
            assert kept.fetchall() == [(DECIDED, service, "DISCARDED", ADMINISTRATOR, "nobody waits for it")]
        # The former version goes on writing.
        connection.execute(_INSERT_DECIDED, [EVENT, ADMINISTRATOR])
