"""The relays' routing table, from the manifests: the inboxes that get each event."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Collection, Iterator, Mapping

from storymesh.events import v1

from mesh.catalog import manifests
from mesh.manifest import Manifest, ManifestError

PACKAGE = v1.__name__


def routes() -> dict[str, tuple[str, ...]]:
    """The inboxes that take each event, by the full name of its message; empty for an event that no service takes.

    Raises ManifestError when a manifest takes an event that the contract does not have.
    """
    return routes_of(manifests())


def routes_of(found: Mapping[str, Manifest]) -> dict[str, tuple[str, ...]]:
    """The routing table of the given manifests, which are by service. Raises ManifestError as `routes` does."""
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
    """Checks that an inbox has handlers for exactly the events that the manifest takes there. Raises ManifestError.

    An inbox that no manifest names, as in a test, is not checked.
    """
    taken = {name for name, inboxes in routes().items() if inbox in inboxes}
    missing, idle = sorted(taken - set(handled)), sorted(set(handled) - taken)
    if taken and missing:
        raise ManifestError(f"takes[{inbox}]: there is no handler for {', '.join(missing)}")
    if taken and idle:
        raise ManifestError(f"takes[{inbox}]: {', '.join(idle)} would never arrive")


def _messages() -> Iterator[str]:
    """Full names of all messages of the package, those that are only parts of events included."""
    for module in pkgutil.iter_modules(v1.__path__, f"{PACKAGE}."):
        if module.name.endswith("_pb2"):
            for message in importlib.import_module(module.name).DESCRIPTOR.message_types_by_name.values():
                yield message.full_name
