"""Settings: where they come from, and what a person reads who got one wrong."""

from __future__ import annotations

import base64
import hashlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import SecretStr

from kit.runtime import base64url
from kit.runtime.settings import DatabaseSettings, Key, Keys, load
from local.mesh import credentials

KEY = base64.urlsafe_b64encode(b"\xfb\xff" * 16).decode()  # holds the two characters in which the alphabets differ
ROOT = Path(__file__).parents[3]
Given = Callable[..., None]
Refused = Callable[..., list[str]]

URL = "postgresql+psycopg://role:hunter2@127.0.0.1:5432/auth"


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> Given:
    """Sets settings in the environment, by their names without the prefix."""

    def give(**settings: str) -> None:
        for name, value in settings.items():
            monkeypatch.setenv(f"STORYMESH_{name}", value)

    return give


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    """Loads settings that are not good and returns the lines that tell so."""

    def load_in_vain(settings: type[DatabaseSettings] = DatabaseSettings) -> list[str]:
        with pytest.raises(SystemExit) as ended:
            load(settings)
        assert ended.value.code == 78
        return capsys.readouterr().err.splitlines()

    return load_in_vain


def test_a_process_without_its_settings_says_so_and_ends_with_78() -> None:
    script = "from kit.runtime.settings import DatabaseSettings, load; load(DatabaseSettings)"
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
        # An at sign that should have been escaped: the parser's own error would quote what follows it.
        ("DATABASE_URL", "postgresql+psycopg://role:p@ss:s3cret@h/d", "needs the form postgresql+psycopg://"),
        ("REDIS_URL", "http://:s3cret@h", "needs the form redis://"),
        ("REDIS_URL", "redis://role:p@ss:s3cret@h/0", "needs the form redis://"),
        ("DATABASE_POOL", "s3cret", "valid integer"),
        ("DATABASE_POOL", "0", "greater than or equal to 1"),
        ("LOG_LEVEL", "s3cret", "'DEBUG', 'INFO'"),
        ("SECRETS_DIR", "/nowhere", "/nowhere is not a folder"),
    ],
)
def test_a_wrong_setting_is_named_without_showing_it(
    given: Given, refused: Refused, name: str, value: str, says: str
) -> None:
    given(MESH_KEY=KEY, DATABASE_URL=URL)
    given(**{name: value})
    (sentence,) = refused()
    assert sentence.startswith(f"STORYMESH_{name}: ")
    assert says in sentence
    assert "s3cret" not in sentence


def test_several_wrong_settings_are_told_at_once(given: Given, refused: Refused) -> None:
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


def test_a_wrong_secret_in_a_file_is_named_without_showing_it(secrets_dir: Path, refused: Refused) -> None:
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
def test_a_key_is_the_same_in_every_form_that_tools_write(given: Given, written: str) -> None:
    given(MESH_KEY=written, DATABASE_URL=URL)
    assert load(DatabaseSettings).mesh_key.get_secret_value() == b"\xfb\xff" * 16


class Fittings(DatabaseSettings):
    """What some service adds, today or later."""

    pepper: Keys
    seal_key: Key
    gateway_token: SecretStr = SecretStr("")


def real_key(seed: str) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(seed.encode()).digest()).decode()


def development_key(seed: str) -> str:
    return f"development.{real_key(seed)}"


REAL = {
    "MESH_KEY": real_key("mesh"),
    "SEAL_KEY": real_key("seal"),
    "PEPPER": f"{real_key('newer')},{real_key('older')}",
    "DATABASE_URL": "postgresql+psycopg://auth:kq93-Zebra-lamp@db.internal/auth",
    "REDIS_URL": "rediss://auth:kq93-Zebra-lamp@redis.internal:6379/0",
}
NEW_KEY = "openssl rand -base64 32"


def test_production_starts_with_real_secrets(given: Given) -> None:
    given(ENVIRONMENT="production", **REAL)
    assert load(Fittings).mesh_key.get_secret_value() == hashlib.sha256(b"mesh").digest()
    given(MESH_KEY=hashlib.sha256(b"as from openssl rand -hex 32").hexdigest())
    load(Fittings)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        *(
            (name, development_key("x"), f"the local runner made.*{NEW_KEY}")
            for name in ("MESH_KEY", "SEAL_KEY", "PEPPER")
        ),
        ("PEPPER", f"{real_key('newer')}, {development_key('older')}", f"the local runner made.*{NEW_KEY}"),
        *((name, "m" * 43, f"not random.*{NEW_KEY}") for name in ("MESH_KEY", "SEAL_KEY", "PEPPER")),
        ("PEPPER", f"{real_key('newer')},{KEY}", f"not random.*{NEW_KEY}"),
        ("SEAL_KEY", base64.b64encode(bytes(range(16)) * 2).decode(), "not random"),
        ("SEAL_KEY", base64.b64encode(b"Sphinx of black quartz, judge my vow 1234").decode(), "not random"),
        ("SEAL_KEY", "CorrectHorseBatteryStapleCorrectHorseBattery", "not random"),
        ("SEAL_KEY", REAL["MESH_KEY"], f"the same key as STORYMESH_MESH_KEY; .*{NEW_KEY}"),
        ("SEAL_KEY", REAL["MESH_KEY"].translate(str.maketrans("-_", "+/")), "the same key as STORYMESH_MESH_KEY"),
        ("SEAL_KEY", real_key("older"), "the same key as STORYMESH_PEPPER"),
        ("GATEWAY_TOKEN", "development-x", "made for development"),
        ("DATABASE_URL", "postgresql+psycopg://auth@db/auth", "no password; .*openssl rand"),
        ("DATABASE_URL", "postgresql+psycopg://auth:development-kq93Zebralamp@db/auth", "the local runner made"),
        *(
            ("DATABASE_URL", f"postgresql+psycopg://auth:{password}@db/stories", "tried first; .*openssl rand")
            for password in (
                "auth",
                "Auth1",
                "stories",
                "db",
                "postgres",
                "postgres123",
                "password",
                "changeme!",
                "x" * 40,
                "1234",
            )
        ),
        ("DATABASE_URL", "postgresql+psycopg://auth@/auth?host=db&password=secret", "tried first"),
        ("REDIS_URL", "redis://redis:6379/0", "no password"),
        ("REDIS_URL", "redis://:changeme@redis:6379/0", "tried first"),
    ],
)
def test_production_refuses_a_secret_that_is_fit_for_development_only(
    given: Given, refused: Refused, name: str, value: str, says: str
) -> None:
    given(ENVIRONMENT="production", **REAL)
    given(**{name: value})
    (sentence,) = refused(Fittings)
    assert re.match(f"STORYMESH_{name}: .*{says}", sentence)
    assert value not in sentence
    given(ENVIRONMENT="development")
    load(Fittings)


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+psycopg:///auth",
        "postgresql+psycopg://auth@/auth?host=/run/postgresql",
        "postgresql+psycopg://auth@db/auth?sslmode=verify-full&sslcert=/run/auth.crt",
        "postgresql+psycopg://auth:p%40ss-kq93-Zebra@/auth?host=db1&host=db2",
    ],
)
def test_production_needs_no_password_where_something_else_proves_the_caller(given: Given, url: str) -> None:
    given(ENVIRONMENT="production", **REAL)
    given(DATABASE_URL=url, REDIS_URL="unix:///run/redis.sock?db=0")
    load(Fittings)


