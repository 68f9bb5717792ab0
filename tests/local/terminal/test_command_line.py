"""The command line `python -m local`, with real Postgres, Redis and mail sink."""

import contextlib
import io
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from unittest.mock import patch

import psycopg
import pytest
import redis

from local.layout import Layout
from local.mesh.components.postgres import Databases
from local.mesh.components.redis import Users
from local.supervision.state import ComponentRecord, ComponentState
from local.terminal import cli, demo, status
from tests.local.processes import STORES, CommandLine, assert_all_gone


def test_a_mesh_starts_once_restarts_what_was_killed_and_stops_wholly(local: CommandLine, layout: Layout) -> None:
    output = local("up", *STORES)
    assert "healthy" in output
    assert str(layout.mail) in output
    processes = local.processes()

    assert "already up" in local("up", *STORES)
    assert local.processes() == processes

    document = json.loads(local("status", "--json"))
    assert document["healthy"] is True
    assert {each["name"]: (each["state"], each["pid"], each["restarts"]) for each in document["components"]} == {
        name: ("healthy", processes[name].pid, 0) for name in ("postgres", "redis", "mail")
    }

    os.kill(processes["redis"].pid, signal.SIGKILL)
    _until(lambda: redis_of(local).restarts == 1)
    _until(lambda: redis_of(local).state is ComponentState.HEALTHY)
    assert "redis ended by itself (killed by SIGKILL); restart 1 follows at once" in local("logs", "supervisor")

    local("stop", "mail")
    table = local("status", expect=1)
    assert "stopped" in table
    assert "Not all of it is healthy: mail is stopped." in local("up", *STORES)
    assert "killed by SIGKILL" in table

    processes = local.processes()
    assert "is down" in local("down")
    assert_all_gone(processes, layout)
    assert "was not up" in local("down")
    assert "is down" in local("status", expect=1)


def test_a_mesh_that_is_up_says_what_is_asked_for_otherwise_and_what_it_keeps(layout: Layout) -> None:
    begun = CommandLine(layout, {"STORYMESH_OPENAI_API_KEY": "sk-secret", "STORYMESH_MAX_FAILURES": "9"})
    begun("up", *STORES)
    try:
        assert "sk-secret" not in layout.state.read_text()
        assert "otherwise" not in begun("up", *STORES)
        kept = CommandLine(layout)("up", *STORES)
        assert "keeps what it was started with" in kept
        assert "STORYMESH_MAX_FAILURES, STORYMESH_OPENAI_API_KEY" in kept
        for environment, clause in {
            "STORYMESH_OPENAI_API_KEY=sk-other": "STORYMESH_OPENAI_API_KEY has another value",
            "STORYMESH_LOG_LEVEL=DEBUG": "STORYMESH_LOG_LEVEL is not set",
            "STORYMESH_STORY_WORKERS=3": "STORYMESH_STORY_WORKERS is 2 instead of 3",
            "STORYMESH_DURABLE=true": "STORYMESH_DURABLE is False instead of True",
            "STORYMESH_PORT=22": f"STORYMESH_PORT is {layout.settings.port} instead of 22",
        }.items():
            otherwise = CommandLine(layout, begun.environment | dict([environment.split("=")]))
            refused = otherwise("up", *STORES, expect=1)
            assert refused.startswith(
                f"The mesh is up already, and not as asked for: {clause}. End it with `make down`"
            )
            assert len(refused.splitlines()) == 1
            assert "sk-" not in refused
        assert "it has only postgres, redis, mail" in begun("up", expect=1)
        assert "writer" not in CommandLine(layout, begun.environment | {"STORYMESH_WRITER": "openai"})("up", *STORES)
    finally:
        begun("down")


def test_a_second_start_keeps_the_data_and_tells_wrong_passwords_from_a_slow_start(
    local: CommandLine, layout: Layout
) -> None:
    local("up", "--only", "postgres")
    with psycopg.connect(Databases(layout).admin_url, autocommit=True) as connection:
        connection.execute("CREATE TABLE kept AS SELECT 1 AS answer")
    local("down")

    began = time.monotonic()
    local("up", "--only", "postgres")
    assert time.monotonic() - began < 10
    with psycopg.connect(Databases(layout).admin_url) as connection:
        assert connection.execute("SELECT answer FROM kept").fetchone() == (1,)
    local("down")

    shutil.rmtree(layout.secrets)
    assert "was made with other passwords" in local("up", "--only", "postgres", expect=1)


