"""Migrating a database that was in use."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from uuid import uuid4

import psycopg
import pytest
from alembic import command
from alembic.config import Config

from local.harness import Servers
from tests.kit.data.test_migrations import fresh_database

INSERT_OF_THE_FORMER_VERSION = """
    INSERT INTO mails (event_id, template, state, attempts, error, created_at, changed_at)
    VALUES (%s, 'CODE', 'WAITING', 1, %s, now(), now())
"""


@pytest.fixture
def new_database(servers: Servers) -> Iterator[str]:
    with fresh_database(servers) as url:
        yield url


def alembic(url: str) -> Config:
    config = Config()
    config.set_main_option("script_location", str(resources.files("services.notification") / "migrations"))
    config.attributes["database_url"] = url
    return config


def test_the_words_of_mail_servers_are_forgotten_and_the_former_version_goes_on_writing(new_database: str) -> None:
    config = alembic(new_database)
    command.upgrade(config, "0001")
    before = {
        "(550, '5.1.1 <ada@example.com>: no such user')": "550",
        "(-1, 'Malformed SMTP response line: ada@example.com')": "-1",
        "Error connecting to mail.example on port 25: refused": "Error connecting to mail.example on port 25: refused",
        "": "",
    }
    with psycopg.connect(new_database.replace("+psycopg", ""), autocommit=True) as connection:
        for error in before:
            connection.execute(INSERT_OF_THE_FORMER_VERSION, [uuid4(), error])
        command.upgrade(config, "head")
        kept = connection.execute("SELECT error, user_id FROM mails").fetchall()
        assert sorted(kept, key=str) == sorted(((error, None) for error in before.values()), key=str)
        connection.execute(INSERT_OF_THE_FORMER_VERSION, [uuid4(), ""])
        command.downgrade(config, "0001")
        connection.execute(INSERT_OF_THE_FORMER_VERSION, [uuid4(), ""])
        command.upgrade(config, "head")
        assert connection.execute("SELECT count(*) FROM mails").fetchone() == (6,)


INSERT_OF_A_DECIDED_LETTER = """
    INSERT INTO dead_letters (event_id, type, key, event, reason, failures, inbox, settled_at, settlement, settled_by,
                              settled_because)
    VALUES (%s, '', '', '', '', 1, 'notification', now(), 'DISCARDED', %s, 'nobody waits for it')
"""


def test_what_the_former_version_decided_about_dead_letters_is_among_the_decisions(new_database: str) -> None:
    config, event_id, administrator = alembic(new_database), uuid4(), uuid4()
    command.upgrade(config, "0003")
    with psycopg.connect(new_database.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute(INSERT_OF_A_DECIDED_LETTER, [event_id, administrator])
        command.upgrade(config, "head")
        kept = connection.execute("SELECT event_id, inbox, decision, actor, because FROM dead_letter_decisions")
        assert kept.fetchall() == [(event_id, "notification", "DISCARDED", administrator, "nobody waits for it")]
        connection.execute(INSERT_OF_A_DECIDED_LETTER, [uuid4(), administrator])
