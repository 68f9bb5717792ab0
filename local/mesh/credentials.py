"""Secrets of a local mesh: generated once, kept in files that only their owner can read, given to the services that list them.

A service gets `secrets/<service>/` as its `STORYMESH_SECRETS_DIR`. It holds that service's secrets alone, each in a file named
after the setting in lower case.

Each secret carries a mark that says it was made for development; a process in production refuses it. Secrets without the mark
that exist already are kept.
"""

import contextlib
import os
import secrets
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from kit.runtime import base64url
from kit.runtime.development_secrets import KEY_MARK, PASSWORD_MARK
from local.failures import of_os_error

KEY_BYTES = 32


def key() -> str:
    """A new 256-bit key: the development mark, then base64url."""
    return KEY_MARK + base64url.encode(secrets.token_bytes(KEY_BYTES))


def password() -> str:
    """A new password that needs no escaping in a URL."""
    return PASSWORD_MARK + secrets.token_urlsafe(KEY_BYTES)


def write(path: Path, value: str) -> None:
    """Write a secret atomically, with access for its owner only."""
    try:
        path.parent.mkdir(mode=0o700, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            draft.unlink()
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(value)
        draft.replace(path)
    except OSError as error:
        raise of_os_error(error, path) from error


def read_or_create(path: Path, make: Callable[[], str]) -> str:
    """The secret at `path`, generated on first use."""
    try:
        return path.read_text()
    except FileNotFoundError:
        value = make()
        write(path, value)
        return value
    except OSError as error:
        raise of_os_error(error, path) from error


def share(root: Path, services: Mapping[str, Iterable[str]]) -> None:
    """Give each service the secrets it lists. A name has the same value in every service that lists it.

    A service that is added later, or whose directory was lost, receives the value that the others use.
    """
    holders: dict[str, list[Path]] = {}
    for service, names in services.items():
        for name in names:
            holders.setdefault(name, []).append(root / service / name)
    for paths in holders.values():
        source = next((path for path in paths if path.exists()), paths[0])
        value = read_or_create(source, key)
        for path in paths:
            if not path.exists() or path.read_text() != value:
                write(path, value)
