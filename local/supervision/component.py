"""The description of a process that the supervisor runs, and of all of them together."""

import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from local.layout import Port
from local.supervision.health import Probe
from local.supervision.process import Account


async def nothing() -> None:
    """Do nothing: the default of a component's optional steps."""


@dataclass(frozen=True)
class Component:
    """One process of the mesh: how to start it, probe it and stop it."""

    name: str
    command: tuple[str, ...]
    probe: Probe = nothing
    needs: tuple[str, ...] = ()
    """Dependencies: components that are healthy before this one is started, and are stopped after it."""

    environment: Mapping[str, str] = field(default_factory=dict)
    directory: Path = Path("/")
    ports: tuple[Port, ...] = ()
    prepare: Callable[[], Awaitable[None]] = nothing
    """Runs before every start, restarts included, and repairs what a killed process left."""

    settle: Callable[[], Awaitable[None]] = nothing
    """Runs after the first successful probe of each start, before dependent components start; must be idempotent."""

    drain: Callable[[], Awaitable[None]] = nothing
    """Runs before the stop signal, for a program that drops its clients on that signal."""

    clean_up: Callable[[], Awaitable[None]] = nothing
    """Runs after the process has ended by the stop signal, and removes what it left outside of the state directory."""

    stop_signal: signal.Signals = signal.SIGTERM
    drain_seconds: float = 10.0
    account: Account | None = None
    """The user it runs as; None for the supervisor's own."""

    forked: bool = False
    """Whether `command` is `python -m` of a module that the fork server can start, if there is one."""

    once: bool = False
    """True for a job that runs to completion, such as a migration, instead of serving."""


@dataclass(frozen=True)
class Mesh:
    """All components that one supervisor runs, in display order."""

    components: Sequence[Component]
    notes: Sequence[str]
    """Sentences for the person who starts the mesh."""

    writer: str = ""
    """The writer of the story workers; empty in a mesh without them."""
