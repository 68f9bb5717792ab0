"""docker-compose.yml, checked without a container engine: each process gets the settings and secrets it requires, and no more."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from deploy import buckets, compose, keys
from deploy.__main__ import main
from deploy.process_settings import SETTINGS
from kit.runtime.settings import DatabaseSettings, ServiceSettings, load
from local.mesh.components import s3
from local.mesh.reservation import reserved_ports
from mesh.catalog import FIRST_STORE_PORT, manifests
from mesh.manifest import OBJECT_STORE, Manifest

ROOT = Path(__file__).parents[2]
SERVICES: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
PROCESSES = {
    name: each for name, each in SERVICES.items() if any("services." in part for part in each.get("command", [])[:3])
}


@pytest.fixture(scope="module")
def secrets(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secrets")
    keys.make(folder, manifests())
    return folder


def expanded(value: str, environment: dict[str, str]) -> str:
    """The value with the caller's variables substituted as compose does it, innermost first."""
    while (
        replaced := re.sub(r"\$\{(\w+):-([^${}]*)\}", lambda found: environment.get(found[1]) or found[2], value)
    ) != value:
        value = replaced
    assert "$" not in value
    return value


def environment_of(name: str, caller: dict[str, str]) -> dict[str, str]:
    """What compose gives the container: a variable without a value is the caller's, or left out."""
    given = SERVICES[name]["environment"]
    passed = {variable: caller[variable] for variable, value in given.items() if value is None and variable in caller}
    return passed | {variable: expanded(value, caller) for variable, value in given.items() if value is not None}


def settings_of(name: str) -> type[ServiceSettings]:
    """The settings that the process loads."""
    _, _, module, command = PROCESSES[name]["command"]
    if command == "migrate":
        return DatabaseSettings
    config = importlib.import_module(f"{module}.config")
    found = [
        each
        for each in vars(config).values()
        if isinstance(each, type)
        and each.__module__ == config.__name__
        and issubclass(each, ServiceSettings)
        and each.__name__.endswith("WorkerSettings") == (command == "worker")
    ]
    # What several processes share stands in classes from which theirs derive.
    (settings,) = [each for each in found if not any(issubclass(other, each) for other in found if other != each)]
    return settings


INSIDE = re.compile(r"STORYMESH_(ENVIRONMENT|LISTEN|METRICS_LISTEN|[A-Z]+_TARGET)")
"""What the containers decide among themselves."""


@pytest.mark.parametrize("name", PROCESSES)
def test_each_process_takes_every_setting_that_it_reads_from_the_callers_environment(name: str, secrets: Path) -> None:
    made = {path.name.upper() for path in (secrets / PROCESSES[name]["volumes"][0]["volume"]["subpath"]).iterdir()}
    read = {f"STORYMESH_{field.upper()}" for field in settings_of(name).model_fields}
    caller = dict.fromkeys(read, "the caller's")
    given = environment_of(name, caller)
    taken = {variable for variable, value in given.items() if value == "the caller's"}
    assert taken == {variable for variable in read if variable not in made and not INSIDE.fullmatch(variable)}


@pytest.mark.parametrize("name", PROCESSES)
def test_what_the_caller_does_not_set_keeps_the_default_of_the_process(name: str) -> None:
    assert "" not in environment_of(name, {}).values()


def test_a_server_is_given_no_secret_that_its_workers_alone_need() -> None:
    caller = {"STORYMESH_SMTP_PASSWORD": "s", "STORYMESH_OPENAI_API_KEY": "k"}
    for worker, variable in (
        ("notification-worker", "STORYMESH_SMTP_PASSWORD"),
        ("story-worker", "STORYMESH_OPENAI_API_KEY"),
    ):
        assert environment_of(worker, caller)[variable] == caller[variable]
        assert variable not in environment_of(worker.removesuffix("-worker"), caller)


@pytest.mark.parametrize("name", PROCESSES)
def test_each_process_is_given_every_setting_that_it_requires(name: str, secrets: Path) -> None:
    process = PROCESSES[name]
    module = process["command"][2]
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
    module = PROCESSES[name]["command"][2]
    for variable, value in environment_of(name, {}).items():
        monkeypatch.setenv(variable, value)
    monkeypatch.setenv("STORYMESH_SECRETS_DIR", str(secrets / module.rpartition(".")[2]))
    assert load(settings_of(name)).environment == "production"


def test_the_server_of_stories_is_told_of_the_same_writer_as_the_workers() -> None:
    assert SERVICES["story"]["environment"]["STORYMESH_WRITER"] == "${STORYMESH_WRITER:-composer}"
    assert SERVICES["story-worker"]["environment"]["STORYMESH_WRITER"] == "${STORYMESH_WRITER:-composer}"


