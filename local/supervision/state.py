"""The state file, in which the supervisor describes the running mesh; replaced atomically at every change.

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
    """The state of a component."""

    WAITING = "waiting"
    """A dependency is not healthy yet."""
    STARTING = "starting"
    HEALTHY = "healthy"
    DONE = "done"
    """A job that ran to completion."""
    BACKING_OFF = "backing off"
    """Its process ended by itself and is started again after a pause."""
    STOPPED = "stopped"
    """Stopped by an order, until another order starts it."""
    UNHEALTHY = "unhealthy"
    """Its process lives and its probe fails; set by `status`, which probes each component itself."""
    DEAD = "dead"
    """Both the supervisor and the process have ended; set by `status`."""

    @property
    def fine(self) -> bool:
        return self in (ComponentState.HEALTHY, ComponentState.DONE)


class Phase(StrEnum):
    """The phase of the mesh as a whole."""

    STARTING = "starting"
    RUNNING = "running"
    STOPPING = "stopping"
    FAILED = "failed"


@dataclass
class ComponentRecord:
    """The state of one component. Times are in seconds since the epoch."""

    name: str
    state: ComponentState = ComponentState.WAITING
    since: float = 0.0
    process: Identity | None = None
    restarts: int = 0
    last_exit: str = ""
    stop_signal: str = "SIGTERM"

    @property
    def orphan(self) -> tuple[Identity, signal.Signals] | None:
        """The process and its stop signal, by which it is ended after its supervisor died; None if there is no process."""
        return (self.process, signal.Signals[self.stop_signal]) if self.process else None


@dataclass
class MeshRecord:
    """The state of the mesh: its supervisor, its settings, and its components in order of start."""

    supervisor: Identity
    settings: dict[str, str]
    """The runner's settings, as environment variables, with the writer that was chosen."""

    salt: str = ""
    given: dict[str, str] = field(default_factory=dict)
    """Salted digests of the services' settings that the caller had set, by name; digests, because some are secrets."""

    code: str = ""
    """A digest of the code that the mesh was started from."""

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
        """The last state written; None if there is none, or only part of one, as a full disk leaves it."""
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