@pytest.mark.parametrize("with_death_signal", [True, False])
def test_down_leaves_no_process_after_the_supervisor_was_killed(
    open_to_all: CommandLine, with_death_signal: bool
) -> None:
    layout, local = open_to_all.layout, open_to_all
    if with_death_signal and shutil.which("setpriv") is None:
        pytest.skip("only Linux tells children that their parent died")
    if not with_death_signal:
        local.environment["PATH"] = "/nonexistent"
    local("up", *STORES)
    processes = local.processes()
    os.kill(processes["supervisor"].pid, signal.SIGKILL)
    if with_death_signal:
        _until(lambda: not any(identity.find() for identity in processes.values()))
    else:
        _until(lambda: status.read(layout).phase == "orphaned")
        assert "orphaned" in local("status", expect=1)
    local("down")
    assert_all_gone(processes, layout)


def test_up_after_the_supervisor_and_postgres_were_killed_starts_on_the_same_data(open_to_all: CommandLine) -> None:
    layout, local = open_to_all.layout, open_to_all
    local.environment["PATH"] = "/nonexistent"
    local("up", "--only", "postgres", "--only", "redis")
    before = local.processes()
    os.kill(before["supervisor"].pid, signal.SIGKILL)
    os.kill(before["postgres"].pid, signal.SIGKILL)
    _until(lambda: before["postgres"].find() is None)
    # The pid in the lock that Postgres left may have been reused by any process; here it is this test's.
    lock = layout.data / "postgres" / "postmaster.pid"
    lock.write_text(lock.read_text().replace(str(before["postgres"].pid), str(os.getpid()), 1))
    local("up", "--only", "postgres", "--only", "redis")
    assert before["redis"].find() is None


def test_an_interrupted_up_takes_everything_down(local: CommandLine, layout: Layout) -> None:
    with local.popen("up", *STORES) as process:
        _until(lambda: layout.state.exists() and len(local.processes()) > 1)
        processes = local.processes()
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "taking everything down" in output
    assert_all_gone(processes, layout)


def test_an_interrupted_run_takes_everything_down(local: CommandLine, layout: Layout) -> None:
    with local.popen("run", "--only", "redis") as process:
        _until(lambda: layout.state.exists() and local.record().phase == "running")
        processes = local.processes()
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "everything is stopped" in output
    assert_all_gone(processes, layout)


def test_a_taken_port_is_named_with_its_owner_and_the_way_out(local: CommandLine, layout: Layout) -> None:
    with socket.create_server(("127.0.0.1", layout.port("redis"))):
        output = local("up", *STORES, expect=1)
    assert f"Port {layout.port('redis')}, which redis wants, is taken by pid {os.getpid()}" in output
    assert "STORYMESH_BASE_PORT" in output
    assert "Traceback" not in output


@pytest.mark.parametrize(
    ("environment", "sentence", "code"),
    [
        ({"STORYMESH_MIN_FREE_MEGABYTES": "999999999"}, "MB free and the mesh wants 999999999 MB: free some space", 1),
        ({"STORYMESH_STATE_DIR": "/dev/null/mesh"}, "/dev/null/mesh cannot be used: Not a directory", 1),
        ({"STORYMESH_BASE_PORT": "many"}, "STORYMESH_BASE_PORT='many' cannot be used", 78),
        (
            {"STORYMESH_PORT": "18405", "STORYMESH_BASE_PORT": "18400"},
            "STORYMESH_PORT and STORYMESH_BASE_PORT collide",
            78,
        ),
        ({"STORYMESH_ACCES_TOKEN_SECONDS": "60"}, "the nearest one is STORYMESH_ACCESS_TOKEN_SECONDS", 78),
        (
            {"storymesh_log_level": "DEBUG"},
            "storymesh_log_level is no setting; the nearest one is STORYMESH_LOG_LEVEL",
            78,
        ),
    ],
)
def test_what_cannot_work_gets_one_sentence(
    layout: Layout, environment: dict[str, str], sentence: str, code: int
) -> None:
    output = CommandLine(layout, environment)("up", "--only", "redis", expect=code)
    assert sentence in output
    assert len(output.splitlines()) == 1


@pytest.mark.parametrize("command", ["down", "status", "logs", "run", "demo"])
def test_a_misspelt_setting_is_refused_by_every_command(layout: Layout, command: str) -> None:
    local = CommandLine(layout, {"STORYMESH_STATE_DRI": "/elsewhere"})
    if command == "demo":
        with patch.dict(os.environ, local.variables(), clear=True):
            assert demo.main([]) == 78
    else:
        assert "the nearest one is STORYMESH_STATE_DIR" in local(command, expect=78)


def test_an_unknown_component_is_named(local: CommandLine) -> None:
    assert "There is no component nonsense" in local("up", "--only", "nonsense", expect=1)


