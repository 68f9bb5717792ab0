"""Every service's migrations build what its code expects."""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from uuid import uuid4

import psycopg
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from psycopg import sql
from sqlalchemy import MetaData, create_engine, inspect
from sqlalchemy.engine import make_url

from kit.data import migrations
from kit.events import dead_letter_store, erasure, inbox_store, outbox, redis_memory
from kit.events.dead_letter_store import dead_letter_decisions
from local.harness import Servers
from mesh.catalog import manifests
from mesh.manifest import ERASURE, INBOX, OUTBOX

pytestmark = pytest.mark.slow

KIT_TABLES = {
    OUTBOX: [outbox.table, redis_memory.redis_memories],
    INBOX: [
        inbox_store.processed_events,
        dead_letter_store.dead_letters,
        dead_letter_decisions,
        redis_memory.redis_memories,
    ],
    ERASURE: [erasure.erased_subjects],
}

SERVICES = [name for name, manifest in manifests().items() if manifest.database]


@pytest.fixture
def new_database(servers: Servers) -> Iterator[str]:
    with fresh_database(servers) as url:
        yield url


@contextmanager
def fresh_database(servers: Servers) -> Iterator[str]:
    name = f"migrations_{uuid4().hex}"
    with psycopg.connect(servers.postgres_admin_url, autocommit=True) as connection:
        connection.execute(sql.SQL("CREATE DATABASE {}").format(sql.Identifier(name)))
        url = make_url(servers.postgres_admin_url).set(drivername="postgresql+psycopg", database=name)
        yield url.render_as_string(hide_password=False)
        connection.execute(sql.SQL("DROP DATABASE {} WITH (FORCE)").format(sql.Identifier(name)))


def expected(service: str) -> MetaData:
    """The service's own tables and its share of the kit's."""
    together = MetaData()
    own: MetaData = importlib.import_module(f"services.{service}.tables").metadata
    for table in own.tables.values():
        table.to_metadata(together)
    for table in {table for group in manifests()[service].kit_tables for table in KIT_TABLES[group]}:
        table.to_metadata(together)
    return together


def _is_ours(name: str | None, _kind: str, _parents: object) -> bool:
    return name != "kit_alembic_version"


@pytest.mark.parametrize("service", SERVICES)
def test_the_migrated_database_is_the_one_that_the_code_describes(service: str, migrated: Callable[[str], str]) -> None:
    engine = create_engine(migrated(service))
    with engine.connect() as connection:
        options = {"compare_type": True, "compare_server_default": True, "include_name": _is_ours}
        context = MigrationContext.configure(connection, opts=options)
        differences = compare_metadata(context, expected(service))
    engine.dispose()
    assert differences == []


@pytest.mark.parametrize("service", SERVICES)
def test_migrating_twice_changes_nothing(service: str, migrated: Callable[[str], str]) -> None:
    migrations.upgrade(f"services.{service}", migrated(service))


def test_a_migration_waits_for_another_one_of_the_same_database(new_database: str) -> None:
    environment = {"STORYMESH_DATABASE_URL": new_database, "STORYMESH_MESH_KEY": "m" * 43}
    with psycopg.connect(new_database.replace("+psycopg", ""), autocommit=True) as other:
        other.execute("SELECT pg_advisory_lock(%s)", [migrations.LOCK])
        second = subprocess.Popen([sys.executable, "-m", "services.notification", "migrate"], env=environment)
        waiting = "SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
        deadline = time.monotonic() + 60
        while not other.execute(waiting).fetchone():
            assert second.poll() is None, "it did not wait"
            assert time.monotonic() < deadline
            time.sleep(0.05)
        other.execute("SELECT pg_advisory_unlock(%s)", [migrations.LOCK])
        assert second.wait(60) == 0
        tables = other.execute(
            "SELECT count(*) FROM pg_tables WHERE tablename IN ('mails', 'notifications')"
        ).fetchone()
    assert tables == (2,)


def test_a_migration_without_a_database_ends_with_one_sentence() -> None:
    command = [sys.executable, "-m", "services.notification", "migrate"]
    environment = {
        "STORYMESH_DATABASE_URL": "postgresql+psycopg://u:s3cret@127.0.0.1:1/d",
        "STORYMESH_MESH_KEY": "m" * 43,
    }
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 1
    assert ended.stderr.startswith("notification migrate: the database cannot be used: ")
    assert "Traceback" not in ended.stdout + ended.stderr
    assert "s3cret" not in ended.stdout + ended.stderr


def test_a_migration_that_fails_leaves_the_database_as_it_was(new_database: str) -> None:
    with psycopg.connect(new_database.replace("+psycopg", ""), autocommit=True) as connection:
        # The last table that is made: those of the kit, and their revisions, go with it.
        connection.execute("CREATE TABLE mails ()")
        with pytest.raises(Exception, match="already exists"):
            migrations.upgrade("services.notification", new_database)
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    assert tables == [("mails",)]


def test_a_foreign_table_under_the_name_of_one_of_the_kits_is_not_taken_for_it(new_database: str) -> None:
    with psycopg.connect(new_database.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("CREATE TABLE dead_letters ()")
        with pytest.raises(Exception, match="does not exist"):
            migrations.upgrade("services.notification", new_database)
        tables = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'").fetchall()
    assert tables == [("dead_letters",)]


def test_a_group_of_tables_that_a_service_asks_for_later_is_added_to_its_database(new_database: str) -> None:
    engine = create_engine(new_database)
    with engine.begin() as connection:
        migrations.upgrade_kit_tables(connection, (OUTBOX,))
    with engine.begin() as connection:
        before = set(inspect(connection).get_table_names())
        migrations.upgrade_kit_tables(connection, (OUTBOX, INBOX))
        after = set(inspect(connection).get_table_names())
    engine.dispose()
    assert before == {"outbox", "redis_memories", "kit_alembic_version"}
    assert after - before == {"processed_events", "dead_letters", "dead_letter_decisions"}


def test_the_outbox_finds_what_is_unpublished_without_reading_the_rest() -> None:
    (index,) = (each for each in outbox.table.indexes if each.name == "outbox_unpublished")
    assert index.dialect_options["postgresql"]["where"] is not None
