"""The secrets of a mesh in containers, each generated once, in one folder per service; a container sees its service's alone.

They carry no development mark, so production accepts them. The folder `postgres` holds the superuser's password, and `redis` the
access control list and the password of the operator, who may only reload that list.
"""

import hashlib
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from deploy import buckets
from deploy.stores import load_redis_users, operator_rule, provision, redis_rules
from kit.runtime import base64url
from mesh.manifest import OBJECT_STORE, Manifest

POSTGRES, REDIS, S3 = "postgres:5432", "redis:6379", f"{OBJECT_STORE}:8333"
DATABASE_URL, REDIS_URL, S3_SECRET = "storymesh_database_url", "storymesh_redis_url", f"storymesh_{buckets.SECRET}"
ACCESS_LIST = Path("redis", "users.acl")
SUPERUSERS, OPERATORS = Path("postgres", "password"), Path("redis", "password")
OBJECTS = Path(OBJECT_STORE)
"""Folder of the object store's own files, the operator's secret among them."""


def make(folder: Path, services: Mapping[str, Manifest]) -> None:
    """Add the secrets of `services` that are missing in `folder`. Existing ones do not change.

    The access control list is derived from the secrets and rewritten each time.
    """
    for service, manifest in services.items():
        for key in manifest.keys:
            _add(folder / service / f"storymesh_{key}", _key())
        for key in manifest.shared_keys:
            _share([folder / each / f"storymesh_{key}" for each in services if key in services[each].shared_keys])
        _add(folder / service / REDIS_URL, f"redis://{service}:{_password()}@{REDIS}/0")
        if manifest.database:
            _add(folder / service / DATABASE_URL, f"postgresql+psycopg://{service}:{_password()}@{POSTGRES}/{service}")
    if holders := buckets.holders(services):
        _make_for_objects(folder, holders)
    for path in (SUPERUSERS, OPERATORS):
        _add(folder / path, _password())
    _write(folder / ACCESS_LIST, "\n".join(_access_list(folder, services)) + "\n")


def _make_for_objects(folder: Path, holders: Sequence[str]) -> None:
    for service in holders:
        _add(folder / service / S3_SECRET, _password())
    _add(folder / OBJECTS / buckets.OPERATOR, _password())

    def secret(name: str) -> str:
        return (folder / (OBJECTS / name if name == buckets.OPERATOR else Path(name, S3_SECRET))).read_text()

    _write(folder / OBJECTS / buckets.KEYS, buckets.identities(holders, secret))
    # These belong together. The last one is written when the others are there.
    if not (folder / OBJECTS / buckets.SECURITY).exists():
        files = buckets.security("/secrets")
        for name in sorted(files, key=buckets.SECURITY.__eq__):
            _write(folder / OBJECTS / name, files[name])


def secrets_of(manifest: Manifest) -> frozenset[str]:
    """Names of the secrets that `make` adds for a service."""
    addresses = {REDIS_URL, DATABASE_URL} if manifest.database else {REDIS_URL}
    if OBJECT_STORE in manifest.needs:
        addresses |= {S3_SECRET}
    return frozenset({f"storymesh_{key}" for key in manifest.all_keys} | addresses)


async def apply(
    folder: Path,
    services: Mapping[str, Manifest],
    *,
    postgres: str = POSTGRES,
    redis: str = REDIS,
    s3: str = S3,
    origins: Sequence[str] = (),
) -> None:
    """Apply the secrets in `folder` to the running servers, and let pages on `origins` use signed requests.

    Raises psycopg.Error, redis.RedisError and BucketsFailed.
    """
    superuser = f"postgresql://postgres:{(folder / SUPERUSERS).read_text()}@{postgres}/postgres"
    passwords = {name: _password_in(folder / name / DATABASE_URL) for name, each in services.items() if each.database}
    await provision(superuser, passwords)
    await load_redis_users(redis, (folder / OPERATORS).read_text())
    if holders := buckets.holders(services):
        secret = (folder / OBJECTS / buckets.OPERATOR).read_text()
        await buckets.provision(f"http://{s3}", secret, holders, origins=origins)


def _share(paths: Sequence[Path]) -> None:
    """Give all paths one value: that of the first that exists, else a new key."""
    value = next((path.read_text() for path in paths if path.exists()), None) or _key()
    for path in paths:
        _add(path, value)


def _access_list(folder: Path, services: Mapping[str, Manifest]) -> list[str]:
    def digest(service: str) -> str:
        return _digest(_password_in(folder / service / REDIS_URL))

    return [
        "user default off",
        operator_rule(_digest((folder / OPERATORS).read_text())),
        *redis_rules(services, digest),
    ]


def _digest(password: str) -> str:
    return hashlib.sha256(password.encode()).hexdigest()


def _password_in(path: Path) -> str:
    password = urlsplit(path.read_text()).password
    if password is None:
        raise ValueError(f"{path} holds an address without a password")
    return password


def _key() -> str:
    return base64url.encode(secrets.token_bytes(32))


def _password() -> str:
    return secrets.token_urlsafe(32)


def _add(path: Path, value: str) -> None:
    if not path.exists():
        _write(path, value)


def _write(path: Path, value: str) -> None:
    """Write a secret atomically. Every user of a container that mounts the folder can read it; other containers do not mount it."""
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")
    draft.unlink(missing_ok=True)
    draft.write_text(value)
    draft.chmod(0o444)
    os.replace(draft, path)