def test_whatever_a_service_waits_for_exists() -> None:
    for each in SERVICES.values():
        assert each.get("depends_on", {}).keys() <= SERVICES.keys()


@pytest.mark.parametrize("name", ["storymesh_seal_key", "storymesh_cursor_key"])
def test_a_key_that_came_later_is_added_and_nothing_else_changes(tmp_path: Path, name: str) -> None:
    keys.make(tmp_path, manifests())
    before = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    late = tmp_path / "auth" / name
    late.unlink()
    keys.make(tmp_path, manifests())
    after = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path for path in after if after[path] != before[path]} == (
        {late} if name == "storymesh_cursor_key" else set()
    )


def test_keys_are_made_once_and_shared_only_where_they_must_be(secrets: Path) -> None:
    before = {path: path.read_text() for path in secrets.rglob("*") if path.is_file()}
    keys.make(secrets, manifests())
    assert {path: path.read_text() for path in secrets.rglob("*") if path.is_file()} == before
    holders: dict[str, set[str]] = {}
    for path, value in before.items():
        assert stat.S_IMODE(path.stat().st_mode) == 0o444
        holders.setdefault(value, set()).add(path.parent.name)
    shared = sorted(sorted(services) for services in holders.values() if len(services) > 1)
    listed = {key for each in manifests().values() for key in each.shared_keys}
    assert shared == sorted(
        sorted(name for name, each in manifests().items() if key in each.shared_keys) for key in listed
    )


def test_what_lies_in_the_repository_is_what_the_manifests_say() -> None:
    assert (ROOT / "docker-compose.yml").read_text() == compose.rendered()


@pytest.mark.parametrize("name", SERVICES)
def test_each_container_is_confined(name: str) -> None:
    each = SERVICES[name]
    assert each["cap_drop"] == ["ALL"]
    assert "cap_add" not in each
    assert "privileged" not in each
    assert each["security_opt"] == ["no-new-privileges:true"]
    assert each["read_only"] is True
    assert re.fullmatch(r"\d+:\d+", each["user"])
    assert re.fullmatch(r"\d+[MG]", each["deploy"]["resources"]["limits"]["memory"])
    assert each["image"] == "storymesh" or re.search(r":v?\d+\.\d+(\.\d+)?$", each["image"])


def test_only_what_fills_the_secrets_volume_runs_as_root() -> None:
    assert {name for name, each in SERVICES.items() if each["user"].startswith("0:")} == {"keys"}
    writers = {name for name, each in SERVICES.items() if "secrets:/secrets" in each.get("volumes", [])}
    assert writers == {"keys"}


def test_what_serves_is_started_again_and_what_runs_to_its_end_is_not() -> None:
    steps = {name for name, each in SERVICES.items() if each["restart"] == "no"}
    assert steps == {"keys", "stores"} | {f"{name}-migrate" for name, each in manifests().items() if each.database}
    assert {each["restart"] for name, each in SERVICES.items() if name not in steps} == {"unless-stopped"}
    awaited = {
        name
        for each in SERVICES.values()
        for name, how in each.get("depends_on", {}).items()
        if how["condition"] == compose.HEALTHY
    }
    assert all("test" in SERVICES[name]["healthcheck"] for name in awaited | {"envoy", "postgres", "redis"})


def test_every_service_waits_for_the_stores_to_know_it() -> None:
    def before(name: str) -> set[str]:
        own = set(SERVICES[name].get("depends_on", {}))
        return own.union(*map(before, own))

    assert all({"keys", "stores"} <= before(name) for name in PROCESSES)


def test_ports_are_published_to_loopback_unless_a_variable_says_otherwise() -> None:
    published = {
        name: [expanded(port, {}) for port in each["ports"]] for name, each in SERVICES.items() if "ports" in each
    }
    assert published == {
        "mailpit": ["127.0.0.1:8025:8025"],
        "jaeger": ["127.0.0.1:16686:16686"],
        "s3": ["127.0.0.1:8333:8333"],
        "envoy": ["127.0.0.1:8080:8080"],
    }
    elsewhere = {"STORYMESH_PUBLISH_ADDRESS": "0.0.0.0", "STORYMESH_PORT": "80"}
    assert expanded(SERVICES["envoy"]["ports"][0], elsewhere) == "0.0.0.0:80:8080"


def test_mail_and_the_public_address_come_from_the_callers_environment() -> None:
    own = {
        "STORYMESH_SMTP_HOST": "smtp.example.org",
        "STORYMESH_SMTP_PASSWORD": "s",
        "STORYMESH_PUBLIC_URL": "https://example.org",
    }
    assert own.items() <= environment_of("notification-worker", own).items()
    assert environment_of("notification-worker", {})["STORYMESH_SMTP_HOST"] == "mailpit"
    elsewhere = environment_of("notification-worker", {"STORYMESH_PORT": "9000"})
    assert elsewhere["STORYMESH_PUBLIC_URL"] == "http://127.0.0.1:9000"


