"""Runs a service's Alembic migrations."""

from __future__ import annotations

from importlib import resources

from alembic import command, context
from alembic.config import Config
from sqlalchemy import NullPool, create_engine, text

LOCK = 0x53544F52
"""Any constant: it names the advisory lock that keeps two migrations of one database apart."""


def upgrade(package: str, database_url: str) -> None:
    """Brings the database of `package` (such as `services.auth`) to its newest revision.

    Safe to run from several places at once.
    """
    config = Config()
    with resources.as_file(resources.files(package) / "migrations") as location:
        config.set_main_option("script_location", str(location).replace("%", "%%"))
        config.attributes["database_url"] = database_url
        command.upgrade(config, "head")


def run_environment() -> None:
    """What each service's migrations/env.py does."""
    engine = create_engine(context.config.attributes["database_url"], poolclass=NullPool)
    with engine.begin() as connection:
        connection.execute(text("SELECT pg_advisory_xact_lock(:lock)"), {"lock": LOCK})
        context.configure(connection=connection, target_metadata=None)
        context.run_migrations()
