"""Settings: where they come from, and what a person reads who got one wrong."""

from __future__ import annotations

import base64
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from services.kit.settings import DatabaseSettings, load

KEY = base64.urlsafe_b64encode(b"\xfb\xff" * 16).decode()  # holds the two characters in which the alphabets differ
URL = "postgresql+psycopg://role:hunter2@127.0.0.1:5432/auth"


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Sets settings in the environment, by their names without the prefix."""

    def give(**settings: str) -> None:
        for name, value in settings.items():
            monkeypatch.setenv(f"STORYMESH_{name}", value)

    return give


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[[], list[str]]:
    """Loads settings that are not good and returns the lines that tell so."""

    def load_in_vain() -> list[str]:
        with pytest.raises(SystemExit) as ended:
            load(DatabaseSettings)
        assert ended.value.code == 78
        return capsys.readouterr().err.splitlines()

    return load_in_vain


def test_a_process_without_its_settings_says_so_and_ends_with_78() -> None:
    script = "from services.kit.settings import DatabaseSettings, load; load(DatabaseSettings)"
    ended = subprocess.run([sys.executable, "-c", script], env={}, capture_output=True, text=True, check=False)
    assert ended.returncode == 78
    assert ended.stderr.splitlines() == ["STORYMESH_MESH_KEY: is not set", "STORYMESH_DATABASE_URL: is not set"]


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("MESH_KEY", "s3cret", "needs at least 32 random bytes"),
        ("MESH_KEY", "", "needs at least 32 random bytes"),
        ("MESH_KEY", "s3cretxx!!!!" * 6, "is not base64url"),
        ("MESH_KEY", "s3cretü" * 9, "is not base64url"),
        ("DATABASE_URL", "s3cret", "needs the form postgresql+psycopg://"),
        ("DATABASE_URL", "mysql://u:s3cret@h/d", "needs the form postgresql+psycopg://"),
        ("REDIS_URL", "http://:s3cret@h", "needs the form redis://"),
        ("DATABASE_POOL", "s3cret", "valid integer"),
        ("DATABASE_POOL", "0", "greater than or equal to 1"),
        ("LOG_LEVEL", "s3cret", "'DEBUG', 'INFO'"),
        ("SECRETS_DIR", "/nowhere", "/nowhere is not a folder"),
    ],
)
def test_a_wrong_setting_is_named_without_showing_it(
    given: Callable[..., None], refused: Callable[[], list[str]], name: str, value: str, says: str
) -> None:
    given(MESH_KEY=KEY, DATABASE_URL=URL)
    given(**{name: value})
    (sentence,) = refused()
    assert sentence.startswith(f"STORYMESH_{name}: ")
    assert says in sentence
    assert "s3cret" not in sentence


def test_several_wrong_settings_are_told_at_once(given: Callable[..., None], refused: Callable[[], list[str]]) -> None:
    given(MESH_KEY="short", LOG_LEVEL="LOUD")
    names = [line.partition(":")[0] for line in refused()]
    assert sorted(names) == ["STORYMESH_DATABASE_URL", "STORYMESH_LOG_LEVEL", "STORYMESH_MESH_KEY"]


@pytest.fixture
def secrets_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STORYMESH_SECRETS_DIR", str(tmp_path))
    (tmp_path / "storymesh_mesh_key").write_text(KEY + "\n")
    (tmp_path / "storymesh_database_url").write_text(URL + "\n")
    return tmp_path


@pytest.mark.usefixtures("secrets_dir")
def test_secrets_are_read_from_files_named_like_the_settings() -> None:
    settings = load(DatabaseSettings)
    assert settings.mesh_key.get_secret_value() == b"\xfb\xff" * 16
    assert settings.database_url.get_secret_value() == URL


@pytest.mark.usefixtures("secrets_dir")
def test_the_environment_wins_over_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORYMESH_DATABASE_URL", "postgresql+psycopg://another@h/d")
    assert load(DatabaseSettings).database_url.get_secret_value() == "postgresql+psycopg://another@h/d"


def test_a_wrong_secret_in_a_file_is_named_without_showing_it(
    secrets_dir: Path, refused: Callable[[], list[str]]
) -> None:
    (secrets_dir / "storymesh_mesh_key").write_text("s3cret")
    (sentence,) = refused()
    assert sentence.startswith("STORYMESH_MESH_KEY: needs at least")
    assert "s3cret" not in sentence


@pytest.mark.usefixtures("secrets_dir")
def test_settings_that_are_printed_show_no_secret() -> None:
    shown = repr(load(DatabaseSettings))
    assert "hunter2" not in shown
    assert KEY not in shown


@pytest.mark.parametrize("written", [KEY, KEY.rstrip("="), KEY.replace("-", "+").replace("_", "/"), f" {KEY}\n"])
def test_a_key_is_the_same_in_every_form_that_tools_write(given: Callable[..., None], written: str) -> None:
    given(MESH_KEY=written, DATABASE_URL=URL)
    assert load(DatabaseSettings).mesh_key.get_secret_value() == b"\xfb\xff" * 16