def test_production_names_every_secret_that_it_refuses(given: Given, refused: Refused) -> None:
    given(ENVIRONMENT="production", MESH_KEY=KEY, SEAL_KEY=KEY, PEPPER=development_key("p"), DATABASE_URL=URL)
    names = [line.partition(":")[0] for line in refused(Fittings)]
    assert names == [f"STORYMESH_{name}" for name in ("REDIS_URL", "MESH_KEY", "PEPPER", "SEAL_KEY")]


def test_a_secret_in_a_file_is_judged_like_one_in_the_environment(
    secrets_dir: Path, given: Given, refused: Refused
) -> None:
    given(ENVIRONMENT="production", REDIS_URL=REAL["REDIS_URL"])
    (secrets_dir / "storymesh_mesh_key").write_text(development_key("mesh") + "\n")
    (sentence,) = refused()
    assert sentence.startswith("STORYMESH_MESH_KEY: is a key that the local runner made")


def test_what_the_local_runner_makes_serves_in_development_and_is_refused_in_production(
    given: Given, refused: Refused
) -> None:
    key, password = credentials.key(), credentials.password()
    given(**REAL | {"SEAL_KEY": key, "DATABASE_URL": f"postgresql+psycopg://auth:{password}@127.0.0.1/auth"})
    assert load(Fittings).seal_key.get_secret_value() == base64url.decode(key.removeprefix("development."))
    given(ENVIRONMENT="production")
    assert [line.partition(":")[0] for line in refused(Fittings)] == ["STORYMESH_DATABASE_URL", "STORYMESH_SEAL_KEY"]


def test_no_key_that_stands_in_this_repository_is_good_enough_for_production(given: Given, refused: Refused) -> None:
    found = re.compile(r"""(?i)(?:key|pepper)["']?\s*[=:]\s*["']?([\w+/-]{43}=?)(?![\w=])""").findall
    folders = ("tests", "services", "kit", "mesh", "local", "envoy", "deploy", "storymesh_client", "examples")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    files += [ROOT / name for name in ("README.md", "docker-compose.yml", "Makefile")]
    keys = {key for path in files for key in found(path.read_text())}
    assert keys
    for key in keys:
        given(ENVIRONMENT="production", **REAL | {"MESH_KEY": key})
        assert [line.partition(":")[0] for line in refused(Fittings)] == ["STORYMESH_MESH_KEY"], key


def test_several_keys_keep_their_order_and_one_alone_is_valid(given: Given) -> None:
    given(**REAL)
    newer, older = (hashlib.sha256(seed).digest() for seed in (b"newer", b"older"))
    assert load(Fittings).pepper.get_secret_value() == (newer, older)
    given(PEPPER=f" {development_key('newer')} , {real_key('older').rstrip('=')}\n")
    assert load(Fittings).pepper.get_secret_value() == (newer, older)
    given(PEPPER=real_key("newer"))
    assert load(Fittings).pepper.get_secret_value() == (newer,)
    assert Fittings(pepper=newer).pepper.get_secret_value() == (newer,)


@pytest.mark.parametrize("wrong", ["", ",", "short", "{key},", ",{key}", "{key},short", "{key};{key}", "{key},s3cretü"])
def test_one_wrong_key_among_several_is_refused(given: Given, refused: Refused, wrong: str) -> None:
    given(**REAL | {"PEPPER": wrong.format(key=real_key("newer"))})
    (sentence,) = refused(Fittings)
    assert re.match("STORYMESH_PEPPER: (needs keys of at least 32 random bytes|is not base64url)", sentence)


def test_several_keys_that_are_printed_show_none(given: Given) -> None:
    given(**REAL)
    settings = load(Fittings)
    for shown in (repr(settings), str(settings), repr(settings.pepper), settings.model_dump_json()):
        assert "*****" in shown
        for key in settings.pepper.get_secret_value():
            assert real_key("newer") not in shown
            assert repr(key)[2:-1] not in shown
