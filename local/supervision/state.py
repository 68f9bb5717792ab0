"""The running mesh as its supervisor describes it to others: one file, replaced as a whole at every change.

`status` reads it, `up` follows it, and `down` finds in it the processes that a killed supervisor left behind.
"""

import json
import signal
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any, Self

from local.failures import of_os_error
from local.supervision.process import Identity


class ComponentState(StrEnum):
    """Where a component stands."""

    WAITING = "waiting"
    """Something it needs is not healthy yet."""
    STARTING = "starting"
    HEALTHY = "healthy"
    DONE = "done"
    """A job that ran to completion."""
    BACKING_OFF = "backing off"
    """It ended by itself and is started again after a pause."""
    STOPPED = "stopped"
    """Stopped by an order, until another order starts it."""
    UNHEALTHY = "unhealthy"
    """Its process lives and its probe fails; seen by `status`, which asks each component itself."""
    DEAD = "dead"
    """The supervisor has gone and so has the process."""

    @property
    def fine(self) -> bool:
        return self in (ComponentState.HEALTHY, ComponentState.DONE)


class Phase(StrEnum):
    """Where the mesh as a whole stands."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    FAILED = "failed"


@dataclass
class ComponentRecord:
    """One component. Times are seconds since the epoch."""

    name: str
    state: ComponentState = ComponentState.WAITING
    since: float = 0.0
    process: Identity | None = None
    restarts: int = 0
    last_exit: str = ""
    stop_signal: str = "SIGTERM"

    @property
    def orphan(self) -> tuple[Identity, signal.Signals] | None:
        """The process and its stop signal, needed to end it when the supervisor is gone; None when it has no process."""
        return (self.process, signal.Signals[self.stop_signal]) if self.process else None


@dataclass
class MeshRecord:
    """The mesh: its supervisor, the settings it runs with, its components in order of start."""

    supervisor: Identity
    settings: dict[str, str]
    """The runner's own, with the writer that was chosen."""

    salt: str = ""
    given: dict[str, str] = field(default_factory=dict)
    """The services' settings that the caller had set, by salted digests: some are secrets."""

    code: str = ""
    """A digest of what it was started from."""

    only: list[str] = field(default_factory=list)
    phase: Phase = Phase.STARTING
    failure: str = ""
    notes: list[str] = field(default_factory=list)
    components: list[ComponentRecord] = field(default_factory=list)

    def component(self, name: str) -> ComponentRecord | None:
        return next((record for record in self.components if record.name == name), None)

    def write(self, path: Path) -> None:
        draft = path.with_name(f".{path.name}")
        try:
            draft.write_text(json.dumps(asdict(self), indent=1))
            draft.replace(path)
        except OSError as error:
            raise of_os_error(error, path) from error

    @classmethod
    def read(cls, path: Path) -> Self | None:
        """The last state written, or None when there is none (or only what a full disk left of it)."""
        try:
            document: dict[str, Any] = json.loads(path.read_text())
            components = [
                ComponentRecord(
                    **entry
                    | {
                        "state": ComponentState(entry["state"]),
                        "process": Identity(**entry["process"]) if entry["process"] else None,
                    }
                )
                for entry in document["components"]
            ]
            return cls(
                **document
                | {
                    "supervisor": Identity(**document["supervisor"]),
                    "phase": Phase(document["phase"]),
                    "components": components,
                }
            )
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            return None
