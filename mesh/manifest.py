"""The form of every `services/<name>/manifest.py`: what the mesh must know of one service.

A manifest is data. It imports this module alone, because every program reads all manifests and must not load services' code.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from enum import Enum

PORTS_OF_A_SERVICE = 10
EVERY_SERVICE = "*"
"""Value of `calls` that stands for all other services."""

LIMITER = "ratelimit"
"""The service that any other may ask for leases and reservations, as a value of `calls`."""

OBJECT_STORE = "s3"
"""The S3 server, as a value of `needs`: the service gets a bucket of its own, and the settings of kit's ObjectStoreSettings."""

_KEY = re.compile(r"[a-z][a-z0-9_]*")
_FAMILY = re.compile(r"(?!(inbox|memory)$)[a-z][a-z-]*")
_SETTING = re.compile(r"[A-Z][A-Z0-9_]*")
_EVENT = re.compile(r"[A-Z][A-Za-z0-9]*")


class KitTables(Enum):
    """A group of kit's tables in the database of each service whose manifest names it."""

    OUTBOX = "outbox"
    """Published events, until the relay has copied them."""

    INBOX = "inbox"
    """Ids of processed events, and dead letters."""

    ERASURE = "erasure"
    """Ids of erased accounts."""


OUTBOX, INBOX, ERASURE = KitTables.OUTBOX, KitTables.INBOX, KitTables.ERASURE


class ManifestError(ValueError):
    """A manifest contradicts itself, another one or the contract; the message names the service and the field."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """The description of one service. Raises ManifestError when it contradicts itself.

    Keys are named by their setting in lower case, settings in upper case, both without `STORYMESH_`.
    """

    port: int
    """First port of the service's block, as an offset from STORYMESH_BASE_PORT."""

    ports: int = PORTS_OF_A_SERVICE
    """Size of the block, an even number: the first half for the server and its workers, the second for their metrics ports."""

    database: bool = False
    """Whether the service has its own Postgres database and role."""

    workers: int = 0
    """Number of worker processes on one machine. If it is above 1, `STORYMESH_<NAME>_WORKERS` can change it."""

    calls: tuple[str, ...] = ()
    """Services that it calls, each at the address in the setting `<NAME>_TARGET`; or EVERY_SERVICE."""

    keys: tuple[str, ...] = ()
    """Secret keys of this service alone: a key of the same name in another service has another value."""

    shared_keys: tuple[str, ...] = ("mesh_key",)
    """Secret keys with one value in all services that list the name."""

    takes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """The events that each of its inboxes takes, by the names of their messages in storymesh.events.v1.

    An inbox is named after the service, with an optional suffix after a hyphen. A second inbox keeps urgent events from waiting
    behind slow work.
    """

    kit_tables: tuple[KitTables, ...] = ()
    """Kit's tables in its database; kit ships their migrations."""

    private_settings: tuple[str, ...] = ()
    """Prefixes of the names of settings that no other service gets."""

    redis_keys: tuple[str, ...] = ()
    """Prefixes, without the colon, of its own Redis keys and channels. Those of inboxes are derived."""

    needs: tuple[str, ...] = ()
    """Servers that it needs besides Postgres and Redis, as component names of the local runner."""

    local_settings: Mapping[str, str] = field(default_factory=dict)
    """Default settings on one machine; the caller's environment takes precedence. The local runner fills in `{placeholders}`."""

    container_settings: Mapping[str, str] = field(default_factory=dict)
    """Default settings of all its processes in containers; the caller's environment takes precedence."""

    worker_container_settings: Mapping[str, str] = field(default_factory=dict)
    """Default settings in containers that only its workers get."""

    def __post_init__(self) -> None:
        for fault in self._faults():
            raise ManifestError(fault)

    @property
    def block(self) -> range:
        """Every port of the service, as an offset from STORYMESH_BASE_PORT."""
        return range(self.port, self.port + self.ports)

    @property
    def most_workers(self) -> int:
        """Largest number of workers on one machine: if `workers` is above 1, as many as the block has ports for."""
        return self.ports // 2 - 1 if self.workers > 1 else self.workers

    def processes(self, service: str, workers: int | None = None) -> tuple[str, ...]:
        """Names of its server and its workers; None for `workers` means the largest number."""
        count = self.most_workers if workers is None else workers
        if self.most_workers > 1:
            return (service, *(f"{service}-worker-{number}" for number in range(1, count + 1)))
        return (service, f"{service}-worker") if count else (service,)

    @property
    def metrics_offset(self) -> int:
        """Offset from a process's port to its metrics port."""
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
