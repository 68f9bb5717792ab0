"""Reads all manifests and checks them against one another."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Iterable, Mapping
from itertools import combinations

from mesh.manifest import EVERY_SERVICE, Manifest, ManifestError
from mesh.services import SERVICES

DEFAULT_BASE_PORT = 18_400
"""First port of a local mesh: below every system's ephemeral range, so that no outgoing connection takes a port of it."""
FIRST_PORT = 10
"""Offset of the first port for services; those before it are for Postgres, Redis, Envoy and the mail sink."""
PORTS_IN_A_MESH = 200
FIRST_SPARE_PORT = PORTS_IN_A_MESH - 10
"""Offset of the first spare port, which tests use, for example for a second edge."""
FIRST_STORE_PORT = FIRST_SPARE_PORT - 10
"""Offset of the first of the object store's ports; services get none from here on."""

_NAME = re.compile(r"[a-z][a-z0-9]*")
_RESERVED_NAMES = {
    "admin",
    "collector",
    "edge",
    "envoy",
    "jaeger",
    "jwks",
    "keys",
    "mail",
    "mailpit",
    "none",
    "postgres",
    "prometheus",
    "public",
    "redis",
    "s3",
    "stores",
    "supervisor",
}
"""Reserved names: other components, containers and clusters, and words that Postgres does not allow as a role's name."""


@functools.cache
def manifests() -> Mapping[str, Manifest]:
    """Every service's manifest, in the order of SERVICES. Raises ManifestError."""
    return read(SERVICES)


def read(services: tuple[str, ...]) -> Mapping[str, Manifest]:
    """The manifests of these services. Raises ManifestError."""
    for fault in _misnamed(services):
        raise ManifestError(f"mesh/services.py: {fault}")
    found = {name: _manifest(name) for name in services}
    check(found)
    return found


def callees(service: str) -> tuple[str, ...]:
    """Names of the services that `service` calls."""
    calls = manifests()[service].calls
    return tuple(name for name in manifests() if name != service) if calls == (EVERY_SERVICE,) else calls


def check(found: Mapping[str, Manifest]) -> None:
    """Checks manifests against one another. Raises ManifestError for the first contradiction."""
    for fault in _faults(found):
        raise ManifestError(fault)


def _manifest(service: str) -> Manifest:
    try:
        module = importlib.import_module(f"services.{service}.manifest")
    except ModuleNotFoundError as error:
        raise ManifestError(f"services/{service}/manifest.py: {error}") from error
    except ManifestError as error:
        raise ManifestError(f"services/{service}/manifest.py: {error}") from None
    manifest = getattr(module, "MANIFEST", None)
    if not isinstance(manifest, Manifest):
        raise ManifestError(f"services/{service}/manifest.py: has no MANIFEST")
    return manifest


def _misnamed(services: tuple[str, ...]) -> Iterable[str]:
    for name in services:
        if not _NAME.fullmatch(name):
            yield f"{name!r} is not of the form {_NAME.pattern}"
        if name in _RESERVED_NAMES:
            yield f"{name} is the name of something else that runs in a mesh, or that Postgres keeps for itself"
        if services.count(name) > 1:
            yield f"{name} stands there twice"


def _faults(found: Mapping[str, Manifest]) -> Iterable[str]:
    for name, manifest in found.items():
        yield from _faults_of_one(name, manifest, found)
    for (first, one), (second, other) in combinations(found.items(), 2):
        yield from _faults_of_two(first, one, second, other)


def _faults_of_one(name: str, manifest: Manifest, found: Mapping[str, Manifest]) -> Iterable[str]:
    if manifest.block.start < FIRST_PORT or manifest.block.stop > FIRST_STORE_PORT:
        yield f"{name}: port: the block {_shown(manifest.block)} lies outside of {FIRST_PORT}-{FIRST_STORE_PORT - 1}"
    for callee in manifest.calls:
        if callee not in (EVERY_SERVICE, *found):
            yield f"{name}: calls: there is no service {callee}; there are {', '.join(found)}"
        if callee == name:
            yield f"{name}: calls: a service does not call itself"
    for inbox in manifest.takes:
        if inbox != name and not inbox.startswith(f"{name}-"):
            yield f"{name}: takes: the inbox {inbox} is named neither {name} nor {name}-something"


def _faults_of_two(first: str, one: Manifest, second: str, other: Manifest) -> Iterable[str]:
    if range(max(one.block.start, other.block.start), min(one.block.stop, other.block.stop)):
        yield f"{first} and {second}: port: the blocks {_shown(one.block)} and {_shown(other.block)} overlap"
    for key in sorted(set(one.keys) & set(other.shared_keys) | set(other.keys) & set(one.shared_keys)):
        yield f"{first} and {second}: keys: {key} is one's own and shared by the other"
    for family in sorted(set(one.redis_keys) & set(other.redis_keys)):
        yield f"{first} and {second}: redis_keys: both have the family {family}"
    for inbox in sorted(one.takes.keys() & other.takes.keys()):
        yield f"{first} and {second}: takes: both have an inbox {inbox}"
    for mine in one.private_settings:
        for theirs in other.private_settings:
            if mine.startswith(theirs) or theirs.startswith(mine):
                yield f"{first} and {second}: private_settings: {mine} and {theirs} are beginnings of the same names"


def _shown(block: range) -> str:
    return f"{block.start}-{block.stop - 1}"
