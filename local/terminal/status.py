"""The current state of a mesh: the supervisor's record, checked against the processes and their probes."""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from local import settings
from local.failures import LocalError, NotReady
from local.layout import Layout
from local.mesh import addresses
from local.mesh.assembly import assemble
from local.supervision.health import Probe
from local.supervision.state import ComponentRecord, ComponentState, MeshRecord, Phase
from local.supervision.supervisor import is_running


@dataclass(frozen=True)
class Status:
    """The state of a mesh, and whether all of it serves."""

    phase: str
    """A `Phase`, or `down`, or `orphaned` when processes outlive their supervisor."""
    components: list[ComponentRecord]
    urls: dict[str, str]
    failure: str = ""
    notes: tuple[str, ...] = ()

    @property
    def healthy(self) -> bool:
        return self.phase == Phase.RUNNING and all(component.state.fine for component in self.components)

    def document(self) -> dict[str, Any]:
        """The document that `--json` prints; times are RFC 3339."""
        return {
            "phase": self.phase,
            "healthy": self.healthy,
            "failure": self.failure,
            "notes": list(self.notes),
            "urls": self.urls,
            "components": [
                {
                    "name": component.name,
                    "state": component.state.value,
                    "pid": component.process.pid if component.process else None,
                    "restarts": component.restarts,
                    "since": datetime.fromtimestamp(component.since, UTC).isoformat(timespec="seconds"),
                    "last_exit": component.last_exit,
                }
                for component in self.components
            ],
        }


def read(layout: Layout) -> Status:
    """Read and check the state of the mesh in this state directory."""
    record = MeshRecord.read(layout.state)
    supervised = is_running(layout)
    if record is None:
        return Status(Phase.STARTING if supervised else "down", [], {})
    own = layout_of(record)
    if not supervised:
        alive = [component for component in record.components if component.process and component.process.find()]
        for component in record.components:
            component.state = ComponentState.UNHEALTHY if component in alive else ComponentState.DEAD
        if not alive:
            return Status("failed" if record.failure else "down", [], {}, record.failure)
        return Status("orphaned", record.components, addresses.of(own, record.only), "Its supervisor was killed.")
    try:
        probes = {component.name: component.probe for component in assemble(own, record.only).components}
    except LocalError:
        probes = {}
    asyncio.run(_check(record, probes))
    return Status(record.phase, record.components, addresses.of(own, record.only), record.failure, tuple(record.notes))


def layout_of(record: MeshRecord) -> Layout:
    """The layout of the running mesh, whose ports may differ from those in the caller's settings."""
    return Layout(
        settings.load(**{name.removeprefix("STORYMESH_").lower(): value for name, value in record.settings.items()})
    )


async def _check(record: MeshRecord, probes: Mapping[str, Probe]) -> None:
    """Probe every component that is recorded as healthy."""

    async def ask(component: ComponentRecord) -> None:
        if component.state is not ComponentState.HEALTHY or component.name not in probes:
            return
        try:
            await probes[component.name]()
        except (NotReady, LocalError) as reason:
            component.state = ComponentState.UNHEALTHY
            component.last_exit = str(reason)

    await asyncio.gather(*(ask(component) for component in record.components))
