"""Every import rule is broken in a copy of the sources, and import-linter must report it."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path

import pytest

from mesh.services import SERVICES

pytestmark = pytest.mark.slow

REPOSITORY = Path(__file__).parents[2]
SOURCES = ("mesh", "services", "kit", "local", "storymesh_client")

FLOORS = "Services stand on kit, kit stands on the mesh's plan, and none of them knows how it is started"
STRANGERS = "Services do not know one another"
TRANSPORT = "One module knows the second gRPC server"
ROOMS = "Inside a service every module is in a room, and imports run one way"
KIT = "The rooms of the kit import one way"
CIRCLES = "Inside a room, no modules import each other in a circle"
CONTRACTS = "Below servicer, worker and peers nobody sees a contract, save the event messages that operations write"
SQL = "SQL is written in the store, over the tables"
MANIFESTS = "A manifest is data, which imports the mesh's plan alone"
CLIENT = "The client knows the contracts and grpc alone"
INSIDE = "Nobody inside stands on the client"
LOCAL = "The rooms of the local runner import downwards"

A_NEW_SERVICE = {
    "services/toy/__init__.py": "",
    "services/toy/__main__.py": "from .servicer import answer",
    "services/toy/manifest.py": "import mesh.manifest",
    "services/toy/config.py": "",
    "services/toy/servicer.py": "from .operations import toys",
    "services/toy/operations/__init__.py": "",
    "services/toy/operations/toys.py": "from storymesh.events.v1 import auth_events_pb2\nfrom .. import store",
    "services/toy/store/__init__.py": "import sqlalchemy",
}

Change = Mapping[str, str]
"""Texts to write, by path: each becomes a new file, or is appended to an existing one."""

BREACHES: list[tuple[str, Change]] = [
    (FLOORS, {"kit/data/paging.py": "import services.story"}),
    (FLOORS, {"kit/runtime/clock.py": "import local.layout"}),
    (FLOORS, {"mesh/manifest.py": "import kit.errors"}),
    (FLOORS, {"services/story/config.py": "import local.layout"}),
    (KIT, {"kit/identity/caller.py": "import kit.data.database"}),
    (KIT, {"kit/helpers.py": ""}),
    (TRANSPORT, {"kit/rpc/server.py": "from pygrpc_native import NativeGrpcFront"}),
    (TRANSPORT, {"services/ratelimit/servicer/checks.py": "import pygrpc_native"}),
    (STRANGERS, {"services/story/servicer.py": "from services.auth.model import User"}),
    (STRANGERS, {**A_NEW_SERVICE, "services/toy/operations/toys.py": "import services.story.model"}),
    (STRANGERS, {**A_NEW_SERVICE, "services/story/operations/toys.py": "import services.toy.store"}),
    # Imports against the direction, at each layer.
    (ROOMS, {"services/story/servicer.py": "from . import __main__"}),
    (ROOMS, {"services/story/peers.py": "from . import servicer"}),
    (ROOMS, {"services/story/operations/stories.py": "from ..peers import Accounts"}),
    (ROOMS, {"services/story/config.py": "from .operations import stories"}),
    (ROOMS, {"services/story/store/stories.py": "from ..config import StorySettings"}),
    (ROOMS, {"services/story/store/stories.py": "from ..operations import admission"}),
    (
        ROOMS,
        {"services/story/adapters/writers/openai/writer.py": "from services.story.operations.writing import Writing"},
    ),
    (ROOMS, {"services/notification/adapters/smtp/pool.py": "from services.notification.operations import delivering"}),
    (ROOMS, {"services/story/model/__init__.py": "from ..store import stories"}),
    (ROOMS, {"services/auth/model/refresh_rules.py": "from ..operations import sessions"}),
    (ROOMS, {"services/ratelimit/store/buckets.py": "from ..operations.buckets import Buckets"}),
    (ROOMS, {"services/auth/errors.py": "from .model import User"}),
    (ROOMS, {"services/auth/manifest.py": "from .errors import EmailTaken"}),
    # Imports between rooms of one layer.
    (ROOMS, {"services/story/servicer.py": "from . import worker"}),
    (ROOMS, {"services/auth/worker.py": "from . import commands"}),
    (ROOMS, {"services/story/store/stories.py": "from ..adapters import writers"}),
    (ROOMS, {"services/story/tables.py": "from . import model"}),
    # Modules that belong to no room.
    (ROOMS, {"services/story/helpers.py": ""}),
    (ROOMS, {"services/story/helpers/__init__.py": ""}),
    (ROOMS, {**A_NEW_SERVICE, "services/toy/store/__init__.py": "from ..operations import toys"}),
    (ROOMS, {**A_NEW_SERVICE, "services/toy/more.py": ""}),
    (CIRCLES, {"services/story/operations/stories.py": "from . import watching"}),
    (CIRCLES, {"services/auth/store/users.py": "from . import sessions"}),
    (CONTRACTS, {"services/story/operations/stories.py": "from storymesh.story.v1 import story_pb2"}),
    (CONTRACTS, {"services/story/operations/stories.py": "import grpc"}),
    (CONTRACTS, {"services/ratelimit/operations/buckets.py": "from foreign import rls_pb2"}),
    (CONTRACTS, {"services/story/store/stories.py": "from storymesh.events.v1 import story_events_pb2"}),
    (CONTRACTS, {"services/story/adapters/writers/prose.py": "from storymesh.events.v1 import story_events_pb2"}),
    (CONTRACTS, {"services/auth/model/__init__.py": "from google.protobuf.message import Message"}),
    (SQL, {"services/story/operations/stories.py": "from sqlalchemy import select"}),
    (SQL, {"services/auth/servicer.py": "import psycopg"}),
    (SQL, {**A_NEW_SERVICE, "services/toy/operations/toys.py": "import sqlalchemy.exc"}),
    (MANIFESTS, {"services/story/manifest.py": "from storymesh.events.v1 import story_events_pb2"}),
    (MANIFESTS, {**A_NEW_SERVICE, "services/toy/manifest.py": "import kit.errors"}),
    (CLIENT, {"storymesh_client/tokens.py": "import kit.errors"}),
    (INSIDE, {"local/layout.py": "import storymesh_client"}),
    (LOCAL, {"local/failures.py": "import local.layout"}),
]


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    copied = tmp_path_factory.mktemp("imports")
    for name in SOURCES:
        shutil.copytree(REPOSITORY / name, copied / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(REPOSITORY / "pyproject.toml", copied)
    return copied


def lint(copy: Path, change: Change) -> tuple[set[str], str]:
    """Lint the copy with the change, then undo it. Returns the broken rules, and import-linter's output."""
    former = {path: (copy / path).read_text() if (copy / path).exists() else None for path in change}
    try:
        for path, text in change.items():
            (copy / path).parent.mkdir(parents=True, exist_ok=True)
            (copy / path).write_text(f"{former[path] or ''}\n{text}\n")
        command: list[str | Path] = [
            Path(sys.executable).parent / "lint-imports",
            "--no-logo",
            "--cache-dir",
            copy / ".cache",
        ]
        done = subprocess.run(command, cwd=copy, env={"COLUMNS": "1000"}, capture_output=True, text=True, check=False)
    finally:
        for path, content in former.items():
            if content is not None:
                (copy / path).write_text(content)
            else:
                (copy / path).unlink()
                if not any((copy / path).parent.iterdir()):
                    (copy / path).parent.rmdir()
    rules = set(re.findall(r"^(.*?) BROKEN", done.stdout, re.MULTILINE))
    assert bool(done.returncode) == (" 0 broken" not in done.stdout)
    return rules, done.stdout


@pytest.mark.parametrize(("rule", "change"), BREACHES)
def test_what_breaks_a_rule_is_refused_by_its_name(copy: Path, rule: str, change: Change) -> None:
    rules, said = lint(copy, change)
    assert rule in rules, said


def test_a_module_beside_the_services_is_taken_for_a_service_without_rooms(copy: Path) -> None:
    _, said = lint(copy, {"services/helpers.py": ""})
    assert "Missing layer in container 'services.helpers'" in said


def test_a_new_service_that_keeps_the_rules_is_taken_with_the_events_that_its_operations_write(copy: Path) -> None:
    rules, said = lint(copy, A_NEW_SERVICE)
    assert " 0 broken" in said, rules


def test_every_rule_is_broken_here_and_none_names_a_service() -> None:
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    assert {contract["name"] for contract in contracts} == {rule for rule, _ in BREACHES}
    assert not [name for name in SERVICES if f"services.{name}" in str(contracts)]
