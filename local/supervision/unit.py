"""The life cycle of one component: wait for its dependencies, start, watch, restart when it ends by itself.

A component that has once been healthy is restarted for as long as the mesh runs, immediately the first time and then with
growing pauses. One that never became healthy gets three attempts: the cause is most likely a setting, and the user
should see the error soon.
"""

import asyncio
import contextlib
import os
import subprocess
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from local.failures import DidNotStart, LocalError, NotReady
from local.supervision.component import Component
from local.supervision.fork_server import ForkServer
from local.supervision.process import Child, describe_exit
from local.supervision.state import ComponentRecord, ComponentState

RESTART_PAUSES = (0.0, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0)
"""Seconds before each consecutive restart; the last value repeats."""
SETTLED_SECONDS = 10.0
"""After this time as a healthy component the count of consecutive failures begins again."""
FIRST_ATTEMPTS = 3
LOG_TAIL_LINES = 15
PROBE_PAUSE_SECONDS = 0.1


class StartFailed(LocalError):
    """A component never became healthy. The message contains the end of its log."""


class Unit:
    """One component under supervision."""

    def __init__(
        self,
        component: Component,
        *,
        log: Path,
        start_seconds: float,
        changed: Callable[[], None],
        say: Callable[[str], None],
        fork_server: ForkServer | None = None,
    ) -> None:
        self.component = component
        self._fork_server = fork_server
        self.record = ComponentRecord(name=component.name, since=time.time(), stop_signal=component.stop_signal.name)
        self.healthy = asyncio.Event()
        self.parked = asyncio.Event()
        """Set while an order keeps the unit stopped."""
        self._stop_asked = asyncio.Event()
        self._start_asked = asyncio.Event()
        self.log = log
        self._start_seconds = start_seconds
        self._changed = changed
        self._say = say
        self._child: Child | None = None
        self._unready = ""

    async def keep(self, others: Mapping[str, "Unit"]) -> None:
        """Keep the component running until cancelled. Raises StartFailed when it never becomes healthy."""
        for need in self.component.needs:
            await others[need].healthy.wait()
        ever_healthy = False
        failures = 0
        while True:
            if self._stop_asked.is_set():
                await self._park()
                failures = 0
            healthy_at = None
            hopeless = False
            try:
                child = await self._start()
                if self.component.once:
                    return
                ever_healthy, healthy_at = True, time.monotonic()
                reason = describe_exit(await child.wait())
            except LocalError as failure:
                # A LocalError does not go away by another attempt, unless the component has worked before.
                if not ever_healthy:
                    raise
                reason = str(failure)
            except DidNotStart as failure:
                reason = str(failure)
                hopeless = failure.hopeless
            self.healthy.clear()
            if self._stop_asked.is_set():
                continue
            if healthy_at is not None and time.monotonic() - healthy_at >= SETTLED_SECONDS:
                failures = 0
            failures += 1
            if not ever_healthy and (hopeless or failures >= FIRST_ATTEMPTS):
                raise self._start_failed(reason)
            await self._back_off(reason, failures)

    async def stop(self) -> None:
        """Stop the component and leave it stopped. Returns when its process has ended."""
        self._start_asked.clear()
        self._stop_asked.set()
        await self.end()
        await self.parked.wait()

    async def start(self) -> None:
        """Start a stopped component again. Returns when it is healthy."""
        self._stop_asked.clear()
        self._start_asked.set()
        await self.healthy.wait()

    async def started(self) -> None:
        """Start a stopped component as `start` does. Raises StartFailed when the first attempt fails; further attempts go on."""
        self._stop_asked.clear()
        self._start_asked.set()
        while not self.healthy.is_set():
            if self.record.state is ComponentState.BACKING_OFF:
                raise self._start_failed(self.record.last_exit)
            await asyncio.sleep(PROBE_PAUSE_SECONDS)

    async def end(self) -> bool:
        """End the process after its drain. Returns whether there was one."""
        if self._child is None or self._child.exit_code is not None:
            return False
        await self.component.drain()
        await self._child.end(self.component.stop_signal, self.component.drain_seconds)
        await self.component.clean_up()
        return True

    async def _start(self) -> Child:
        """Make one attempt. Returns the process once it serves (or, as a job, has succeeded). Raises DidNotStart or LocalError."""
        component = self.component
        began = time.monotonic()
        self._become(ComponentState.STARTING)
        try:
            await component.prepare()
        except (OSError, subprocess.SubprocessError) as error:
            raise DidNotStart(f"it cannot be prepared: {error}") from error
        self._child = child = await self._spawn()
        self.record.process = child.identity
        self._changed()
        try:
            async with asyncio.timeout(self._start_seconds):
                await self._await_health(child)
                await component.settle()
        except TimeoutError:
            await self.end()
            raise DidNotStart(f"not healthy after {self._start_seconds:g} s: {self._unready}", hopeless=True) from None
        except (DidNotStart, LocalError):
            await self.end()
            raise
        took = f"{time.monotonic() - began:.1f} s"
        if component.once:
            self.record.process = None
            self._become(ComponentState.DONE)
            self._say(f"{component.name} is done ({took})")
        else:
            self._become(ComponentState.HEALTHY)
            self._say(f"{component.name} is healthy (pid {child.pid}, {took})")
        self.healthy.set()
        return child

    async def _spawn(self) -> Child:
        component = self.component
        if component.forked and self._fork_server:
            return await Child.fork(
                self._fork_server,
                component.command,
                environment=component.environment,
                directory=component.directory,
                log=self.log,
                death_signal=component.stop_signal,
            )
        return Child.spawn(
            component.command,
            environment=component.environment,
            directory=component.directory,
            log=self.log,
            death_signal=component.stop_signal,
            account=component.account,
        )

    async def _await_health(self, child: Child) -> None:
        self._unready = "its probe was never answered"
        if self.component.once:
            if (status := await child.wait()) != 0:
                raise DidNotStart(describe_exit(status), hopeless=status == os.EX_CONFIG)
            return
        while True:
            try:
                await self.component.probe()
            except NotReady as reason:
                self._unready = str(reason)
                await asyncio.sleep(PROBE_PAUSE_SECONDS)
                serves = False
            else:
                serves = True
            # Checked after the probe: if this process has ended, another program answered the probe.
            if (code := child.exit_code) is not None:
                raise DidNotStart(describe_exit(code), hopeless=code == os.EX_CONFIG)
            if serves:
                return
            if self._stop_asked.is_set():
                raise DidNotStart("stopped while it was starting")

    async def _park(self) -> None:
        self.record.process = None
        self._become(ComponentState.STOPPED)
        self._say(f"{self.component.name} is stopped, as asked")
        self.parked.set()
        await self._start_asked.wait()
        self.parked.clear()

    async def _back_off(self, reason: str, failures: int) -> None:
        pause = RESTART_PAUSES[min(failures, len(RESTART_PAUSES)) - 1]
        self.record.restarts += 1
        self.record.last_exit = reason
        self.record.process = None
        self._become(ComponentState.BACKING_OFF)
        when = f"in {pause:g} s" if pause else "at once"
        self._say(f"{self.component.name} ended by itself ({reason}); restart {self.record.restarts} follows {when}")
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._stop_asked.wait()

    def _become(self, state: ComponentState) -> None:
        self.record.state = state
        self.record.since = time.time()
        self._changed()

    def _start_failed(self, reason: str) -> StartFailed:
        tail = log_tail(self.log, LOG_TAIL_LINES)
        if "No space left on device" in tail or "Disk quota exceeded" in tail:
            return StartFailed(
                f"{self.component.name} cannot start because the disk that holds {self.log.parent.parent} is full: "
                "free some space, or move the mesh with STORYMESH_STATE_DIR."
            )
        end = f" The end of its log {self.log}:\n{tail}" if tail else f" Its log {self.log} is empty."
        return StartFailed(f"{self.component.name} does not start ({reason}).{end}")


def log_tail(path: Path, lines: int) -> str:
    """The last lines of a log, indented; empty if there are none."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 64 * 1024))
            text = file.read().decode(errors="replace")
    except FileNotFoundError:
        return ""
    return "\n".join(f"  {line}" for line in text.splitlines()[-lines:])
