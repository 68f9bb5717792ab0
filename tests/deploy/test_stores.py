"""A service added to a mesh with data gets its role, database and Redis user at the next start, and nothing else changes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import psycopg
import pytest
import redis
from redis.exceptions import ResponseError

from deploy import keys
from local.harness import servers as running_servers
from local.mesh.components.redis import program
from local.mesh.reservation import EDGE_OFFSET, reserved_ports
from local.settings import REPOSITORY
from mesh.catalog import manifests
from mesh.manifest import INBOX, OUTBOX, Manifest
from tests.local.mesh.checkouts import copy_code, write

TOY = Manifest(
    port=90,
    database=True,
    workers=1,
    keys=("cursor_key",),
    shared_keys=("mesh_key", "seal_key"),
    takes={"toy": ("UserDeleted",)},
    kit_tables=(OUTBOX, INBOX),
    redis_keys=("toys",),
)
# Without the object store, whose buckets test_compose.py and tests/local make.
WITHOUT_TOY: Mapping[str, Manifest] = {name: replace(each, needs=()) for name, each in manifests().items()}
WITH_TOY: Mapping[str, Manifest] = {**WITHOUT_TOY, "toy": TOY}


@contextmanager
def redis_in_a_container(folder: Path, port: int) -> Iterator[str]:
    """Runs a Redis with the access control list that the step `keys` wrote. Yields its address."""
    options = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--aclfile", str(folder / keys.ACCESS_LIST)]
    with subprocess.Popen([program(), *options], cwd=folder, stdout=subprocess.DEVNULL) as process:
        try:
            deadline = time.monotonic() + 20
            while not _answers(port):
                assert time.monotonic() < deadline
                time.sleep(0.02)
            yield f"127.0.0.1:{port}"
        finally:
            process.terminate()


def _answers(port: int) -> bool:
    try:
        with redis.Redis(port=port) as client:
            return bool(client.ping())
    except redis.AuthenticationError:
        return True
    except redis.ConnectionError:
        return False


def _files(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


async def test_the_steps_before_the_services_add_a_service_to_running_stores_and_change_nothing_else(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "secrets"
    async with running_servers(tmp_path / "mesh", redis=False, mail=False) as running:
        postgres = running.layout.address("postgres")
        (folder / "postgres").mkdir(parents=True)
        superuser = psycopg.conninfo.conninfo_to_dict(running.postgres_admin_url)["password"]
        (folder / keys.SUPERUSERS).write_text(str(superuser))

        def database(service: str) -> str:
            url = (folder / service / keys.DATABASE_URL).read_text()
            return url.replace("+psycopg", "").replace(keys.POSTGRES, postgres)

        keys.make(folder, WITHOUT_TOY)
        with reserved_ports() as port, redis_in_a_container(folder, port) as address:

            def client(service: str) -> redis.Redis:
                return redis.Redis.from_url(
                    (folder / service / keys.REDIS_URL).read_text().replace(keys.REDIS, address)
                )

            await keys.apply(folder, WITHOUT_TOY, postgres=postgres, redis=address)
            with psycopg.connect(database("auth")) as connection:
                connection.execute("CREATE TABLE kept AS SELECT 1 AS id")
            with client("auth") as auth:
                auth.set("codes:{kept}", "1")
            before = _files(folder)

            keys.make(folder, WITH_TOY)
            await keys.apply(folder, WITH_TOY, postgres=postgres, redis=address)

            after = _files(folder)
            assert {name for name in before if after[name] != before[name]} == {str(keys.ACCESS_LIST)}
            assert {name.partition("/")[0] for name in after.keys() - before.keys()} == {"toy"}
            assert after["toy/storymesh_seal_key"] == after["auth/storymesh_seal_key"]
            assert after["toy/storymesh_cursor_key"] not in before.values()
            with psycopg.connect(database("toy")) as connection:
                connection.execute("CREATE TABLE toys (id int)")
            with pytest.raises(psycopg.OperationalError, match="permission denied for database"):
                psycopg.connect(database("toy").removesuffix("toy") + "auth")
            with psycopg.connect(database("auth")) as connection:
                assert connection.execute("SELECT id FROM kept").fetchone() == (1,)
            with client("toy") as toy, client("auth") as auth:
                toy.set("toys:1", "bear")
                toy.xadd("inbox:toy", {"event": "1"})
                assert auth.get("codes:{kept}") == b"1"

            keys.make(folder, WITH_TOY)
            await keys.apply(folder, WITH_TOY, postgres=postgres, redis=address)
            assert _files(folder) == after
        with psycopg.connect(running.postgres_admin_url) as connection:
            verifiers = connection.execute("SELECT split_part(rolpassword, ':', 1) FROM pg_authid WHERE rolcanlogin")
            assert set(verifiers) == {("SCRAM-SHA-256$1",)}


def test_a_step_that_cannot_work_says_in_a_sentence_why(tmp_path: Path) -> None:
    step = [sys.executable, "-m", "deploy", "stores", str(tmp_path)]
    failed = subprocess.run(step, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert failed.returncode == 1
    assert failed.stderr == f"{tmp_path}/postgres/password is missing: run `python -m deploy keys {tmp_path}` first\n"
    keys.make(tmp_path, manifests())
    failed = subprocess.run(step, cwd=REPOSITORY, capture_output=True, text=True, timeout=60, check=False)
    assert failed.returncode == 1
    # Outside of compose, the container's name does not resolve.
    assert failed.stderr.startswith("Postgres does not take the services' roles and databases: ")
    assert "Traceback" not in failed.stderr


def test_a_service_reads_neither_the_keys_nor_the_inbox_of_another(tmp_path: Path) -> None:
    keys.make(tmp_path, WITH_TOY)
    with reserved_ports() as port, redis_in_a_container(tmp_path, port) as address:
        url = (tmp_path / "toy" / keys.REDIS_URL).read_text().replace(keys.REDIS, address)
        operator = f"redis://operator:{(tmp_path / keys.OPERATORS).read_text()}@{address}/0"
        with redis.Redis.from_url(url) as toy, redis.Redis.from_url(operator) as operated:
            toy.xadd("inbox:notification", {"event": "1"})
            assert toy.xlen("inbox:notification") == 1
            attempts: tuple[Callable[[], object], ...] = (
                lambda: toy.xrange("inbox:notification"),
                lambda: toy.xreadgroup("workers", "thief", {"inbox:notification": ">"}),
                lambda: toy.eval("return redis.call('XRANGE', KEYS[1], '-', '+')", 1, "inbox:notification"),
                lambda: toy.eval("return redis.call('XRANGE', 'inbox:notification', '-', '+')", 0),
                lambda: toy.copy("inbox:notification", "toys:1"),
                lambda: toy.get("codes:{1}"),
                lambda: toy.delete("ratelimit:{storymesh}"),
                lambda: toy.hset("memory:outbox:auth", "epoch", "1"),
                lambda: toy.publish("stories:interrupted", "1"),
                lambda: toy.keys("*"),
                toy.acl_load,
                lambda: operated.get("toys:1"),
                lambda: operated.config_get("*"),
                operated.acl_list,
            )
            for forbidden in attempts:
                with pytest.raises(ResponseError, match=r"permission|can't"):
                    forbidden()


def test_a_service_added_to_a_mesh_of_this_machine_gets_its_stores_at_the_next_start(tmp_path: Path) -> None:
    code, state = copy_code(tmp_path / "code"), tmp_path / "mesh"
    listed = code / "mesh" / "services.py"
    complete = listed.read_text()
    write(listed, complete.replace('    "notification",\n', ""))
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("STORYMESH_")}
    with reserved_ports() as base:
        environment = inherited | {
            "STORYMESH_STATE_DIR": str(state),
            "STORYMESH_BASE_PORT": str(base),
            "STORYMESH_PORT": str(base + EDGE_OFFSET),
            "STORYMESH_DURABLE": "false",
        }

        def local(*arguments: str) -> None:
            command = [sys.executable, "-m", "local", *arguments]
            ran = subprocess.run(
                command, cwd=code, env=environment, capture_output=True, text=True, timeout=100, check=False
            )
            assert ran.returncode == 0, ran.stdout + ran.stderr

        def database(service: str) -> str:
            return (state / "secrets" / service / keys.DATABASE_URL).read_text().replace("+psycopg", "")

        def client(service: str) -> redis.Redis:
            return redis.Redis.from_url((state / "secrets" / service / keys.REDIS_URL).read_text())

        try:
            local("up", "--only", "postgres", "--only", "redis")
            with psycopg.connect(database("auth")) as connection, client("auth") as auth:
                connection.execute("CREATE TABLE kept AS SELECT 1 AS id")
                auth.set("codes:{kept}", "1")
            before = _files(state / "secrets")
            assert not (state / "secrets" / "notification").exists()

            write(listed, complete)
            local("restart", "--only", "postgres", "--only", "redis", "--only", "notification-migrate")
            after = _files(state / "secrets")
            assert {name: after[name] for name in before} == before
            assert after["notification/storymesh_seal_key"] == after["auth/storymesh_seal_key"]
            with psycopg.connect(database("notification")) as connection:
                assert connection.execute("SELECT count(*) FROM notifications").fetchone() == (0,)
            with (
                psycopg.connect(database("auth")) as connection,
                client("auth") as auth,
                client("notification") as added,
            ):
                assert connection.execute("SELECT id FROM kept").fetchone() == (1,)
                assert auth.get("codes:{kept}") == b"1"
                added.xadd("inbox:notification", {"event": "1"})
        finally:
            local("down")
