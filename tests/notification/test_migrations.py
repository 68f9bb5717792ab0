"""Migrations of a database that holds data."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import resources
from uuid import uuid4

import psycopg
import pytest
from alembic import command
from alembic.config import Config
from sqlalchemy import NullPool, create_engine

from kit.data import migrations
from local.harness import Servers
from services.notification.manifest import MANIFEST
from tests.kit.data.test_migrations import fresh_database

INSERT_OF_THE_FORMER_VERSION = """
    INSERT INTO mails (event_id, template, state, attempts, error, created_at, changed_at)
    VALUES (%s, 'CODE', 'WAITING', 1, %s, now(), now())
"""


@pytest.fixture
def new_database(servers: Servers) -> Iterator[str]:
    with fresh_database(servers) as url:
        yield url


def migrate(run: Callable[[Config, str], None], url: str, revision: str) -> None:
    """Migrate the service's own tables up or down to the revision; the kit's tables exist before."""
    config = Config()
    config.set_main_option("script_location", str(resources.files("services.notification") / "migrations"))
    with create_engine(url, poolclass=NullPool).begin() as connection:
        migrations.upgrade_kit_tables(connection, MANIFEST.kit_tables)
        config.attributes.update(connection=connection, version_table="alembic_version")
        run(config, revision)


def test_the_words_of_mail_servers_are_forgotten_and_the_former_version_goes_on_writing(new_database: str) -> None:
    migrate(command.upgrade, new_database, "0001")
    before = {
        "(550, '5.1.1 <ada@example.com>: no such user')": "550",
        "(-1, 'Malformed SMTP response line: ada@example.com')": "-1",
        "Error connecting to mail.example on port 25: refused": "Error connecting to mail.example on port 25: refused",
        "": "",
    }
    with psycopg.connect(new_database.replace("+psycopg", ""), autocommit=True) as connection:
        for error in before:
            connection.execute(INSERT_OF_THE_FORMER_VERSION, [uuid4(), error])
        migrate(command.upgrade, new_database, "head")
        kept = connection.execute("SELECT error, user_id FROM mails").fetchall()
        assert sorted(kept, key=str) == sorted(((error, None) for error in before.values()), key=str)
        connection.execute(INSERT_OF_THE_FORMER_VERSION, [uuid4(), ""])
        migrate(command.downgrade, new_database, "0001")
        connection.execute(INSERT_OF_THE_FORMER_VERSION, [uuid4(), ""])
        migrate(command.upgrade, new_database, "head")
        assert connection.execute("SELECT count(*) FROM mails").fetchone() == (6,)
