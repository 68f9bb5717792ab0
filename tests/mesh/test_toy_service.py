"""A service needs one contract, one folder and one line: a toy service is added to a copy of the repository, and works."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx2
import pytest
import yaml
from storymesh.events.v1 import auth_events_pb2

from kit.data.database import Database
from kit.events import outbox
from local.mesh.reservation import EDGE_OFFSET, reserved_ports
from local.settings import REPOSITORY
from tests.local.mesh.checkouts import copy_code
from tests.waiting import until

pytestmark = pytest.mark.slow

TOY = Path(__file__).with_name("toy")

COMPONENTS = (
    *("postgres", "redis", "ratelimit", "envoy"),
    # Auth's worker relays the event. Auth itself is needed because no service serves before it has auth's revocations.
    *("auth-migrate", "auth", "auth-worker"),
    *("toy-migrate", "toy", "toy-worker"),
)

CLIENT = """
import asyncio, sys
from storymesh.toy.v1.toy_service_pb2 import CountChangesRequest
from storymesh_client import Storymesh

async def main():
    async with Storymesh(sys.argv[1]) as mesh:
        print((await mesh.toys.CountChanges(CountChangesRequest())).changes)

asyncio.run(main())
"""


@dataclass(frozen=True)
class Checkout:
    """A copy of the repository, with its own mesh."""

    place: Path
    base_port: int

    def run(self, *arguments: str) -> str:
        """Runs Python in the copy and on its code: folders in PYTHONPATH come before installed packages."""
        mesh = {
            "STORYMESH_STATE_DIR": str(self.place / ".local"),
            "STORYMESH_BASE_PORT": str(self.base_port),
            "STORYMESH_PORT": str(self.base_port + EDGE_OFFSET),
            "STORYMESH_WRITER": "composer",
            "STORYMESH_DURABLE": "false",
            # protoc finds its plugins by name on PATH.
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "PYTHONPATH": ":".join(str(self.place / folder) for folder in ("", "gen", "envoy")),
        }
        others = {name: value for name, value in os.environ.items() if not name.startswith("STORYMESH_")}
        ended = subprocess.run(
            [sys.executable, *arguments],
            cwd=self.place,
            env=others | mesh,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )
        assert ended.returncode == 0, ended.stdout + ended.stderr
        return ended.stdout

    @property
    def edge(self) -> str:
        return f"127.0.0.1:{self.base_port + EDGE_OFFSET}"

    def database_url(self, service: str) -> str:
        return (self.place / ".local" / "secrets" / service / "storymesh_database_url").read_text()


@pytest.fixture
def checkout(tmp_path: Path) -> Iterator[Checkout]:
    with reserved_ports() as base_port:
        # Copied, not hard-linked, because generating must not write to this checkout's files.
        copy = Checkout(copy_code(tmp_path / "storymesh", shutil.copy2), base_port)
        for folder in ("proto", "docs"):
            shutil.copytree(REPOSITORY / folder, copy.place / folder, ignore=shutil.ignore_patterns("__pycache__"))
        try:
            yield copy
        finally:
            copy.run("-m", "local", "down")


def add_toy(copy: Checkout) -> None:
    """Adds the toy service: its contract, its folder and its line. Everything else is generated."""
    shutil.copytree(TOY, copy.place, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
    services = copy.place / "mesh" / "services.py"
    services.write_text(re.sub(r"^\)$", '    "toy",\n)', services.read_text(), flags=re.MULTILINE))
    copy.run("proto/generate.py")
    copy.run("-m", "local.settings_table")
    copy.run("-m", "deploy", "render")


@pytest.mark.timeout(300)
async def test_a_service_of_one_contract_one_folder_and_one_line_is_called_and_gets_events(checkout: Checkout) -> None:
    add_toy(checkout)
    containers = yaml.safe_load((checkout.place / "docker-compose.yml").read_text())["services"]
    assert {"toy", "toy-migrate", "toy-worker"} <= containers.keys()
    # The service ops collects dead letters from it.
    assert checkout.run("-c", "from services.ops.config import RECEIVERS; print('toy' in RECEIVERS)") == "True\n"
    assert containers["ops"]["environment"]["STORYMESH_TOY_TARGET"] == "toy:50051"
    checkout.run("-m", "local", "up", *(part for name in COMPONENTS for part in ("--only", name)))
    auth = Database(checkout.database_url("auth"), pool=1)
    try:
        async with auth.transaction() as tx:
            await outbox.add(tx, auth_events_pb2.UserUpdated(user_id="somebody"), key="somebody")
    finally:
        await auth.close()
    async with httpx2.AsyncClient(base_url=f"http://{checkout.edge}") as http:

        async def counted() -> object:
            answer = await http.get("/v1/toys:countChanges")
            assert answer.status_code == 200, answer.text
            return answer.json()["changes"]

        assert await until(counted, seconds=30) == 2, "its setting of one machine says what each change counts"
        assert "/v1/toys:countChanges:" in (await http.get("/openapi.yaml")).text
    assert checkout.run("-c", CLIENT, checkout.edge) == "2\n"
