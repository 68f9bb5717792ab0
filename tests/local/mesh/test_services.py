"""The process table: each process gets what it needs, and no other service's secrets."""

import importlib
import stat
from pathlib import Path

import pytest

from kit.runtime.settings import ServiceSettings
from local.failures import LocalError
from local.layout import Layout, port_offsets
from local.mesh import credentials, writers
from local.mesh.components import services
from local.mesh.writers import LocalWriter
from mesh.catalog import FIRST_SPARE_PORT, manifests
from mesh.manifest import OBJECT_STORE
from mesh.services import SERVICES

MESH_KEY = "storymesh_mesh_key"


def files(layout: Layout, service: str) -> set[str]:
    return {path.name for path in (layout.secrets / service).iterdir()}


def test_each_service_finds_its_own_secrets_and_no_others(layout: Layout) -> None:
    layout.create()
    services.share_secrets(layout)
    for service, manifest in manifests().items():
        addresses = {"redis_url"} | ({"database_url"} if manifest.database else set())
        objects = {"s3_secret_key"} if OBJECT_STORE in manifest.needs else set()
        assert files(layout, service) == {f"storymesh_{name}" for name in {*manifest.all_keys} | addresses | objects}
    for path in layout.secrets.rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


def test_a_shared_secret_is_the_same_for_all_and_survives_the_loss_of_one_copy(layout: Layout) -> None:
    layout.create()
    services.share_secrets(layout)
    seal = [layout.secrets / service / "storymesh_seal_key" for service in ("auth", "notification")]
    before = seal[0].read_text()
    assert seal[1].read_text() == before
    seal[0].unlink()
    services.share_secrets(layout)
    assert [path.read_text() for path in seal] == [before, before]


def test_keys_of_the_same_name_differ_between_services_unless_they_are_shared(layout: Layout) -> None:
    layout.create()
    services.share_secrets(layout)
    values = [
        (layout.secrets / service / f"storymesh_{key}").read_text()
        for service, manifest in manifests().items()
        for key in manifest.keys
    ]
    assert len(set(values)) == len(values)


def test_what_is_made_is_marked_and_what_a_mesh_has_without_a_mark_stays(layout: Layout) -> None:
    layout.create()
    unmarked = layout.secrets / "auth" / MESH_KEY
    credentials.write(unmarked, "m" * 43)
    services.share_secrets(layout)
    for service, manifest in manifests().items():
        folder = layout.secrets / service
        assert (folder / MESH_KEY).read_text() == "m" * 43
        assert ":development-" in (folder / "storymesh_redis_url").read_text()
        for key in manifest.keys:
            assert (folder / f"storymesh_{key}").read_text().startswith("development.")


def test_a_password_needs_no_escaping_in_a_url() -> None:
    assert all(character.isalnum() or character in "-_" for character in credentials.password())


def test_a_setting_of_one_service_reaches_no_other(layout: Layout, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORYMESH_OPENAI_API_KEY", "sk-secret")
    monkeypatch.setenv("STORYMESH_CODE_PEPPER", "pepper")
    monkeypatch.setenv("STORYMESH_LOG_LEVEL", "DEBUG")
    monkeypatch.setenv("STORYMESH_LISTEN", "0.0.0.0:1")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "unrelated")
    processes = {each.name: each.environment for each in services.components(layout, LocalWriter("openai"))}
    holders = {name for name, environment in processes.items() if "STORYMESH_OPENAI_API_KEY" in environment}
    assert holders == {"story-migrate", "story", "story-worker-1", "story-worker-2"}
    assert {name for name, each in processes.items() if "STORYMESH_CODE_PEPPER" in each} == {
        "auth-migrate",
        "auth",
        "auth-worker",
    }
    for name, environment in processes.items():
        assert environment["STORYMESH_LOG_LEVEL"] == "DEBUG"
        assert environment.get("STORYMESH_LISTEN") == (None if name.endswith("-migrate") else layout.address(name))
        assert "AWS_SECRET_ACCESS_KEY" not in environment


def test_the_server_of_stories_is_told_of_the_same_writer_as_the_workers(layout: Layout) -> None:
    told = {
        each.name: each.environment["STORYMESH_WRITER"]
        for each in services.components(layout, LocalWriter("openai"))
        if "STORYMESH_WRITER" in each.environment
    }
    assert told.keys() >= {"story", "story-worker-1", "story-worker-2"}
    assert set(told.values()) == {"openai"}


@pytest.mark.parametrize("service", manifests())
def test_each_service_is_told_every_setting_it_requires(layout: Layout, service: str) -> None:
    layout.create()
    services.share_secrets(layout)
    config = importlib.import_module(f"services.{service}.config")
    required = {
        f"STORYMESH_{name.upper()}"
        for each in vars(config).values()
        if isinstance(each, type) and issubclass(each, ServiceSettings)
        for name, field in each.model_fields.items()
        if field.is_required()
    }
    provided = {name.upper() for name in files(layout, service)}
    for each in services.components(layout, LocalWriter("composer")):
        if each.command[2] == f"services.{service}":
            provided |= each.environment.keys()
    assert required - provided == set()


def test_every_process_listens_on_ports_of_its_own(layout: Layout) -> None:
    """Each process has a port for calls and one for metrics."""
    processes = [each for each in services.components(layout, LocalWriter("composer")) if each.ports]
    ports = [port.number for each in processes for port in each.ports]
    assert len(ports) == len(set(ports)) == 2 * len(processes) > 2 * len(SERVICES)
    for each in processes:
        assert each.environment["STORYMESH_METRICS_LISTEN"] == f"127.0.0.1:{each.ports[1].number}"


def test_no_two_components_share_a_port_however_many_workers_write() -> None:
    offsets = port_offsets().values()
    assert len(offsets) == len(set(offsets))
    # The test's edge has one of the last ten ports.
    assert max(offsets) < FIRST_SPARE_PORT


@pytest.mark.parametrize(
    ("chosen", "sentence"),
    [
        ({"writer": "quill"}, "none of local, openai, composer"),
        ({"writer": "local", "model_path": Path("/nonexistent.gguf")}, "cannot work because"),
    ],
)
def test_a_writer_that_cannot_work_is_refused(layout: Layout, chosen: dict[str, object], sentence: str) -> None:
    with pytest.raises(LocalError, match=sentence):
        writers.choose(layout.settings.model_copy(update=chosen))


def test_without_a_model_the_composer_writes_and_that_is_said(layout: Layout) -> None:
    chosen = writers.choose(layout.settings.model_copy(update={"writer": "", "model_path": Path("/nonexistent.gguf")}))
    assert chosen.name == "composer"
    assert "Stories come from the writer `composer` because" in chosen.note
