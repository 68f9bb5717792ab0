"""Makes the secrets of a mesh in containers, each once: a folder for each service, which alone it gets to see.

Usage: python deploy/keys.py FOLDER

They are random and unmarked, fit for production. Besides the services' folders it writes `postgres/roles.sql` and
`redis/users.acl`, by which the two servers come to know them.
"""

from __future__ import annotations

import base64
import os
import secrets
import sys
from pathlib import Path

MESH_KEY = "storymesh_mesh_key"
KEYS = {
    "auth": (
        "storymesh_seal_key",
        "storymesh_code_pepper",
        "storymesh_refresh_key",
        "storymesh_signing_key_secret",
        "storymesh_cursor_key",
    ),
    "story": ("storymesh_cursor_key",),
    "notification": ("storymesh_seal_key", "storymesh_cursor_key"),
    "ratelimit": (),
}
SHARED = (MESH_KEY, "storymesh_seal_key")
WITH_DATABASE = ("auth", "story", "notification")


def main(folder: Path) -> None:
    add_keys(folder)
    done = folder / "postgres" / "roles.sql"
    if not done.exists():
        make_passwords(folder, done)


def add_keys(folder: Path) -> None:
    """Only those that are missing, so that a mesh made by an older version gets the keys that came since."""
    for service, names in KEYS.items():
        for name in (MESH_KEY, *names):
            holders = [folder / holder / name for holder in (KEYS if name in SHARED else [service])]
            value = next((path.read_text() for path in holders if path.exists()), None) or key()
            if not (folder / service / name).exists():
                write(folder / service / name, value)


def make_passwords(folder: Path, done: Path) -> None:
    roles, users = [], ["user default off"]
    for service in KEYS:
        password = secrets.token_urlsafe(32)
        users.append(f"user {service} on >{password} ~* &* +@all -@admin -@dangerous +info")
        write(folder / service / "storymesh_redis_url", f"redis://{service}:{password}@redis:6379/0")
        if service in WITH_DATABASE:
            password = secrets.token_urlsafe(32)
            roles += [
                f"CREATE ROLE {service} LOGIN PASSWORD '{password}';",
                f"CREATE DATABASE {service} OWNER {service};",
                f"REVOKE CONNECT ON DATABASE {service} FROM PUBLIC;",
            ]
            url = f"postgresql+psycopg://{service}:{password}@postgres:5432/{service}"
            write(folder / service / "storymesh_database_url", url)
    write(folder / "postgres" / "password", secrets.token_urlsafe(32))
    write(folder / "redis" / "users.acl", "\n".join(users) + "\n")
    # Last, for it says that all of it is there.
    write(done, "\n".join(roles) + "\n")


def key() -> str:
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


def write(path: Path, value: str) -> None:
    """Readable by every account of the container that mounts the folder, and by nobody who does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}")
    draft.write_text(value)
    draft.chmod(0o444)
    os.replace(draft, path)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(Path(sys.argv[1]))