def test_the_former_setting_of_tls_with_the_mail_server_does_not_go_unheard() -> None:
    """The worker refuses its value, and names the setting that replaced it."""
    given = SERVICES["notification-worker"]["environment"]["STORYMESH_SMTP_TLS"]
    assert expanded(given, {}) == "opportunistic"
    assert expanded(given, {"STORYMESH_SMTP_START_TLS": "true"}) == "true"
    assert expanded(given, {"STORYMESH_SMTP_START_TLS": "true", "STORYMESH_SMTP_TLS": "starttls"}) == "starttls"


def copied_into_the_image() -> list[str]:
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    return [word for line in lines if line.startswith("COPY ") and "--from" not in line for word in line.split()[1:-1]]


IMPORTING = """
import importlib, pathlib, sys
here = pathlib.Path.cwd()
# Neither this checkout nor what an editable install points to.
sys.path = [each for each in sys.path if "lib/python" in each or each.endswith(".zip")]
sys.path[:0] = [str(here), str(here / "gen"), str(here / "envoy")]
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def test_the_image_holds_every_module_that_its_processes_import(tmp_path: Path) -> None:
    for name in copied_into_the_image():
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
    modules = {each["command"][2] for each in SERVICES.values() if each.get("command", [])[:2] == ["python", "-m"]}
    names = [*(f"{name}.__main__" for name in sorted(modules)), "kit.runtime.probe", "edge.bootstrap", "edge.process"]
    command = [sys.executable, "-c", IMPORTING, *names]
    own = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    imported = subprocess.run(command, cwd=tmp_path, env=own, capture_output=True, text=True, timeout=100, check=False)
    assert imported.returncode == 0, imported.stderr


def test_the_image_is_built_from_what_the_build_gets_to_see() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    kept = [line[1:] for line in ignored if line.startswith("!")]
    copied = copied_into_the_image()
    assert {name for name in copied if not f"{name}/".startswith(tuple(f"{each}/" for each in kept))} == set()
    assert {"kit", "mesh", "services", "gen", "envoy", "deploy"} <= set(copied)


def test_envoy_accepts_the_settings_that_its_container_is_started_with() -> None:
    python, *begin, verb = SERVICES["envoy"]["command"][:3]
    assert (python, begin, verb) == ("python", ["envoy"], "serve")
    check = [sys.executable, "envoy", "check", *SERVICES["envoy"]["command"][3:]]
    checked = subprocess.run(check, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_envoy_serves_what_its_health_check_asks_for() -> None:
    admin = next(each for each in SERVICES["envoy"]["command"] if each.startswith("admin=")).removeprefix("admin=")
    assert f"http://{admin}/ready" in SERVICES["envoy"]["healthcheck"]["test"][-1]
    compile(SERVICES["envoy"]["healthcheck"]["test"][-1], "health check", "exec")


def test_help_explains_the_commands_and_makes_no_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for command in ([], ["render"], ["keys"], ["stores"]):
        main([*command, "--help"])
        assert "keys FOLDER" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.fixture
def with_toy(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The containers of a mesh one of whose services keeps objects."""
    others = {name: replace(each, needs=tuple(set(each.needs) - {OBJECT_STORE})) for name, each in manifests().items()}
    toy = Manifest(port=170, workers=1, needs=(OBJECT_STORE,))
    monkeypatch.setattr(compose, "manifests", lambda: {**others, "toy": toy})
    monkeypatch.setattr(compose, "callees", lambda service: ())
    monkeypatch.setattr(compose, "SETTINGS", {**SETTINGS, "toy": ("S3_SECONDS",), "toy-worker": ("S3_SECONDS",)})
    return compose.document()


