"""Compares a running mesh with the settings of the caller who runs `up` or `restart`.

A variable that is not set now is no difference: the mesh keeps the value that it was started with, and the caller is told.
Values of the services' settings may be secrets, so the mesh's record holds digests of them.
"""

import hashlib
import secrets
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from local.layout import Layout
from local.mesh import writers
from local.mesh.components import envoy
from local.mesh.components.services import DECIDED, RUNNERS_OWN
from local.settings import REPOSITORY, users_settings
from local.supervision.state import MeshRecord

STATE_DIR, WRITER = "STORYMESH_STATE_DIR", "STORYMESH_WRITER"
READ_ELSEWHERE = frozenset({"STORYMESH_EDGE", "STORYMESH_TOKENS", "STORYMESH_PUBLISH_ADDRESS", "STORYMESH_S3_PORT"})
"""Variables that no process of a local mesh reads: they are the client's and docker-compose.yml's."""
CODE = ("local", "mesh", "deploy", "services", "kit", "envoy", "gen")
"""Folders whose code the processes of a mesh run."""


@dataclass(frozen=True)
class Differences:
    """Differences between a running mesh and the caller's settings."""

    writer: str = ""
    """The writer asked for, empty if it is the running one; the only difference that can be applied to a running mesh."""

    asked: tuple[str, ...] = ()
    """Differing settings, each as a clause for the sentence that says how the mesh runs."""

    kept: tuple[str, ...] = ()
    """Settings that the mesh was started with and that are not set now."""

    new_code: bool = False


def digests(salt: str) -> dict[str, str]:
    """Salted digests of the services' settings in this process's environment, by name."""
    ours = RUNNERS_OWN | DECIDED | READ_ELSEWHERE
    return {
        name: hashlib.sha256(f"{salt}{value}".encode()).hexdigest()
        for name, value in users_settings().items()
        if value and name not in ours
    }


def new_salt() -> str:
    return secrets.token_hex(16)


def of(record: MeshRecord, layout: Layout, only: Collection[str]) -> Differences:
    """Compare the mesh that `record` describes with the settings of `layout` and the caller's environment."""
    asked: list[str] = []
    kept: list[str] = []
    writer = ""
    set_now = {f"STORYMESH_{name.upper()}" for name in layout.settings.model_fields_set}
    for name, (running, wanted) in _runners(record, layout).items():
        if name not in set_now:
            kept.append(f"{name}={running}")
        elif name == WRITER:
            writer = wanted
        else:
            asked.append(f"{name} is {running or 'not set'} instead of {wanted}")
    now = digests(record.salt)
    for name in sorted(now.keys() | record.given.keys()):
        if name not in now:
            kept.append(name)
        elif name not in record.given:
            asked.append(f"{name} is not set")
        elif record.given[name] != now[name]:
            asked.append(f"{name} has another value")
    asked += _of_parts(record, layout, only)
    return Differences(writer, tuple(asked), tuple(kept), record.code != fingerprint())


def _runners(record: MeshRecord, layout: Layout) -> dict[str, tuple[str, str]]:
    """The runner's settings that differ, with both values: the running mesh's, and the caller's."""
    wanted = layout.settings.environment()
    # A mesh without a story worker has no writer.
    wanted[WRITER] = record.settings.get(WRITER, "") and (wanted[WRITER] or writers.choose(layout.settings).name)
    return {
        name: values
        for name in sorted(wanted.keys() | record.settings.keys())
        # The state directory is the same by definition: only its spelling can differ.
        if name != STATE_DIR and (values := (record.settings.get(name, ""), wanted.get(name, "")))[0] != values[1]
    }


def _of_parts(record: MeshRecord, layout: Layout, only: Collection[str]) -> Iterator[str]:
    if record.only and (not only or set(only) - set(record.only)):
        yield f"it has only {', '.join(record.only)}"
    if (not record.only or envoy.NAME in record.only) and not envoy.runs_with(layout):
        yield f"{layout.settings.edge_settings} has changed since Envoy was started"


def fingerprint() -> str:
    """A digest of the code that a mesh runs."""
    digest = hashlib.sha256()
    for path in _code_files():
        digest.update(f"{path.relative_to(REPOSITORY)}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _code_files() -> list[Path]:
    files = (path for folder in CODE for path in (REPOSITORY / folder).rglob("*"))
    # YAML files need no digest: the mesh reads them while it runs, or they are generated from the same contracts as Python.
    return sorted(path for path in files if path.is_file() and path.suffix not in (".pyc", ".yaml"))
