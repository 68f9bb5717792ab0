"""The client's distribution needs nothing else of the repository, and installs no top-level package but its own."""

from __future__ import annotations

import email
import subprocess
from pathlib import Path
from zipfile import ZipFile

import pytest

from tests.client.edge import LOGIN, PASSWORD
from tests.client.installed import Installed
from tests.client.test_command import Terminal

pytestmark = pytest.mark.slow

IMPORT_ALL = """
import importlib, pkgutil, storymesh, storymesh_client
for package in (storymesh, storymesh_client):
    for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
        if not module.name.endswith(".__main__"):
            print(importlib.import_module(module.name).__file__)
"""


def test_the_wheel_claims_two_names_and_needs_three_packages(installed_client: Installed) -> None:
    with ZipFile(installed_client.wheel) as wheel:
        names = wheel.namelist()
        (metadata,) = (wheel.read(name).decode() for name in names if name.endswith("/METADATA"))
    claimed = {name.split("/")[0] for name in names if ".dist-info/" not in name}
    assert claimed == {"storymesh", "storymesh_client"}
    assert {"storymesh/py.typed", "storymesh_client/py.typed", "storymesh/stubs.py"} <= set(names)
    needed = email.message_from_string(metadata).get_all("Requires-Dist") or []
    assert {each.split(">")[0] for each in needed} == {"googleapis-common-protos", "grpcio", "protobuf"}


def test_every_module_of_it_can_be_imported_where_nothing_else_is_installed(
    installed_client: Installed, tmp_path: Path
) -> None:
    imported = subprocess.run(
        [installed_client.python, "-I", "-c", IMPORT_ALL], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert imported.returncode == 0, imported.stderr
    modules = imported.stdout.splitlines()
    assert len(modules) > 30
    assert all(Path(module).is_relative_to(installed_client.environment) for module in modules), modules


async def test_its_command_signs_in(installed_client: Installed, target: str, file: Path) -> None:
    storymesh = Terminal(target, file, command=(str(installed_client.command),))
    assert (await storymesh("--help")).out.startswith("usage: storymesh")
    outcome = await storymesh("sign-in", LOGIN, "--password-stdin", stdin=f"{PASSWORD}\n")
    assert (outcome.code, outcome.out) == (0, f"Signed in as {LOGIN}.\n"), outcome.err
