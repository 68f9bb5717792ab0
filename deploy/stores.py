"""What Postgres and Redis must know of each service: its role and database there, its user and its keys here.

All of it is idempotent and runs at every start, on one machine and in containers: what is missing is added, what is there keeps its
data and gets its rights and its password as they are to be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING
from urllib.parse import quote

from mesh.manifest import INBOX, OUTBOX, Manifest

if TYPE_CHECKING:
    from psycopg import AsyncConnection

OPERATOR = "operator"
"""The Redis user that may have the access control list read again, and nothing else."""

CONNECT_SECONDS = 10


async def provision(admin_url: str, passwords: Mapping[str, str]) -> None:
    """Give each service its role and its database, closed to every other role.

    `admin_url` is the superuser's libpq address; `passwords` has a service's role for a key. Raises psycopg.Error.
    """
    import psycopg

    async with await psycopg.AsyncConnection.connect(
        admin_url, autocommit=True, connect_timeout=CONNECT_SECONDS
    ) as connection:
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
    """Lines of an access control list. `digest` gives the SHA-256 digest of a service's password in hexadecimal.

    Each service may use its own keys and channels; of the inboxes of others it may only add to those, and not read what others put
    there. Redis before 7.0 knows no keys that can only be written: `write_only_keys` False lets publishers read the inboxes too.
    """
    for service, manifest in services.items():
        rights = " ".join(_rights(service, manifest, "%W~" if write_only_keys else "~"))
        yield f"user {service} on #{digest(service)} resetkeys resetchannels {rights} +@all -@admin -@dangerous +info"


def operator_rule(digest: str) -> str:
    """The line of the user who may have the list read again, by the digest of its password, and do nothing else."""
    return f"user {OPERATOR} on #{digest} resetkeys resetchannels -@all +acl|load +ping"


def _rights(service: str, manifest: Manifest, write_only: str) -> Iterator[str]:
    for family in manifest.redis_keys:
        yield from (f"~{family}:*", f"&{family}:*")
    if OUTBOX in manifest.kit_tables:
        # Which of its events goes to which inbox is decided by those who take them.
        yield from (f"{write_only}inbox:*", f"~memory:outbox:{service}")
    if INBOX in manifest.kit_tables:
        for inbox in manifest.takes:
            yield from (f"~inbox:{inbox}", f"~{{inbox:{inbox}}}:*", f"~memory:inbox:{inbox}")


async def load_redis_users(address: str, password: str) -> None:
    """Have a running Redis read its access control list again. Raises redis.RedisError.

    One that starts reads it by itself; this is for one that goes on running while a service is added.
    """
    from redis.asyncio import Redis

    async with Redis.from_url(f"redis://{OPERATOR}:{quote(password)}@{address}/0") as client:
        await client.acl_load()
