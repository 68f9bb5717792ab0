"""The commands `run`, `up`, `down` and `restart`, for a whole mesh."""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from local import settings
from local.failures import LocalError, of_os_error
from local.layout import Layout
from local.mesh import differences, writers
from local.mesh.assembly import assemble
from local.mesh.components import services
from local.settings import REPOSITORY, supervisors_environment
from local.supervision import control
from local.supervision.component import Mesh
from local.supervision.process import Identity, end_others
from local.supervision.state import ComponentState, MeshRecord, Phase
from local.supervision.supervisor import Supervisor, is_running, locked, sweep
from local.supervision.unit import LOG_TAIL_LINES, log_tail

FOLLOW_SECONDS = 0.1
DOWN_SECONDS = 60.0
"""Longest drain of the whole chain: Envoy, services, servers."""
RECORD_SECONDS = 5.0
"""Longest time between a supervisor's taking the lock and its first state file."""

log = logging.getLogger("local")


def run(layout: Layout, only: Sequence[str]) -> int:
    """Run the mesh in this process until SIGINT or SIGTERM. Raises LocalError when it cannot start."""
    layout.create()
    with locked(layout):
        mesh = assemble(layout, only)
        for note in mesh.notes:
            log.info(note)
        services.share_secrets(layout)
        supervisor = Supervisor(
            mesh.components,
            layout,
            say=log.info,
            record=_described(layout, mesh, only),
            rebuilt=lambda writer: assemble(_with_writer(layout, writer), only),
        )
        asyncio.run(_until_signalled(supervisor))
    return 0


def _described(layout: Layout, mesh: Mesh, only: Sequence[str]) -> MeshRecord:
    salt = differences.new_salt()
    return MeshRecord(
        supervisor=Identity.of(os.getpid()),
        settings=_with_writer(layout, mesh.writer).settings.environment(),
        salt=salt,
        given=differences.digests(salt),
        code=differences.fingerprint(),
        only=list(only),
        notes=list(mesh.notes),
    )


def _with_writer(layout: Layout, writer: str) -> Layout:
    return Layout(layout.settings.model_copy(update={"writer": writer}))


async def _until_signalled(supervisor: Supervisor) -> None:
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stopped.set)
    await supervisor.run(stopped)


def up(layout: Layout, only: Sequence[str]) -> MeshRecord:
    """Start the mesh in the background unless it is running, and return its state once it is healthy.

    Raises LocalError when it cannot start, or when it is running with other settings. An interruption stops what has been started.
    """
    layout.create()
    if is_running(layout):
        return _join(layout, only)
    assemble(layout, only)
    supervisor = _detach(layout, only)
    try:
        return _follow(layout, supervisor.pid, supervisor)
    except KeyboardInterrupt:
        print("interrupted: taking everything down")
        down(layout)
        raise


def _join(layout: Layout, only: Sequence[str]) -> MeshRecord:
    """The state of the running mesh. Changes to its writer if another is asked for. Raises LocalError for any other difference."""
    record = _first_record(layout)
    found = differences.of(record, layout, only)
    if found.writer:
        writers.choose(layout.settings)
    if found.asked:
        clauses = [*found.asked, *([f"its writer is {record.settings[differences.WRITER]}"] if found.writer else [])]
        raise LocalError(
            f"The mesh is up already, and not as asked for: {'; '.join(clauses)}. "
            "End it with `make down` (its data stays), then ask again."
        )
    if record.phase is Phase.RUNNING:
        print("The mesh is already up.")
    else:
        print("The mesh is already starting.")
        record = _follow(layout, record.supervisor.pid, None)
    if unwell := [f"{each.name} is {each.state.value}" for each in record.components if not each.state.fine]:
        print(f"Not all of it is healthy: {', '.join(unwell)}.")
    if found.kept:
        print(f"It keeps what it was started with, though that is not set now: {', '.join(found.kept)}.")
    if found.new_code:
        print("The code has changed since it was started: `make down` and `make up` start the new one.")
    if found.writer:
        before = record.settings[differences.WRITER]
        print(f"The writer is {before}: the story service and its workers start anew with {found.writer}.", flush=True)
        control.send(layout.control_socket, control.Order("write-with", found.writer))
        record = _first_record(layout)
    return record


