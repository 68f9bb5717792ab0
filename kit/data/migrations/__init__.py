"""Migrates a service's database: first the tables of the kit that its manifest names, then the service's own.

The kit's tables have a history of their own (`versions/` here), so that a change of the outbox is one file and not one for each
service. Each group of tables is a branch of it: a service that asks for one more gets that branch from its beginning. Which
revisions a database has stands in `kit_alembic_version`; the service's own stand in `alembic_version`, as ever.
"""

from __future__ import annotations

import asyncio
import importlib
from importlib import resources
from typing import TYPE_CHECKING

from kit.runtime.process import Command
from kit.runtime.settings import DatabaseSettings
from mesh.manifest import ERASURE, INBOX, OUTBOX, KitTables

if TYPE_CHECKING:
    from sqlalchemy import Connection

LOCK = 0x53544F52
"""Any constant: it names the advisory lock that keeps two migrations of one database apart."""

_BRANCHES: dict[KitTables, tuple[str, ...]] = {
    OUTBOX: ("redis_memory", "outbox"),
    INBOX: ("redis_memory", "inbox"),
    ERASURE: ("erasure",),
}
"""Branches that make up each group of tables. Both ends of a stream remember what they told Redis."""


def command(package: str) -> Command:
    """The `migrate` command of the service in `package`, such as `services.auth`."""

    async def run(settings: DatabaseSettings) -> None:
        await asyncio.to_thread(upgrade, package, settings.database_url.get_secret_value())

    return Command("bring the database to the newest revision, then exit", DatabaseSettings, run)


def upgrade(package: str, database_url: str) -> None:
    """Brings the database of the service in `package` to the newest revisions, in one transaction: all of it or nothing.

    Safe to run from several places at once: the second waits for the first. Raises what Alembic and Postgres raise.
    """
    from sqlalchemy import NullPool, create_engine, text

    kit_tables = importlib.import_module(f"{package}.manifest").MANIFEST.kit_tables
    with create_engine(database_url, poolclass=NullPool).begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        # Before the service's own, whose revisions may move data of the kit's tables.
        upgrade_kit_tables(connection, kit_tables)
        _upgrade(connection, package, "head", version_table="alembic_version")


def upgrade_kit_tables(connection: Connection, groups: tuple[KitTables, ...]) -> None:
    """Brings the tables of these groups to their newest revisions, in the caller's transaction."""
    for branch in dict.fromkeys(branch for group in groups for branch in _BRANCHES[group]):
        _upgrade(connection, "kit.data", f"{branch}@head", version_table="kit_alembic_version")


def run_environment() -> None:
    """What the env.py of each history does: runs its revisions on the connection of `upgrade`."""
    from alembic import context

    context.configure(target_metadata=None, **context.config.attributes)
    context.run_migrations()


def _upgrade(connection: Connection, package: str, target: str, *, version_table: str) -> None:
    # Alembic takes as long to import as all the rest of a process, and only this command needs it.
    from alembic import command as alembic
    from alembic.config import Config

    config = Config()
    with resources.as_file(resources.files(package) / "migrations") as location:
        config.set_main_option("script_location", str(location).replace("%", "%%"))
        config.attributes.update(connection=connection, version_table=version_table)
        alembic.upgrade(config, target)
