"""A manifest agrees with the code of its service."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from kit.runtime.settings import ServiceSettings
from mesh.catalog import manifests
from mesh.manifest import EVERY_SERVICE
from mesh.services import SERVICES

REPOSITORY = Path(__file__).resolve().parents[2]

every_service = pytest.mark.parametrize("service", SERVICES)


def settings_of(service: str) -> set[str]:
    """Names of all settings that the service's processes read."""
    config = importlib.import_module(f"services.{service}.config")
    classes = (each for each in vars(config).values() if isinstance(each, type) and issubclass(each, ServiceSettings))
    return {name for each in classes for name in each.model_fields}


@every_service
def test_every_setting_that_a_manifest_names_is_one_of_the_service(service: str) -> None:
    manifest, known = manifests()[service], settings_of(service)
    suggested = {*manifest.local_settings, *manifest.container_settings, *manifest.worker_container_settings}
    assert {name.lower() for name in suggested} - known == set()
    assert set(manifest.all_keys) - known == set()
    for beginning in manifest.private_settings:
        assert any(name.upper().startswith(beginning) for name in known), f"{beginning} begins no setting"


@every_service
def test_a_service_reads_the_address_of_every_service_that_it_names_as_called(service: str) -> None:
    calls = set(manifests()[service].calls) - {EVERY_SERVICE}
    assert {f"{callee}_target" for callee in calls} - settings_of(service) == set()


def test_every_folder_of_a_service_is_in_the_list() -> None:
    folders = {path.parent.name for path in REPOSITORY.glob("services/*/__main__.py")}
    assert folders == set(SERVICES)
