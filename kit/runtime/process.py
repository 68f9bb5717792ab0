"""The command line that every service has: `python -m services.<name> serve|worker|migrate`, and what operators do by hand."""

from __future__ import annotations

import argparse
import gc
import logging
import os
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import redis.exceptions
import sqlalchemy.exc
import uvloop

from kit.errors import MeshError

from . import logs, tracing
from .settings import ProcessSettings, load

log = logging.getLogger(__name__)


class Misconfigured(Exception):
    """The process cannot work with its settings, although each of them is well-formed. The text is the sentence that says why."""


class CommandRefused(Exception):
    """What the operator asked for cannot be done. The text is the sentence that says why, without a full stop."""


@dataclass(frozen=True, slots=True)
class Argument:
    """One thing that an operator says: `email` has to be said, `--reason` may be left out and is None then."""

    name: str
    help: str
    type: Callable[[str], Any] = str


@dataclass(frozen=True, slots=True)
class Command:
    """One subcommand: what it is for, the settings it reads and what it runs with them."""

    help: str
    settings: type[ProcessSettings]
    run: Callable[..., Awaitable[None]]
    arguments: tuple[Argument, ...] | None = None
    """None for the mesh's own processes, whose standard output is their log.

    With a tuple, be it empty, an operator runs the command by hand: `run` gets the settings and the arguments, prints what was done
    as plain sentences, and fails with `CommandRefused` or any error that operations raise. Only warnings are logged, on standard
    error.
    """


def main(service: str, **commands: Command) -> None:
    """Runs the subcommand named on the command line; a failure that an operator can mend ends it with one sentence."""
    parser = argparse.ArgumentParser(
        prog=f"python -m services.{service}",
        description=f"The {service} service. Settings come from STORYMESH_* environment variables; see README.md.",
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    commands = {name.replace("_", "-"): command for name, command in commands.items()}
    for name, command in commands.items():
        subparser = subparsers.add_parser(name, help=command.help, description=command.help)
        for argument in command.arguments or ():
            subparser.add_argument(argument.name, help=argument.help, type=argument.type)
    arguments = parser.parse_args()
    name, command = arguments.command, commands[arguments.command]
    settings = load(command.settings)
    if command.arguments is None:
        logs.configure(f"{service}-{name}", settings.environment, settings.log_level)
        running = command.run(settings)
    else:
        level = "WARNING" if settings.log_level == "INFO" else settings.log_level
        logs.configure(f"{service}-{name}", settings.environment, level, stream=sys.stderr)
        running = command.run(settings, arguments)
    provider = tracing.configure(f"{service}-{name}", settings.otlp_endpoint)
    # Modules and their classes live as long as the process: looking through them for garbage held every call up for 80 ms.
    gc.collect()
    gc.freeze()
    try:
        uvloop.run(running)  # type: ignore[arg-type]  # every command is a coroutine function
    except Misconfigured as error:
        print(f"{service} {name}: {error}", file=sys.stderr)
        sys.exit(os.EX_CONFIG)
    except OSError as error:
        log.debug("the process cannot go on", exc_info=error)
        sys.exit(f"{service} {name}: {error}")
    except sqlalchemy.exc.OperationalError as error:
        log.debug("the process cannot go on", exc_info=error)
        sys.exit(f"{service} {name}: the database cannot be used: {error.orig}")
    except (redis.exceptions.ConnectionError, redis.exceptions.TimeoutError) as error:
        log.debug("the process cannot go on", exc_info=error)
        sys.exit(f"{service} {name}: Redis cannot be used: {error}")
    except (CommandRefused, MeshError) as error:
        if command.arguments is None:
            raise
        log.debug("the command was refused", exc_info=error)
        sys.exit(f"{service} {name}: {error}")
    finally:
        provider.shutdown()
