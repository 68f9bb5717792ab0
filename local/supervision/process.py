"""Child processes: started so that they end with the supervisor, identified by pid and start time, killed after their drain.

A pid alone does not identify a process, because the system reuses pids; a pid and a start time do. On Linux the kernel
signals a child whose supervisor dies (`PR_SET_PDEATHSIG`, set by util-linux's `setpriv`, which avoids running
Python between fork and exec). On other systems `down` finds the child by its recorded identity.
"""

import asyncio
import contextlib
import functools
import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import psutil

from local.failures import LocalError
from local.supervision.fork_server import ForkedProcess, ForkServer, Start

# psutil derives `create_time` from the boot time, which changes slightly when the clock is adjusted.
SAME_START_SECONDS = 2.0
POLL_SECONDS = 0.05
TRIAL_SECONDS = 30.0


@dataclass(frozen=True)
class Identity:
    """The identity of a process, by which it is found after the process that started it has ended."""

    pid: int
    created_at: float

    @classmethod
    def of(cls, pid: int) -> Self:
        return cls(pid, psutil.Process(pid).create_time())

    def find(self) -> psutil.Process | None:
        """The living process, or None when it has ended (a zombie has ended) or its pid was reused."""
        try:
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.created_at) > SAME_START_SECONDS:
                return None
            return None if process.status() == psutil.STATUS_ZOMBIE else process
        except psutil.NoSuchProcess:
            return None


@dataclass(frozen=True)
class Account:
    """The unprivileged user that a child runs as when the supervisor is root."""

    name: str
    uid: int
    gid: int

    @classmethod
    def owning(cls, path: Path, *names: str) -> Self:
        """The owner of `path` if it exists and is not root's, else the first of `names` that exists on this machine."""
        if path.exists() and (uid := path.stat().st_uid) != 0:
            with contextlib.suppress(KeyError):
                entry = pwd.getpwuid(uid)
                return cls(entry.pw_name, entry.pw_uid, entry.pw_gid)
            return cls(f"user {uid}", uid, path.stat().st_gid)
        for name in names:
            with contextlib.suppress(KeyError):
                entry = pwd.getpwnam(name)
                return cls(entry.pw_name, entry.pw_uid, entry.pw_gid)
        raise LocalError(f"None of the users {', '.join(names)} exists here: create one, or do not run as root.")


@functools.cache
def _setpriv() -> str | None:
    """Path of a `setpriv` that can set the parent death signal (util-linux's can, busybox's cannot)."""
    path = shutil.which("setpriv")
    if path is None:
        return None
    works = subprocess.run([path, "--pdeathsig", "TERM", "true"], capture_output=True, check=False).returncode == 0
    return path if works else None


def guarded(command: Sequence[str], *, death_signal: signal.Signals, account: Account | None) -> list[str]:
    """`command` behind `setpriv`: it gets `death_signal` when its parent dies and runs as `account`, without capabilities."""
    setpriv = _setpriv()
    if setpriv is None:
        return list(command)
    options = ["--pdeathsig", death_signal.name.removeprefix("SIG")]
    if account is not None:
        options += ["--reuid", str(account.uid), "--regid", str(account.gid), "--clear-groups"]
    return [setpriv, *options, *command]


def switched(account: Account | None) -> dict[str, Any]:
    """Arguments by which `subprocess` switches to `account`; empty where `guarded` does it."""
    if account is None or _setpriv() is not None:
        return {}
    return {"user": account.uid, "group": account.gid, "extra_groups": []}


def fault_as(account: Account, command: Sequence[str]) -> str:
    """The reason why `account` cannot run `command`, a short-lived one; empty if it can."""
    try:
        ended = subprocess.run(
            guarded(command, death_signal=signal.SIGKILL, account=account),
            **switched(account),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            timeout=TRIAL_SECONDS,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return str(error)
    return "" if ended.returncode == 0 else ended.stderr.strip() or describe_exit(ended.returncode)


class Child:
    """A running child. It leads its own session, so that Ctrl-C at the terminal reaches only the supervisor."""

    def __init__(self, process: subprocess.Popen[bytes] | ForkedProcess) -> None:
        self._process = process
        self.identity = Identity.of(process.pid)

    @classmethod
    def spawn(
        cls,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        directory: Path,
        log: Path,
        death_signal: signal.Signals = signal.SIGTERM,
        account: Account | None = None,
    ) -> Self:
        """Start `command`, a path and arguments, with its output appended to `log`.

        Raises LocalError when the program cannot be run.
        """
        # Without this check only a message of `setpriv` in the log would name the missing program.
        if not Path(command[0]).exists():
            raise LocalError(f"{command[0]} cannot be run: there is no such program here.")
        try:
            with log.open("ab") as output:
                process = subprocess.Popen(
                    guarded(command, death_signal=death_signal, account=account),
                    env=dict(environment),
                    cwd=directory,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    **switched(account),
                )
        except OSError as error:
            raise LocalError(f"{command[0]} cannot be run: {error.strerror or error}.") from error
        return cls(process)

    @classmethod
    async def fork(
        cls,
        server: ForkServer,
        command: Sequence[str],
        *,
        environment: Mapping[str, str],
        directory: Path,
        log: Path,
        death_signal: signal.Signals = signal.SIGTERM,
    ) -> Self:
        """Start `command`, which is `python -m module arguments`, as `spawn` does. Raises LocalError when it cannot be started."""
        _, _, module, *arguments = command
        start = Start(module, arguments, environment, str(directory), str(log), death_signal)
        try:
            return cls(await server.spawn(start))
        except (OSError, psutil.NoSuchProcess) as error:
            raise LocalError(f"{module} cannot be started: {error}.") from error

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        return self._process.poll()

    async def wait(self) -> int:
        """Wait for the end and return the exit code. Polls, as portable alternatives need a thread per child or the main thread."""
        while (code := self._process.poll()) is None:  # noqa: ASYNC110, the kernel cannot set an asyncio.Event
            await asyncio.sleep(POLL_SECONDS)
        return code

    async def end(self, stop_signal: signal.Signals, seconds: float) -> int:
        """Send the stop signal, wait `seconds` for the drain, then kill the child's session. Returns the exit code."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(stop_signal)
        try:
            async with asyncio.timeout(seconds):
                return await self.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.pid, signal.SIGKILL)
            return await self.wait()


def end_others(others: Iterable[tuple[Identity, signal.Signals]], seconds: float) -> int:
    """End processes that are not children of this one: send each its stop signal, kill its session after `seconds`.

    Returns how many were alive before.
    """
    living = {identity: stop for identity, stop in others if identity.find() is not None}
    for identity, stop in living.items():
        with contextlib.suppress(ProcessLookupError):
            os.kill(identity.pid, stop)
    for identity in _outlasting(living, seconds):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(identity.pid, signal.SIGKILL)
    _outlasting(living, seconds)
    return len(living)


def _outlasting(identities: Iterable[Identity], seconds: float) -> list[Identity]:
    """Wait until all have ended, at most `seconds`. Returns those still alive."""
    deadline = time.monotonic() + seconds
    while living := [identity for identity in identities if identity.find() is not None]:
        if time.monotonic() >= deadline:
            break
        time.sleep(POLL_SECONDS)
    return living


def describe_exit(code: int) -> str:
    """A description of an exit code: `exit code 1`, or the name of the signal that ended the process."""
    if code >= 0:
        return f"exit code {code}"
    try:
        return f"killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"killed by signal {-code}"
