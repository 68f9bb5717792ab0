"""Parses and runs the commands: start and stop, status, logs, orders for one component, and commands of a service."""

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from local import settings
from local.failures import LocalError
from local.layout import Layout
from local.mesh import addresses
from local.supervision import control
from local.supervision.state import ComponentState, MeshRecord
from local.terminal import lifecycle, logs, mail_server, service_commands, status
from mesh.catalog import DEFAULT_BASE_PORT, PORTS_IN_A_MESH, manifests

INTERRUPTED = 130

STARTED_WITH = ("port", "base_port", "writer", *map(settings.worker_setting, settings.scaled()))
"""Options that set settings of the runner."""

COLOURS = {
    ComponentState.HEALTHY: "green",
    ComponentState.DONE: "green",
    ComponentState.STOPPED: "yellow",
    ComponentState.STARTING: "yellow",
}


def parser() -> argparse.ArgumentParser:
    """The parser of all commands. Settings without an option come from the environment."""
    place = argparse.ArgumentParser(add_help=False)
    place.add_argument(
        "--state-dir", type=Path, metavar="DIR", help="where the mesh keeps everything (STORYMESH_STATE_DIR, .local)"
    )
    start = argparse.ArgumentParser(add_help=False, parents=[place])
    start.add_argument("--port", type=int, help="port of the edge (STORYMESH_PORT, 8080)")
    start.add_argument(
        "--base-port",
        type=int,
        help=f"first of the {PORTS_IN_A_MESH} ports of everything else (STORYMESH_BASE_PORT, {DEFAULT_BASE_PORT})",
    )
    start.add_argument("--writer", help="who writes the stories: local, openai or composer (STORYMESH_WRITER)")
    for service in settings.scaled():
        setting = settings.worker_setting(service)
        start.add_argument(
            f"--{service}-workers",
            type=int,
            metavar="N",
            help=f"{service} workers (STORYMESH_{setting.upper()}, {manifests()[service].workers})",
        )
    start.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="COMPONENT",
        help="start this component only; repeatable, as in --only postgres --only redis",
    )

    top = argparse.ArgumentParser(
        prog="python -m local", description="The whole mesh on one machine: real servers, no containers."
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, description: str, parent: argparse.ArgumentParser) -> argparse.ArgumentParser:
        return commands.add_parser(name, help=description, description=f"{description}.", parents=[parent])

    up = command("up", "Start the mesh in the background and return when all of it is healthy", start)
    command("run", "Run the mesh in the foreground; Ctrl-C stops it", start)
    command("down", "Stop the mesh, and whatever a killed supervisor left behind", place)
    again = command("restart", "Stop the mesh and start it again, on the same data; or restart one component", start)
    again.add_argument("component", nargs="?", help="such as postgres or story-worker-1; the whole mesh when left out")
    for each in (up, again):
        each.add_argument("--json", action="store_true", help="print the status as JSON at the end")
    show = command("status", "Show every component; the exit code is 0 only if all are healthy", place)
    show.add_argument("--json", action="store_true", help="print JSON instead of a table")
    log = command("logs", "Print the logs of all components, or of some, merged by time in readable lines", place)
    log.add_argument("components", nargs="*", metavar="component", help="such as auth or story-worker-1")
    log.add_argument("-f", "--follow", action="store_true", help="go on printing what is added")
    log.add_argument(
        "-n",
        "--lines",
        type=_count,
        metavar="N",
        help="begin with the latest N lines (100; with --trace all there are)",
    )
    log.add_argument(
        "--json", action="store_true", help="print a JSON object a line, with every field, as ECS has them"
    )
    log.add_argument(
        "--trace", default="", metavar="ID", help="only the lines of one trace, by the header x-trace-id of an answer"
    )
    mails = command("mail", "List the mails of the mesh in a page, each as it looks and as source", place)
    mails.add_argument(
        "--listen-port", type=int, default=0, metavar="PORT", help="port on loopback (default: a free one)"
    )
    mails.add_argument("--no-browser", action="store_true", help="print the page's address alone")
    run_by_hand = command("exec", "Run a command of a service with the settings it has in the running mesh", place)
    run_by_hand.add_argument("service", help="such as auth")
    run_by_hand.add_argument(
        "arguments",
        nargs=argparse.REMAINDER,
        metavar="...",
        help="what follows `python -m services.SERVICE`, such as: make-admin ada@example.org; --help lists it",
    )
    for verb in ("stop", "start"):
        order = command(verb, f"{verb.capitalize()} one component of the running mesh", place)
        order.add_argument("component", help="such as postgres or story-worker-1")
    return top


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    top = parser()
    options = top.parse_args(arguments)
    of_the_start = [name for name in (*STARTED_WITH, "only", "json") if getattr(options, name, None)]
    if options.command == "restart" and options.component and of_the_start:
        top.error(f"one component starts as the mesh did: leave out --{', --'.join(of_the_start).replace('_', '-')}")
    return options


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is no number of lines")
    return int(text)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parsed(arguments)
    try:
        return _execute(options)
    except LocalError as failure:
        print(failure, file=sys.stderr)
        return failure.exit_code
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # The reading program, such as `head`, has closed the pipe.
        sys.stderr.close()
        return 0


