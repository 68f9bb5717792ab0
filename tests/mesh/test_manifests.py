"""A manifest that contradicts itself or another one is refused, with a sentence that names the service and the field."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from mesh.catalog import callees, check, manifests, read
from mesh.manifest import ERASURE, EVERY_SERVICE, INBOX, OUTBOX, Manifest, ManifestError

TAKER: dict[str, Any] = {"database": True, "workers": 1, "kit_tables": (INBOX,)}


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({"ports": 9}, "ports: 9 is not an even number"),
        ({"ports": 0}, "ports: 0 is not an even number of at least 2"),
        ({"workers": 5}, "workers: 5 do not fit into a block of 10 ports"),
        ({"workers": -1}, "workers: -1 do not fit"),
        ({"keys": ("Cursor-Key",)}, "keys: 'Cursor-Key' is not of the form"),
        ({"keys": ("mesh_key",)}, "keys and shared_keys: mesh_key stands there twice"),
        ({"private_settings": ("",)}, "private_settings: '' is not of the form"),
        ({"local_settings": {"smtp_host": "x"}}, "local_settings: 'smtp_host' is not of the form"),
        ({"calls": ("auth", "auth")}, "calls: auth stands there twice"),
        ({"calls": ("auth", EVERY_SERVICE)}, r"calls: \* stands alone"),
        ({**TAKER, "takes": {"toy": ()}}, r"takes\[toy\]: the inbox takes no event"),
        ({**TAKER, "takes": {"toy": ("Sung", "Sung")}}, r"takes\[toy\]: Sung stands there twice"),
        ({**TAKER, "takes": {"toy": ("toy.Sung",)}}, r"takes\[toy\]: 'toy.Sung' is not of the form"),
        ({**TAKER, "takes": {"toy": ("Sung",)}, "kit_tables": (ERASURE,)}, "takes: an inbox needs the tables INBOX"),
        ({**TAKER, "takes": {"toy": ("Sung",)}, "workers": 0}, "takes: an inbox needs a worker"),
        ({"kit_tables": (INBOX,)}, "kit_tables: the service has no database"),
        ({"database": True, "kit_tables": (OUTBOX,)}, "kit_tables: an outbox needs a worker"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(wrong: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ManifestError, match=sentence):
        Manifest(port=60, **wrong)


@pytest.mark.parametrize(
    ("toy", "sentence"),
    [
        ({"port": 12}, "auth and toy: port: the blocks 10-19 and 12-21 overlap"),
        ({"port": 0}, "toy: port: the block 0-9 lies outside of 10-179"),
        ({"port": 175}, "toy: port: the block 175-184 lies outside"),
        ({"calls": ("singer",)}, "toy: calls: there is no service singer; there are auth, story"),
        ({"calls": ("toy",)}, "toy: calls: a service does not call itself"),
        ({**TAKER, "takes": {"songs": ("UserDeleted",)}}, "toy: takes: the inbox songs is named neither toy nor toy-"),
        ({**TAKER, "takes": {"story": ("UserDeleted",)}}, "toy: takes: the inbox story is named neither"),
        ({"keys": ("seal_key",)}, "auth and toy: keys: seal_key is one's own and shared by the other"),
        ({"shared_keys": ("mesh_key", "code_pepper")}, "auth and toy: keys: code_pepper is one's own and shared"),
        ({"private_settings": ("SMTP_HOST",)}, "notification and toy: private_settings: SMTP_ and SMTP_HOST"),
    ],
)
def test_manifests_that_contradict_one_another_are_refused(toy: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ManifestError, match=sentence):
        check({**manifests(), "toy": Manifest(**{"port": 170, **toy})})


@pytest.mark.parametrize(
    ("services", "sentence"),
    [
        (("auth", "story", "auth"), "mesh/services.py: auth stands there twice"),
        (("auth", "Story"), "mesh/services.py: 'Story' is not of the form"),
        (("auth", "redis"), "mesh/services.py: redis is the name of something else"),
        (("auth", "nobody"), "services/nobody/manifest.py: No module named 'services.nobody'"),
    ],
)
def test_a_list_of_services_that_cannot_be_is_refused(services: tuple[str, ...], sentence: str) -> None:
    with pytest.raises(ManifestError, match=sentence):
        read(services)


def test_two_services_have_no_inbox_of_one_name() -> None:
    """`a-b` could be both an inbox of the service `a` and the inbox of a service `a-b`."""
    takes = {**TAKER, "takes": {"toy-tunes": ("UserDeleted",)}}
    with pytest.raises(ManifestError, match="both have an inbox toy-tunes"):
        check({"toy": Manifest(port=10, **takes), "toy-tunes": Manifest(port=20, **takes)})


def test_a_service_may_call_all_the_others() -> None:
    check({**manifests(), "toy": Manifest(port=170, calls=(EVERY_SERVICE,))})
    assert callees("notification") == manifests()["notification"].calls


def test_reading_every_manifest_loads_no_heavy_package() -> None:
    """Programs that run no service read them at each start: the edge's renderer, the deployment's `keys`, the runner."""
    script = (
        "import sys; before = set(sys.modules)\n"
        "from mesh.catalog import manifests; manifests()\n"
        "new = {name.partition('.')[0] for name in set(sys.modules) - before}\n"
        "print(*sorted(new - set(sys.stdlib_module_names)))"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert loaded.split() == ["mesh", "services"]
