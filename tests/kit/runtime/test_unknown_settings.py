"""A misspelt setting ends the process, with the name that was probably meant; what others put into the environment does not."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from kit.runtime import unknown_settings
from kit.runtime.settings import ServiceSettings, load
from local.settings_table import NAMES, NOT_IN_CLASSES, names, names_module
from mesh.services import SERVICES
from storymesh_client.command import VARIABLES, misspelt

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
WRITTEN_IN = (
    "README.md",
    "Makefile",
    "Dockerfile",
    "docker-compose.yml",
    "docs/**/*.md",
    "deploy/**/*",
    "storymesh_client/**/*.py",
)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("STORYMESH_ACCES_TOKEN_SECONDS", "STORYMESH_ACCESS_TOKEN_SECONDS"),
        ("STORYMESH_ACCESS_TOKEN_SECOND", "STORYMESH_ACCESS_TOKEN_SECONDS"),
        ("STORYMESH__WRITER", "STORYMESH_WRITER"),
        ("STORYMESH_OPENAI_APIKEY", "STORYMESH_OPENAI_API_KEY"),
        ("STORYMESH_SMPT_PORT", "STORYMESH_SMTP_PORT"),
        ("STORYMESH_AUTH_TAGRET", "STORYMESH_AUTH_TARGET"),
        ("STORYMESH_STATE_DRI", "STORYMESH_STATE_DIR"),
        ("STORYMESH_SECRET_DIR", "STORYMESH_SECRETS_DIR"),
        ("STORYMESH_TOKEN", "STORYMESH_TOKENS"),
        ("STORYMESH_WRITER ", "STORYMESH_WRITER"),
        # Programs that read variables in any case would take it, and those that do not would ignore it.
        ("storymesh_log_level", "STORYMESH_LOG_LEVEL"),
        ("Storymesh_Log_Levle", "STORYMESH_LOG_LEVEL"),
    ],
)
def test_a_misspelt_name_is_refused_with_the_nearest_one(name: str, meant: str) -> None:
    assert unknown_settings.in_environment({name: "value"}) == [(name, f"is no setting; the nearest one is {meant}")]


def test_a_name_like_no_other_is_refused_too() -> None:
    for name in ("STORYMESH_", "STORYMESH_X", "STORYMESH_ZZZZZZZZ", "STORYMESH_日本"):
        ((refused, sentence),) = unknown_settings.in_environment({name: ""})
        assert refused == name
        assert "the nearest one is STORYMESH_" in sentence


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *((name, "value") for name in sorted(names())),
        ("STORYMESH_AUTH_SERVICE_HOST", "10.0.0.1"),
        ("STORYMESH_AUTH_SERVICE_PORT_GRPC", "50051"),
        ("STORYMESH_AUTH_PORT", "tcp://10.0.0.1:50051"),
        ("STORYMESH_AUTH_PORT_50051_TCP_ADDR", "10.0.0.1"),
        ("MY_STORYMESH_WRITER", "value"),
        ("STORY", "value"),
    ],
)
def test_what_some_process_knows_and_what_is_not_ours_is_let_be(name: str, value: str) -> None:
    assert unknown_settings.in_environment({name: value}) == []


@pytest.mark.parametrize("module", SERVICES)
@pytest.mark.parametrize("name", ["STORYMESH_ACCES_TOKEN_SECONDS", "storymesh_log_level"])
def test_every_service_ends_with_78_and_shows_no_value(module: str, name: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", f"services.{module}", "serve"],
        env={"PATH": os.environ["PATH"], name: "hunter2"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 78
    assert f"{name}: is no setting; the nearest one is STORYMESH_" in ended.stderr
    assert "hunter2" not in ended.stderr


def test_the_edge_ends_with_78() -> None:
    ended = subprocess.run(
        [sys.executable, "envoy", "render"],
        env={"PATH": os.environ["PATH"], "STORYMESH_LISTN": "127.0.0.1:1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 78
    assert ended.stderr == "edge: STORYMESH_LISTN is no setting; the nearest one is STORYMESH_LISTEN\n"


def test_a_misspelt_secrets_file_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (
        "storymesh_smtp_pasword",
        "storymesh_mesh_key",
        "storymesh_seal_key",
        "storymesh_mesh_key.bak",
        "..data",
    ):
        (tmp_path / name).write_text("c" * 43)
    monkeypatch.setenv("STORYMESH_SECRETS_DIR", str(tmp_path))
    with pytest.raises(SystemExit, match="78"):
        load(ServiceSettings)
    assert capsys.readouterr().err == (
        "storymesh_smtp_pasword: a secret's file is named like no setting; the nearest name is storymesh_smtp_password\n"
    )
    (tmp_path / "storymesh_smtp_pasword").unlink()
    assert load(ServiceSettings)


def test_the_list_of_names_is_what_the_classes_say() -> None:
    assert NAMES.read_text() == names_module(), "run: make settings"


def test_every_name_that_is_written_down_is_one() -> None:
    written = {
        name
        for pattern in WRITTEN_IN
        for path in ROOT.glob(pattern)
        if path.is_file() and path.suffix != ".pyc"
        for name in re.findall(r"\bSTORYMESH_\w*[A-Z]\b(?!\*)", path.read_text())
    }
    # Compose passes a former setting on, so that the service refuses it.
    assert written - names() == {"STORYMESH_SMTP_START_TLS"}
    assert {f"STORYMESH_{name}" for name in NOT_IN_CLASSES} - written == set()


@pytest.mark.parametrize(
    "name", ["STORYMESH_EDG", "STORYMESH_EDGES", "STORYMESH_EGDE", "storymesh_edge", "STORYMESH_TOKEN"]
)
def test_the_command_refuses_its_own_variablesmisspelt(name: str) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "storymesh_client", "whoami"],
        env={"PATH": os.environ["PATH"], name: "127.0.0.1:1"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 2
    assert ended.stderr.startswith(f"{name} has no meaning; the nearest variable that has one is STORYMESH_")


def test_the_command_lets_other_settings_of_the_mesh_be() -> None:
    for name in names():
        assert misspelt([name]) == ""
    assert names() >= set(VARIABLES.values())
