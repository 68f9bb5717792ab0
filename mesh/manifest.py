"""What the mesh must know of one service: the form of every `services/<name>/manifest.py`.

A manifest is data. It imports this module and nothing heavier, because programs that know no service read all of them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

PORTS_OF_A_SERVICE = 10
EVERY_SERVICE = "*"
"""In `calls`: all the other services, whichever there are."""

_KEY = re.compile(r"[a-z][a-z0-9_]*")
_FAMILY = re.compile(r"(?!(inbox|memory)$)[a-z][a-z-]*")
_SETTING = re.compile(r"[A-Z][A-Z0-9_]*")
_EVENT = re.compile(r"[A-Z][A-Za-z0-9]*")


class KitTables(Enum):
    """A group of tables that kit owns in the databases of the services that ask for it."""

    OUTBOX = "outbox"
    """What the service publishes, until the relay has copied it."""

    INBOX = "inbox"
    """Events that were processed, and dead letters."""

    ERASURE = "erasure"
    """The ids of erased people."""


OUTBOX, INBOX, ERASURE = KitTables.OUTBOX, KitTables.INBOX, KitTables.ERASURE


class ManifestError(ValueError):
    """A manifest contradicts itself, another one or the contract; the message names the service and the field."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """One service, as the others see it. Raises ManifestError when it contradicts itself.

    Names of keys are the settings' names in lower case, names of settings are in upper case, both without `STORYMESH_`.
    """

    port: int
    """First port of the service's block, counted from STORYMESH_BASE_PORT."""

    ports: int = PORTS_OF_A_SERVICE
    """Size of the block, an even number. The first half is the server's port and its workers', the second half their metrics'."""

    database: bool = False
    """Whether the service has a Postgres database, and a role, of its own."""

    workers: int = 0
    """Its worker processes on one machine. Where there are several, `STORYMESH_<NAME>_WORKERS` may say another number."""

    calls: tuple[str, ...] = ()
    """The services it calls, each by the setting `<NAME>_TARGET`; or EVERY_SERVICE."""

    keys: tuple[str, ...] = ()
    """Secret keys of its own: the same name in another service is another value."""

    shared_keys: tuple[str, ...] = ("mesh_key",)
    """Secret keys with one value in all the services that list the name."""

    takes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """For each of its inboxes the events that it takes, by the names of their messages in storymesh.events.v1.

    An inbox bears the service's name, or begins with it and a hyphen: what must not wait behind slow work gets a second one.
    """

    kit_tables: tuple[KitTables, ...] = ()
    """Tables of kit in its database; kit brings their migrations."""

    private_settings: tuple[str, ...] = ()
    """Beginnings of the names of settings that no other service gets to see."""

    redis_keys: tuple[str, ...] = ()
    """Families of its own Redis keys and channels: the words before the colon. Those of inboxes come from the rest."""

    needs: tuple[str, ...] = ()
    """Servers that it needs besides Postgres and Redis, by the names of the local runner's components."""

    local_settings: Mapping[str, str] = field(default_factory=dict)
    """Its settings on one machine; what the caller has set wins. Placeholders in braces are filled in by the local runner."""

    container_settings: Mapping[str, str] = field(default_factory=dict)
    """The settings of all its processes in containers; a variable of the same name in the caller's environment wins."""

    worker_container_settings: Mapping[str, str] = field(default_factory=dict)
    """Those that only its workers get."""

    def __post_init__(self) -> None:
        for fault in self._faults():
            raise ManifestError(fault)

    @property
    def block(self) -> range:
        """Every port of the service, counted from STORYMESH_BASE_PORT."""
        return range(self.port, self.port + self.ports)

    @property
    def most_workers(self) -> int:
        """How many workers there may be on one machine: as many as the block has ports for, if there are several at all."""
        return self.ports // 2 - 1 if self.workers > 1 else self.workers

    def processes(self, service: str, workers: int | None = None) -> tuple[str, ...]:
        """The names of its server and its workers; `workers` None: as many as there may be."""
        count = self.most_workers if workers is None else workers
        if self.most_workers > 1:
            return (service, *(f"{service}-worker-{number}" for number in range(1, count + 1)))
        return (service, f"{service}-worker") if count else (service,)

    @property
    def metrics_offset(self) -> int:
        """Distance from the port of a process to the one where it shows its metrics."""
        return self.ports // 2

    @property
    def all_keys(self) -> tuple[str, ...]:
        return self.keys + self.shared_keys

    def _faults(self) -> Iterable[str]:
        if self.ports < 2 or self.ports % 2:
            yield f"ports: {self.ports} is not an even number of at least 2"
        if not 0 <= self.workers <= self.ports // 2 - 1:
            yield f"workers: {self.workers} do not fit into a block of {self.ports} ports"
        yield from _misnamed("keys", self.keys, _KEY)
        yield from _misnamed("shared_keys", self.shared_keys, _KEY)
        yield from _repeated("keys and shared_keys", self.all_keys)
        yield from _misnamed("redis_keys", self.redis_keys, _FAMILY)
        yield from _misnamed("private_settings", self.private_settings, _SETTING)
        for name in ("local_settings", "container_settings", "worker_container_settings"):
            yield from _misnamed(name, getattr(self, name), _SETTING)
        yield from _repeated("calls", self.calls)
        if EVERY_SERVICE in self.calls and len(self.calls) > 1:
            yield f"calls: {EVERY_SERVICE} stands alone"
        for inbox, events in self.takes.items():
            yield from _misnamed(f"takes[{inbox}]", events, _EVENT)
            yield from _repeated(f"takes[{inbox}]", events)
            if not events:
                yield f"takes[{inbox}]: the inbox takes no event"
        if self.kit_tables and not self.database:
            yield "kit_tables: the service has no database"
        if self.takes and KitTables.INBOX not in self.kit_tables:
            yield "takes: an inbox needs the tables INBOX in kit_tables"
        if self.takes and not self.workers:
            yield "takes: an inbox needs a worker"
        if KitTables.OUTBOX in self.kit_tables and not self.workers:
            yield "kit_tables: an outbox needs a worker, whose relay publishes it"


def _misnamed(where: str, names: Iterable[str], form: re.Pattern[str]) -> Iterable[str]:
    return (f"{where}: {name!r} is not of the form {form.pattern}" for name in names if not form.fullmatch(name))


def _repeated(where: str, names: tuple[str, ...]) -> Iterable[str]:
    return (f"{where}: {name} stands there twice" for name in dict.fromkeys(names) if names.count(name) > 1)
