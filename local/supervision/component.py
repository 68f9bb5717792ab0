"""What the supervisor knows of the processes that it runs."""

import signal
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from local.layout import Port
from local.supervision.health import Probe
from local.supervision.process import Account


async def nothing() -> None:
    """The step of a component that needs none."""


@dataclass(frozen=True)
class Component:
    """One process of the mesh: how to start it, how to know that it serves, how to stop it."""

    name: str
    command: tuple[str, ...]
    probe: Probe = nothing
    needs: tuple[str, ...] = ()
    """Components that must be healthy before this one is started; it is stopped before they are."""

    environment: Mapping[str, str] = field(default_factory=dict)
    directory: Path = Path("/")
    ports: tuple[Port, ...] = ()
    prepare: Callable[[], Awaitable[None]] = nothing
    """Runs before every start, a restart included: it repairs what a killed predecessor left."""

    settle: Callable[[], Awaitable[None]] = nothing
    """Runs once the component answers and before those that need it start; must be idempotent."""

    drain: Callable[[], Awaitable[None]] = nothing
    """Runs before the stop signal, for a program that drops its clients on that signal. Counts as part of the drain."""

    stop_signal: signal.Signals = signal.SIGTERM
    drain_seconds: float = 10.0
    account: Account | None = None
    """As whom it runs, where that is not the supervisor's own user."""

    once: bool = False
    """True for a job that runs to completion, such as a migration, instead of serving."""


@dataclass(frozen=True)
class Mesh:
    """All components that one supervisor runs, in the order they are shown."""

    components: Sequence[Component]
    notes: Sequence[str]
    """Sentences that the person who starts the mesh should read."""

    writer: str = ""
    """The writer of the story workers; empty where the mesh has none."""
