"""Runs the components of one mesh: starts them in dependency order, keeps them running, stops them in reverse."""

import asyncio
import contextlib
import fcntl
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

from local.failures import LocalError, of_os_error
from local.layout import Layout
from local.settings import REPOSITORY, inherited_environment
from local.supervision import control
from local.supervision.component import Component, Mesh
from local.supervision.fork_server import ForkServer
from local.supervision.preflight import FreeBytes, check_ports, check_space, free_bytes
from local.supervision.process import Identity, end_others
from local.supervision.state import ComponentState, MeshRecord, Phase
from local.supervision.unit import Unit

CONTROL_SECONDS = 60.0
ORPHAN_SECONDS = 10.0
LOCK_SECONDS = 1.0
FEWEST_FORKED = 3
"""From this number of processes on, a fork server saves more than its own start costs."""


class AlreadyRunning(LocalError):
    """Another supervisor holds the lock of this state directory."""


@contextlib.contextmanager
def locked(layout: Layout) -> Iterator[None]:
    """Hold the lock of the state directory; the kernel releases it when the process ends. Raises AlreadyRunning."""
    with _lock_file(layout) as descriptor:
        # `is_running` takes the lock for an instant, so one failed attempt does not prove another supervisor.
        deadline = time.monotonic() + LOCK_SECONDS
        while not _try_lock(descriptor, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                raise AlreadyRunning(f"A mesh already runs in {layout.root}: see `python -m local status`.")
            time.sleep(LOCK_SECONDS / 20)
        yield


def is_running(layout: Layout) -> bool:
    """Whether a supervisor is running for this state directory."""
    if not layout.lock.exists():
        return False
    with _lock_file(layout) as descriptor:
        return not _try_lock(descriptor, fcntl.LOCK_SH)


@contextlib.contextmanager
def _lock_file(layout: Layout) -> Iterator[int]:
    try:
        descriptor = os.open(layout.lock, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise of_os_error(error, layout.lock) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _try_lock(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def sweep(layout: Layout, seconds: float) -> int:
    """End the processes that a killed supervisor left. The caller holds the lock. Returns how many were alive."""
    record = MeshRecord.read(layout.state)
    orphans = [orphan for component in record.components if (orphan := component.orphan)] if record else []
    return end_others(reversed(orphans), seconds)


class Supervisor:
    """One running mesh."""

    def __init__(
        self,
        components: Sequence[Component],
        layout: Layout,
        *,
        say: Callable[[str], None],
        record: MeshRecord | None = None,
        rebuilt: Callable[[str], Mesh] | None = None,
        free_space: FreeBytes = free_bytes,
    ) -> None:
        """`record` is the initial state of the mesh; `rebuilt` assembles it for another writer."""
        self._layout = layout
        self._rebuilt = rebuilt
        self._say = say
        self._free_space = free_space
        self._components = components
        self._fork_server = fork_server_of(components, layout)
        self._units = {
            component.name: Unit(
                component,
                log=layout.log(component.name),
                start_seconds=layout.settings.start_seconds,
                changed=self._write,
                say=say,
                fork_server=self._fork_server,
            )
            for component in components
        }
        self._record = record or MeshRecord(Identity.of(os.getpid()), layout.settings.environment())
        self._record.components = [unit.record for unit in self._units.values()]

    async def run(self, stopped: asyncio.Event) -> None:
        """Start the mesh and run it until `stopped` is set. Raises LocalError when it cannot start.

        No process remains when it returns or raises. The caller holds the lock.
        """
        if orphans := sweep(self._layout, seconds=ORPHAN_SECONDS):
            self._say(f"ended {orphans} processes that a killed supervisor had left behind")
        self._record.write(self._layout.state)
        failure: LocalError | None = None
        try:
            check_space(self._layout.root, self._layout.settings.min_free_megabytes, self._free_space)
            check_ports(self._components)
            self._rotate_logs()
            try:
                async with asyncio.TaskGroup() as group:
                    group.create_task(_raise_once(stopped))
                    for unit in self._units.values():
                        group.create_task(unit.keep(self._units))
                    await self._serve()
            finally:
                await self._stop()
                if self._fork_server:
                    await self._fork_server.close()
        except* _Stopped:
            self._layout.state.unlink(missing_ok=True)
            self._say("everything is stopped")
        except* LocalError as failures:
            failure = _first(failures)
            self._record.phase = Phase.FAILED
            self._record.failure = str(failure)
            self._write()
        # Raised outside, because an exception raised in an `except*` block is wrapped in a group again.
        if failure is not None:
            raise failure

    async def _serve(self) -> None:
        """Wait until all components are healthy, then take orders until cancelled."""
        for unit in self._units.values():
            await unit.healthy.wait()
        async with control.served(self._layout.control_socket, self._obey):
            self._record.phase = Phase.RUNNING
            self._write()
            self._say("everything is healthy")
            await asyncio.Event().wait()

    async def _obey(self, order: control.Order) -> None:
        if order.verb == "write-with":
            await self._write_with(order.name)
            return
        unit = self._units.get(order.name)
        if unit is None:
            raise LocalError(f"There is no component {order.name}: there are {', '.join(self._units)}.")
        if unit.component.once:
            raise LocalError(f"{order.name} is a job that has run to its end; there is nothing to {order.verb}.")
        self._say(f"asked to {order.verb} {order.name}")
        try:
            async with asyncio.timeout(CONTROL_SECONDS):
                if order.verb in ("stop", "restart"):
                    await unit.stop()
                if order.verb in ("start", "restart"):
                    await unit.start()
        except TimeoutError:
            raise LocalError(
                f"{order.name} did not {order.verb} within {CONTROL_SECONDS:g} s: see {unit.log}."
            ) from None

    async def _write_with(self, writer: str) -> None:
        """Restart the components whose environment names the writer, with another one; with the former one if that fails."""
        if self._rebuilt is None:
            raise LocalError("Nobody writes in this mesh.")
        mesh = self._rebuilt(writer)
        self._say(f"asked to write with {writer}")
        former = {
            unit: unit.component
            for component in mesh.components
            if (unit := self._units[component.name]).component.environment != component.environment
            and not component.once
        }
        chosen = {component.name: component for component in mesh.components}
        try:
            await self._exchange({unit: chosen[unit.component.name] for unit in former})
        except LocalError:
            await self._exchange(former)
            raise
        self._record.settings["STORYMESH_WRITER"] = mesh.writer
        self._record.notes = list(mesh.notes)
        self._write()

    async def _exchange(self, components: Mapping[Unit, Component]) -> None:
        """Restart units with new descriptions of their components. Raises LocalError when one does not become healthy."""
        await asyncio.gather(*(unit.stop() for unit in components))
        for unit, component in components.items():
            unit.component = component
        try:
            async with asyncio.timeout(CONTROL_SECONDS):
                results = await asyncio.gather(*(unit.started() for unit in components), return_exceptions=True)
        except TimeoutError:
            names = ", ".join(component.name for component in components.values())
            raise LocalError(f"{names} did not start within {CONTROL_SECONDS:g} s: see {self._layout.logs}.") from None
        for failure in results:
            if isinstance(failure, BaseException):
                raise failure

    async def _stop(self) -> None:
        """End all components, each after those that depend on it."""
        self._record.phase = Phase.STOPPING
        self._write()
        ended = {name: asyncio.Event() for name in self._units}

        async def end(name: str, unit: Unit) -> None:
            for other in self._components:
                if name in other.needs:
                    await ended[other.name].wait()
            began = time.monotonic()
            if await unit.end():
                self._say(f"{name} has ended ({time.monotonic() - began:.1f} s)")
            unit.record.process = None
            unit.record.state = ComponentState.STOPPED
            self._write()
            ended[name].set()

        async with asyncio.TaskGroup() as group:
            for name, unit in self._units.items():
                group.create_task(end(name, unit))

    def _rotate_logs(self) -> None:
        """Rename the logs of the previous run to `.log.1`, over those of the run before it."""
        for unit in self._units.values():
            if unit.log.exists():
                unit.log.replace(unit.log.with_suffix(".log.1"))

    def _write(self) -> None:
        """Write the state file. A full disk must not stop a running mesh, so a failure is only reported."""
        try:
            self._record.write(self._layout.state)
        except LocalError as failure:
            self._say(str(failure))


def fork_server_of(components: Sequence[Component], layout: Layout) -> ForkServer | None:
    """The fork server of a mesh that has use for one: on Linux, from three processes on."""
    forked = [component for component in components if component.forked]
    if sys.platform != "linux" or len(forked) < FEWEST_FORKED:
        return None
    return ForkServer(inherited_environment(), REPOSITORY, layout.log("fork-server"))


class _Stopped(Exception):
    """Raised in the task group to end it."""


def _first(group: ExceptionGroup[LocalError]) -> LocalError:
    """The first exception of a group, which may contain groups because task groups nest."""
    first = group.exceptions[0]
    return _first(first) if isinstance(first, ExceptionGroup) else first


async def _raise_once(stopped: asyncio.Event) -> None:
    await stopped.wait()
    raise _Stopped