def _detach(layout: Layout, only: Sequence[str]) -> subprocess.Popen[bytes]:
    """Start the supervisor in its own session, so that it outlives the terminal."""
    path = layout.log("supervisor")
    command = [sys.executable, "-m", "local", "run", *(part for name in only for part in ("--only", name))]
    try:
        if path.exists():
            path.replace(path.with_suffix(".log.1"))
        with path.open("ab") as output:
            return subprocess.Popen(
                command,
                cwd=REPOSITORY,
                env=supervisors_environment() | layout.settings.environment(),
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
    except OSError as error:
        raise of_os_error(error, path) from error


def _follow(layout: Layout, pid: int, supervisor: subprocess.Popen[bytes] | None) -> MeshRecord:
    """Print each component as it becomes healthy, until all are. Raises LocalError when the supervisor gives up."""
    shown: dict[str, tuple[ComponentState, int]] = {}
    began = time.monotonic()
    while True:
        ended = supervisor.poll() is not None if supervisor else not is_running(layout)
        record = MeshRecord.read(layout.state)
        if record is not None and record.supervisor.pid == pid:
            _show_progress(record, shown, time.monotonic() - began)
            if record.phase is Phase.RUNNING:
                return record
            if record.phase is Phase.FAILED:
                raise LocalError(record.failure)
        if ended:
            path = layout.log("supervisor")
            raise LocalError(f"The mesh stopped while it was starting. {path} ends:\n{log_tail(path, LOG_TAIL_LINES)}")
        time.sleep(FOLLOW_SECONDS)


def _show_progress(record: MeshRecord, shown: dict[str, tuple[ComponentState, int]], seconds: float) -> None:
    for component in record.components:
        news = (component.state, component.restarts)
        if shown.get(component.name) == news:
            continue
        shown[component.name] = news
        if component.state.fine:
            print(f"  {component.name:<22}{component.state.value:<12}{seconds:5.1f} s", flush=True)
        elif component.state is ComponentState.BACKING_OFF:
            print(
                f"  {component.name:<22}{'failed':<12}{seconds:5.1f} s  {component.last_exit}; trying again", flush=True
            )


def down(layout: Layout) -> bool:
    """Stop the mesh and any process that a killed supervisor left. Returns whether there was anything to stop."""
    if not layout.lock.exists():
        return False
    was_running = is_running(layout)
    if was_running:
        _stop_supervisor(layout)
    with locked(layout):
        orphans = sweep(layout, seconds=DOWN_SECONDS / 4)
        layout.state.unlink(missing_ok=True)
        layout.control_socket.unlink(missing_ok=True)
    return was_running or orphans > 0


def restart(layout: Layout, only: Sequence[str]) -> MeshRecord:
    """Stop the mesh and start it on the same data, with its former settings except for those that the caller sets now.

    Raises LocalError before anything is stopped if the mesh could not be started again: a program or package is missing, or a
    setting of a service is not set now, and the mesh kept only a digest of its value.
    """
    layout.create()
    if is_running(layout):
        record = _first_record(layout)
        found = differences.of(record, layout, only)
        if lost := [name for name in found.kept if name in record.given]:
            raise LocalError(
                f"The mesh was started with {', '.join(lost)}, which {'is' if len(lost) == 1 else 'are'} not set here: set "
                f"{'it' if len(lost) == 1 else 'them'} and ask again, or start without by `make down` and `make up`."
            )
        layout = Layout(settings.load(**_as_before(record) | _asked_for(layout) | {"state_dir": layout.root}))
        only = only or record.only
    assemble(layout, only)
    print("Stopping the mesh.", flush=True)
    print("Starting it again." if down(layout) else "It was not up; starting it.", flush=True)
    return up(layout, only)


def _as_before(record: MeshRecord) -> dict[str, Any]:
    """The runner's settings that the mesh was started with, by field name."""
    return {name.removeprefix("STORYMESH_").lower(): value for name, value in record.settings.items()}


def _asked_for(layout: Layout) -> dict[str, Any]:
    return {name: getattr(layout.settings, name) for name in layout.settings.model_fields_set}


def _stop_supervisor(layout: Layout) -> None:
    """Let the supervisor end all components in order. One that fails to is killed; the caller then sweeps up its processes."""
    supervisor = _first_record(layout).supervisor
    end_others([(supervisor, signal.SIGTERM)], DOWN_SECONDS)


def _first_record(layout: Layout) -> MeshRecord:
    """The state that the lock's holder has written. Waits for a supervisor that has just started. Raises LocalError."""
    deadline = time.monotonic() + RECORD_SECONDS
    while time.monotonic() < deadline:
        record = MeshRecord.read(layout.state)
        if record is not None and record.supervisor.find() is not None:
            return record
        time.sleep(FOLLOW_SECONDS)
    raise LocalError(
        f"A process holds {layout.lock} but describes no mesh in {layout.state}: "
        f"end it (`fuser {layout.lock}` names it) and try again."
    )
