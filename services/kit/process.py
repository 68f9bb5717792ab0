"""The command line that every service has: `python -m services.<name> serve|worker|migrate`."""

from __future__ import annotations

import argparse
import asyncio
import logging
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import sqlalchemy.exc
import uvloop

from . import logs, tracing
from .settings import DatabaseSettings, ServiceSettings, load

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Command:
    """One subcommand: what it is for, the settings it reads and what it runs with them."""

    help: str
    settings: type[ServiceSettings]
    run: Callable[[Any], Awaitable[None]]


def migrate(package: str) -> Command:
    """The `migrate` command of the service in `package`."""

    async def run(settings: DatabaseSettings) -> None:
        # Alembic takes as long to import as all the rest, and only this command needs it.
        from . import migrations

        await asyncio.to_thread(migrations.upgrade, package, settings.database_url.get_secret_value())

    return Command("bring the database to the newest revision, then exit", DatabaseSettings, run)


def main(service: str, **commands: Command) -> None:
    """Runs the subcommand named on the command line; a failure that an operator can mend ends it with one sentence."""
    parser = argparse.ArgumentParser(
        prog=f"python -m services.{service}",
        description=f"The {service} service. Settings come from STORYMESH_* environment variables; see README.md.",
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    for name, command in commands.items():
        subparsers.add_parser(name, help=command.help, description=command.help)
    name = parser.parse_args().command
    command = commands[name]
    settings = load(command.settings)
    logs.configure(f"{service}-{name}", settings.environment, settings.log_level)
    provider = tracing.configure(f"{service}-{name}", settings.otlp_endpoint)
    try:
        uvloop.run(command.run(settings))  # type: ignore[arg-type]  # every command is a coroutine function
    except OSError as error:
        log.debug("the process cannot go on", exc_info=error)
        sys.exit(f"{service} {name}: {error}")
    except sqlalchemy.exc.OperationalError as error:
        log.debug("the process cannot go on", exc_info=error)
        sys.exit(f"{service} {name}: the database cannot be used: {error.orig}")
    finally:
        provider.shutdown()
