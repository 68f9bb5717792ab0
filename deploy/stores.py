"""Provisions Postgres and Redis for each service: its role and database, its Redis user and the keys it may use.

Provisioning is idempotent and runs at every start, locally and in containers: it adds what is missing, keeps existing data and
resets passwords and rights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING
from urllib.parse import quote

from mesh.manifest import INBOX, OUTBOX, Manifest

if TYPE_CHECKING:
    from psycopg import AsyncConnection

OPERATOR = "operator"
"""The Redis user that may reload the access control list, and nothing else."""

CONNECT_SECONDS = 10


async def provision(admin_url: str, passwords: Mapping[str, str]) -> None:
    """Create or update each service's role and database, closed to every other role.

    `admin_url` is the superuser's libpq URL; `passwords` are by service, which is also the role's name. Raises psycopg.Error.
    """
    import psycopg

    async with await psycopg.AsyncConnection.connect(
        admin_url, autocommit=True, connect_timeout=CONNECT_SECONDS
    ) as connection:
        # SCRAM stretches what people choose. The passwords are 256 random bits, which nobody finds by trying, and each of the
        # 4,096 iterations that Postgres takes otherwise is done anew on both sides of every new connection.
        await connection.execute("SET scram_iterations = 1")
        await connection.execute("REVOKE ALL ON DATABASE postgres, template1 FROM PUBLIC")
        for service, password in passwords.items():
            await _provision(connection, service, password)


async def _provision(connection: AsyncConnection, service: str, password: str) -> None:
    from psycopg import sql

    role = sql.Identifier(service)
    found = await connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (service,))
    if await found.fetchone() is None:
        await connection.execute(sql.SQL("CREATE ROLE {}").format(role))
    await connection.execute(
        sql.SQL("ALTER ROLE {} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS PASSWORD {}").format(
            role, sql.Literal(password)
        )
    )
    found = await connection.execute("SELECT 1 FROM pg_database WHERE datname = %s", (service,))
    if await found.fetchone() is None:
        await connection.execute(sql.SQL("CREATE DATABASE {} OWNER {}").format(role, role))
    await connection.execute(sql.SQL("REVOKE ALL ON DATABASE {} FROM PUBLIC").format(role))


def redis_rules(
    services: Mapping[str, Manifest], digest: Callable[[str], str], *, write_only_keys: bool = True
) -> Iterator[str]:
    """The services' lines of the access control list. `digest` gives the SHA-256 digest of a service's password in hexadecimal.

    A service may use its own keys and channels. Publishers may write to all inboxes but read only their own. Redis before 7.0 has
    no write-only keys: `write_only_keys` False allows publishers to read all inboxes as well.
    """
    for service, manifest in services.items():
        rights = " ".join(_rights(service, manifest, "%W~" if write_only_keys else "~"))
        yield f"user {service} on #{digest(service)} resetkeys resetchannels {rights} +@all -@admin -@dangerous +info"


def operator_rule(digest: str) -> str:
    """The operator's line of the access control list. `digest` is the SHA-256 digest of its password in hexadecimal."""
    return f"user {OPERATOR} on #{digest} resetkeys resetchannels -@all +acl|load +ping"


def _rights(service: str, manifest: Manifest, write_only: str) -> Iterator[str]:
    for family in manifest.redis_keys:
        yield from (f"~{family}:*", f"&{family}:*")
    if OUTBOX in manifest.kit_tables:
        # A publisher may write to every inbox, because the receivers' manifests decide which events they take.
        yield from (f"{write_only}inbox:*", f"~memory:outbox:{service}")
    if INBOX in manifest.kit_tables:
        for inbox in manifest.takes:
            yield from (f"~inbox:{inbox}", f"~{{inbox:{inbox}}}:*", f"~memory:inbox:{inbox}")


async def load_redis_users(address: str, password: str) -> None:
    """Reload the access control list of a running Redis. Raises redis.RedisError.

    Needed when a service is added while Redis runs; Redis reads the list by itself when it starts.
    """
    from redis.asyncio import Redis

    async with Redis.from_url(f"redis://{OPERATOR}:{quote(password)}@{address}/0") as client:
        await client.acl_load()
