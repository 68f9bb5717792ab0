"""The mesh in containers, as far as it can be told without an engine: each process gets what it requires, and no more."""

from __future__ import annotations

import importlib
import re
import runpy
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

from kit.runtime.settings import DatabaseSettings, ServiceSettings, load

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
PROCESSES = {name: each for name, each in SERVICES.items() if "-m services." in str(each.get("command"))}


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secrets")
    runpy.run_path(str(ROOT / "deploy" / "keys.py"))["main"](folder)
    return folder


@pytest.mark.parametrize("name", PROCESSES)
def test_each_process_is_given_every_setting_that_it_requires(name: str, secrets: Path) -> None:
    process = PROCESSES[name]
    module = process["command"].split()[2]
    service = module.rpartition(".")[2]
    (mount,) = process["volumes"]
    assert mount["volume"]["subpath"] == service
    given = {path.name.upper() for path in (secrets / service).iterdir()} | process["environment"].keys()
    config = importlib.import_module(f"{module}.config")
    required = {
        f"STORYMESH_{field_name.upper()}"
        for each in vars(config).values()
        if isinstance(each, type) and issubclass(each, ServiceSettings)
        for field_name, field in each.model_fields.items()
        if field.is_required()
    }
    assert required - given == set()


@pytest.mark.parametrize("name", PROCESSES)
def test_each_process_starts_in_production_with_the_secrets_that_are_made(
    name: str, secrets: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, _, module, command = PROCESSES[name]["command"].split()
    for variable, value in PROCESSES[name]["environment"].items():
        monkeypatch.setenv(variable, re.sub(r"\$\{\w+:-(.*)\}", r"\1", value))
    monkeypatch.setenv("STORYMESH_SECRETS_DIR", str(secrets / module.rpartition(".")[2]))
    settings: type[ServiceSettings] = DatabaseSettings
    if command != "migrate":
        config = importlib.import_module(f"{module}.config")
        (settings,) = (
            each
            for each in vars(config).values()
            if isinstance(each, type)
            and each.__module__ == config.__name__
            and issubclass(each, ServiceSettings)
            and each.__name__.endswith("WorkerSettings") == (command == "worker")
        )
    assert load(settings).environment == "production"


def test_the_server_of_stories_is_told_of_the_same_writer_as_the_workers() -> None:
    assert SERVICES["story"]["environment"]["STORYMESH_WRITER"] == "${STORYMESH_WRITER:-composer}"
    assert SERVICES["story-worker"]["environment"]["STORYMESH_WRITER"] == "${STORYMESH_WRITER:-composer}"


def test_whatever_a_service_waits_for_exists() -> None:
    for each in SERVICES.values():
        assert each.get("depends_on", {}).keys() <= SERVICES.keys()


@pytest.mark.parametrize("name", ["storymesh_seal_key", "storymesh_cursor_key"])
def test_a_key_that_came_later_is_added_and_nothing_else_changes(tmp_path: Path, name: str) -> None:
    make = runpy.run_path(str(ROOT / "deploy" / "keys.py"))["main"]
    make(tmp_path)
    before = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    late = tmp_path / "auth" / name
    late.unlink()
    make(tmp_path)
    after = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path for path in after if after[path] != before[path]} == (
        {late} if name == "storymesh_cursor_key" else set()
    )


def test_keys_are_made_once_and_shared_only_where_they_must_be(secrets: Path) -> None:
    before = {path: path.read_text() for path in secrets.rglob("*") if path.is_file()}
    runpy.run_path(str(ROOT / "deploy" / "keys.py"))["main"](secrets)
    assert {path: path.read_text() for path in secrets.rglob("*") if path.is_file()} == before
    holders: dict[str, set[str]] = {}
    for path, value in before.items():
        assert stat.S_IMODE(path.stat().st_mode) == 0o444
        holders.setdefault(value, set()).add(path.parent.name)
    shared = sorted(sorted(services) for services in holders.values() if len(services) > 1)
    assert shared == [["auth", "notification"], ["auth", "notification", "ratelimit", "story"]]