def test_a_mesh_works_below_a_path_too_long_for_a_socket(layout: Layout) -> None:
    deep = Layout(layout.settings.model_copy(update={"state_dir": layout.root / ("d" * 120)}))
    local = CommandLine(deep)
    local("up", "--only", "redis")
    local("restart", "redis")
    assert "There is no component nonsense" in local("restart", "nonsense", expect=1)
    local("down")


def test_following_logs_shows_what_is_added(local: CommandLine, layout: Layout) -> None:
    local("up", "--only", "mail")
    with local.popen("logs", "mail", "--follow", "--lines", "1") as process:
        assert process.stdout is not None
        before = process.stdout.readline()
        local("restart", "mail")
        added = process.stdout.readline()
        process.send_signal(signal.SIGINT)
    for line in (before, added):
        assert line.split()[2] == "mail"
        assert "goes to" in line
    assert "has no log" in local("logs", "nonsense", expect=1)


def test_a_restart_keeps_the_data_and_how_the_mesh_was_started(layout: Layout) -> None:
    begun = CommandLine(layout, {"STORYMESH_OPENAI_API_KEY": "sk-secret"})
    begun("up", "--only", "redis")
    try:
        before = begun.processes()["redis"]
        with redis.Redis.from_url(Users(layout).admin_url) as client:
            client.set("kept", "yes")

        refused = _restarted_in_another_shell(layout)
        assert refused.returncode == 1
        assert "was started with STORYMESH_OPENAI_API_KEY, which is not set here" in refused.stderr
        assert begun.processes()["redis"] == before

        output = _restarted_in_another_shell(layout, STORYMESH_OPENAI_API_KEY="sk-other").stdout
        assert output.index("Stopping the mesh.") < output.index("Starting it again.") < output.index("redis ")
        assert set(begun.processes()) == {"supervisor", "redis"}
        assert begun.processes()["redis"] != before
        with redis.Redis.from_url(Users(layout).admin_url) as client:
            assert client.get("kept") == b"yes"

        with pytest.raises(SystemExit), contextlib.redirect_stderr(io.StringIO()) as refusal:
            cli.main(["restart", "redis", "--only", "redis"])
        assert "leave out --only" in refusal.getvalue()
        begun("down")
        assert "It was not up; starting it." in begun("restart", "--only", "redis")
    finally:
        begun("down")


def _restarted_in_another_shell(layout: Layout, **settings: str) -> subprocess.CompletedProcess[str]:
    """Run `restart` without the variables that the mesh was started with, except for its state directory."""
    elsewhere = {name: value for name, value in os.environ.items() if not name.startswith("STORYMESH_")}
    return subprocess.run(
        [sys.executable, "-m", "local", "restart", "--state-dir", str(layout.root)],
        env=elsewhere | settings,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def redis_of(local: CommandLine) -> ComponentRecord:
    record = local.record().component("redis")
    assert record is not None
    return record


def _until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_services_command_runs_with_the_settings_that_it_has_in_the_mesh(local: CommandLine, layout: Layout) -> None:
    never_up = f"The mesh in {layout.root} is not up: start it with `python -m local up`."
    assert local("exec", "notification", "migrate", expect=1).strip() == never_up
    local("up", "--only", "postgres")

    # The mesh's record of its ports takes precedence over the caller's variables.
    elsewhere = CommandLine(layout, {"STORYMESH_PORT": "1234", "STORYMESH_BASE_PORT": "20000"})
    assert "Running upgrade" in elsewhere("exec", "notification", "migrate")
    with psycopg.connect(Databases(layout).url("notification").replace("+psycopg", "")) as connection:
        assert connection.execute("SELECT count(*) FROM mails").fetchone() == (0,)

    assert "usage: python -m services.notification" in local("exec", "notification", "--help")
    assert "invalid choice: 'nonsense'" in local("exec", "notification", "nonsense", expect=2)
    assert "There is no service postgres: there are auth, story" in local("exec", "postgres", "migrate", expect=1)

    local("down")
    assert local("exec", "notification", "migrate", expect=1).strip() == never_up


def test_the_secrets_of_the_local_mesh_are_refused_in_production(local: CommandLine) -> None:
    local("up", "--only", "postgres")
    local.environment["STORYMESH_ENVIRONMENT"] = "production"
    sentences = local("exec", "notification", "migrate", expect=78).splitlines()
    names = [sentence.partition(":")[0] for sentence in sentences]
    assert names == ["STORYMESH_REDIS_URL", "STORYMESH_MESH_KEY", "STORYMESH_DATABASE_URL"]
    assert all("that the local runner made for development; make one with: openssl" in each for each in sentences)