def test_the_object_store_runs_in_a_container_where_a_service_needs_it(with_toy: dict[str, Any]) -> None:
    containers = with_toy["services"]
    store = containers["s3"]
    options = dict(part[1:].split("=", 1) for part in store["command"] if part.startswith("-"))
    assert (store["command"][0], store["image"], store["stop_signal"]) == ("weed", "storymesh", "SIGKILL")
    # S3 alone is for other containers.
    assert (options["ip.bind"], options["s3.ip.bind"], options["s3.port"]) == ("127.0.0.1", "0.0.0.0", "8333")
    assert (options["disableHttp"], options["filer.disableHttp"]) == ("true", "true")
    assert options["s3.config"] == "/secrets/keys.json"
    assert (store["working_dir"], store["environment"]["HOME"]) == ("/secrets", "/secrets")
    assert store["volumes"][0] == "objects:/objects"
    assert store["volumes"][1]["volume"] == {"subpath": "s3"}
    assert "objects" in with_toy["volumes"]
    assert [expanded(port, {}) for port in store["ports"]] == ["127.0.0.1:8333:8333"]
    assert containers["stores"]["depends_on"]["s3"]["condition"] == compose.HEALTHY
    assert containers["stores"]["command"][-2:] == ["--origins", "${STORYMESH_S3_ORIGINS:-}"]
    for name in ("toy", "toy-worker"):
        given = {each: expanded(value, {}) for each, value in containers[name]["environment"].items() if value}
        assert {each: value for each, value in given.items() if "_S3_" in each} == {
            "STORYMESH_S3_ENDPOINT": "http://s3:8333",
            "STORYMESH_S3_PUBLIC_ENDPOINT": "http://127.0.0.1:8333",
            "STORYMESH_S3_REGION": "us-east-1",
            "STORYMESH_S3_BUCKET": "storymesh-toy",
            "STORYMESH_S3_ACCESS_KEY": "storymesh-toy",
        }
        public = containers[name]["environment"]["STORYMESH_S3_PUBLIC_ENDPOINT"]
        assert expanded(public, {"STORYMESH_S3_PORT": "9000"}) == "http://127.0.0.1:9000"
        assert expanded(public, {"STORYMESH_S3_PUBLIC_ENDPOINT": "https://files.example"}) == "https://files.example"


def test_a_service_that_keeps_objects_gets_a_key_of_its_own_and_the_store_all_of_them(tmp_path: Path) -> None:
    holders = {"toy": Manifest(port=170, needs=(OBJECT_STORE,)), "other": Manifest(port=160, needs=(OBJECT_STORE,))}
    keys.make(tmp_path, {**manifests(), **holders})
    before = {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()}
    keys.make(tmp_path, {**manifests(), **holders})
    assert {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()} == before
    listed = {each["name"]: each for each in json.loads((tmp_path / "s3" / "keys.json").read_text())["identities"]}
    secrets = {name: each["credentials"][0]["secretKey"] for name, each in listed.items()}
    assert secrets["toy"] == (tmp_path / "toy" / "storymesh_s3_secret_key").read_text()
    assert secrets["operator"] == (tmp_path / "s3" / "operator").read_text()
    assert len(set(secrets.values())) == len(secrets) >= 3
    assert listed["toy"]["actions"] == ["Read:storymesh-toy", "Write:storymesh-toy", "List:storymesh-toy"]
    assert "storymesh_s3_secret_key" in keys.secrets_of(holders["toy"])
    for path in (tmp_path / "s3").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o444


def test_the_store_s_container_serves_its_bucket_with_these_options_and_secrets(
    tmp_path: Path, with_toy: dict[str, Any]
) -> None:
    """Runs its command here, with folders of this machine instead of its mounts."""
    holders = {"toy": Manifest(port=170, needs=(OBJECT_STORE,))}
    keys.make(tmp_path, holders)
    folder, data = tmp_path / "s3", tmp_path / "objects"
    data.mkdir()
    for path in folder.iterdir():
        path.chmod(0o644)
        path.write_text(path.read_text().replace("/secrets/", f"{folder}/"))
    store = with_toy["services"]["s3"]
    with reserved_ports() as base:
        ports = {option: base + FIRST_STORE_PORT + number for number, option in enumerate(s3.PORTS)}
        own = {"s3.config": f"{folder}/keys.json", "dir": str(data), "s3.ip.bind": "127.0.0.1"}
        changed = own | {option: str(port) for option, port in ports.items()}
        given = dict(part[1:].split("=", 1) for part in store["command"][3:]) | changed
        command = [str(s3.program()), *store["command"][1:3], *(f"-{name}={value}" for name, value in given.items())]
        environment = os.environ | store["environment"] | {"HOME": str(folder)}
        with subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.DEVNULL) as process:
            try:
                endpoint, secret = f"http://127.0.0.1:{ports['s3.port']}", (folder / "operator").read_text()
                deadline = time.monotonic() + 40
                while True:
                    try:
                        asyncio.run(buckets.provision(endpoint, secret, holders, origins=["https://app.example.com"]))
                        break
                    except buckets.BucketsFailed:
                        assert time.monotonic() < deadline
                        time.sleep(0.1)
                with urllib.request.urlopen(f"{endpoint}/healthz", timeout=5) as answer:
                    assert answer.status == 200
                assert "/healthz" in store["healthcheck"]["test"][-1]
                with pytest.raises(buckets.BucketsFailed, match="403"):
                    asyncio.run(buckets.answers(endpoint, "another"))
            finally:
                process.kill()
                s3._remove_sockets(ports.values())
