"""Which inboxes get which events, as the services' manifests say: the routing table of the relays."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection, Iterator, Mapping

from storymesh.events import v1

from mesh.catalog import manifests
from mesh.manifest import Manifest, ManifestError

PACKAGE = v1.__name__


def routes() -> dict[str, tuple[str, ...]]:
    """The inboxes of each event, by the full name of its message; empty for an event that no service takes.

    Raises ManifestError when a manifest takes an event that the contract does not have.
    """
    return routes_of(manifests())


def routes_of(found: Mapping[str, Manifest]) -> dict[str, tuple[str, ...]]:
    """The same for other manifests, by service."""
    inboxes: dict[str, list[str]] = {name: [] for name in _messages()}
    for service, manifest in found.items():
        for inbox, events in manifest.takes.items():
            for event in events:
                name = f"{PACKAGE}.{event}"
                if name not in inboxes:
                    raise ManifestError(f"{service}: takes[{inbox}]: the contract has no message {name}")
                inboxes[name].append(inbox)
    return {name: tuple(taking) for name, taking in inboxes.items()}


def check_handlers(inbox: str, handled: Collection[str]) -> None:
    """Raises ManifestError when the handlers of an inbox are not for the events that its service's manifest takes there.

    An inbox of no service, as in a test, may handle what it likes.
    """
    taken = {name for name, inboxes in routes().items() if inbox in inboxes}
    missing, idle = sorted(taken - set(handled)), sorted(set(handled) - taken)
    if taken and missing:
        raise ManifestError(f"takes[{inbox}]: there is no handler for {', '.join(missing)}")
    if taken and idle:
        raise ManifestError(f"takes[{inbox}]: {', '.join(idle)} would never arrive")


def _messages() -> Iterator[str]:
    """Every message of the package. Those that only travel inside of events are among them; nobody can take them."""
    for module in pkgutil.iter_modules(v1.__path__, f"{PACKAGE}."):
        if module.name.endswith("_pb2"):
            for message in importlib.import_module(module.name).DESCRIPTOR.message_types_by_name.values():
                yield message.full_name