def _execute(options: argparse.Namespace) -> int:
    layout = Layout(settings.load(**{name: getattr(options, name, None) for name in ("state_dir", *STARTED_WITH)}))
    match options.command:
        case "up":
            return _show_up(lifecycle.up(layout, options.only), options.json)
        case "run":
            return lifecycle.run(layout, options.only)
        case "restart" if options.component is None:
            return _show_up(lifecycle.restart(layout, options.only), options.json)
        case "down":
            print("The mesh is down." if lifecycle.down(layout) else "The mesh was not up.")
        case "status":
            return _status(layout, as_json=options.json)
        case "logs":
            selection = logs.Selection(options.components, options.lines, options.trace)
            logs.show(layout, selection, as_json=options.json, follow=options.follow, output=sys.stdout)
        case "mail":
            mail_server.show(layout, port=options.listen_port, browser=not options.no_browser, output=sys.stdout)
        case "exec":
            service_commands.execute(layout, options.service, options.arguments)
        case verb:
            control.send(layout.control_socket, control.Order(verb, options.component))
            print(f"{options.component}: {verb} done.")
    return 0


def _show_up(record: MeshRecord, as_json: bool) -> int:
    layout = status.layout_of(record)
    if as_json:
        print(json.dumps(status.read(layout).document(), indent=2))
    else:
        print(_places(record.notes, addresses.of(layout, record.only)))
    return 0


def _places(notes: Sequence[str], urls: Mapping[str, str]) -> str:
    return "\n".join(["", *notes, *(f"  {name:<13}{address}" for name, address in urls.items())])


def _status(layout: Layout, *, as_json: bool) -> int:
    now = status.read(layout)
    if as_json:
        print(json.dumps(now.document(), indent=2))
    else:
        _print_table(now)
    return 0 if now.healthy else 1


def _print_table(now: status.Status) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console(soft_wrap=True)
    console.print(f"The mesh is {now.phase}. {now.failure}".strip(), highlight=False, markup=False)
    if not now.components:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("component", "state", "pid", "restarts", "since", "last exit"):
        table.add_column(heading, overflow="fold")
    for component in now.components:
        table.add_row(
            component.name,
            f"[{COLOURS.get(component.state, 'red')}]{component.state.value}[/]",
            str(component.process.pid) if component.process else "",
            str(component.restarts),
            datetime.fromtimestamp(component.since, UTC).astimezone().strftime("%H:%M:%S"),
            component.last_exit,
        )
    console.print(table)
    console.print(_places(now.notes, now.urls), highlight=False, markup=False)
