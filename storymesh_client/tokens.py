"""Token stores, which keep tokens between calls and between runs of a program."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol, Self

from storymesh.auth.v1 import tokens_pb2

_MOST_DEVICE_TOKENS = 16
"""Largest number of device tokens, those of the last used logins, so that the file does not grow without limit."""


class TokenFileError(Exception):
    """A failure of the token file, as one sentence that says what is wrong and what to do."""


@dataclass(frozen=True)
class Tokens:
    """The access token and refresh token of a session. Its repr shows neither."""

    access_token: str = field(repr=False)
    access_expires_at: datetime
    refresh_token: str = field(repr=False)
    refresh_expires_at: datetime

    @classmethod
    def from_proto(cls, message: tokens_pb2.Tokens) -> Self:
        return cls(
            access_token=message.access_token,
            access_expires_at=message.access_token_expire_time.ToDatetime(UTC),
            refresh_token=message.refresh_token,
            refresh_expires_at=message.refresh_token_expire_time.ToDatetime(UTC),
        )


@dataclass(frozen=True)
class Kept:
    """The tokens kept for one edge."""

    tokens: Tokens | None = None
    device_tokens: Mapping[str, str] = field(default_factory=dict, repr=False)
    """Device tokens by login. They outlive sessions; known devices are throttled apart from unknown ones."""

    def signed_in(self, login: str, tokens: Tokens, device_token: str) -> Self:
        others = {key: value for key, value in self.device_tokens.items() if key != _key(login)}
        newest = {_key(login): device_token} if device_token else {}
        kept = dict(list({**others, **newest}.items())[-_MOST_DEVICE_TOKENS:])
        return replace(self, tokens=tokens, device_tokens=kept)

    def device_token(self, login: str) -> str | None:
        return self.device_tokens.get(_key(login))


class TokenStore(Protocol):
    """Keeps tokens by edge, because tokens of one edge must not be sent to another."""

    def load(self, target: str) -> Kept: ...

    def change(self, target: str, change: Callable[[Kept], Kept]) -> Kept:
        """Replaces the kept tokens by the result of `change`, atomically, and returns it."""


class MemoryTokens:
    """A store in memory, which ends with the program."""

    def __init__(self) -> None:
        self._kept: dict[str, Kept] = {}

    def load(self, target: str) -> Kept:
        return self._kept.get(target, Kept())

    def change(self, target: str, change: Callable[[Kept], Kept]) -> Kept:
        self._kept[target] = change(self.load(target))
        return self._kept[target]


class FileTokens:
    """A store in a JSON file that only its owner can read. Several programs may use it at the same time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def load(self, target: str) -> Kept:
        """Reads the file. Raises TokenFileError."""
        return _kept(self.path, self._edges().get(target, {}))

    def change(self, target: str, change: Callable[[Kept], Kept]) -> Kept:
        """Changes the file under its lock. Raises TokenFileError."""
        with self._locked():
            edges = self._edges()
            kept = change(_kept(self.path, edges.get(target, {})))
            edges[target] = _document(kept)
            self._write(json.dumps({"edges": edges}, indent=2))
            return kept

    def _edges(self) -> dict[str, Any]:
        try:
            with self.path.open() as file:
                if os.fstat(file.fileno()).st_mode & 0o077:
                    raise TokenFileError(
                        f"{self.path} can be read by others: chmod 600 it, or delete it and sign in again."
                    )
                edges: dict[str, Any] = json.load(file)["edges"]
        except FileNotFoundError:
            return {}
        except (ValueError, LookupError, TypeError):
            raise _unreadable(self.path) from None
        except OSError as error:
            raise TokenFileError(f"{self.path} cannot be read: {error.strerror}.") from None
        if not isinstance(edges, dict):
            raise _unreadable(self.path)
        return edges

    def _write(self, text: str) -> None:
        """Replaces the file atomically: a crash leaves the old one or the new one."""
        draft = self.path.with_name(f".{self.path.name}.{secrets.token_hex(8)}")
        try:
            with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            draft.replace(self.path)
        except OSError as error:
            with contextlib.suppress(OSError):
                draft.unlink()
            raise TokenFileError(f"{self.path} cannot be written: {error.strerror}.") from None

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Holds the file's lock; without it, two programs could overwrite each other's tokens."""
        lock = self.path.with_name(f".{self.path.name}.lock")
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_WRONLY | os.O_CREAT, 0o600)
        except OSError as error:
            raise TokenFileError(f"{self.path} cannot be written: {error.strerror}.") from None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def default_path(environment: Mapping[str, str]) -> Path:
    """Path of the token file: `STORYMESH_TOKENS`, or a file in the configuration folder of the XDG base directory specification."""
    if chosen := environment.get("STORYMESH_TOKENS"):
        return Path(chosen).expanduser()
    # The specification requires that a relative path be ignored.
    config = Path(environment.get("XDG_CONFIG_HOME", ""))
    return (config if config.is_absolute() else Path.home() / ".config") / "storymesh" / "tokens.json"


def _document(kept: Kept) -> dict[str, Any]:
    document: dict[str, Any] = {"device_tokens": dict(kept.device_tokens)}
    if kept.tokens:
        document["tokens"] = {
            name: value.isoformat() if isinstance(value, datetime) else value
            for name, value in asdict(kept.tokens).items()
        }
    return document


def _kept(path: Path, document: Any) -> Kept:
    try:
        tokens = document.get("tokens")
        return Kept(
            tokens=tokens
            and Tokens(
                access_token=str(tokens["access_token"]),
                access_expires_at=datetime.fromisoformat(tokens["access_expires_at"]).astimezone(UTC),
                refresh_token=str(tokens["refresh_token"]),
                refresh_expires_at=datetime.fromisoformat(tokens["refresh_expires_at"]).astimezone(UTC),
            ),
            device_tokens={str(login): str(token) for login, token in document.get("device_tokens", {}).items()},
        )
    except (AttributeError, LookupError, TypeError, ValueError):
        raise _unreadable(path) from None


def _unreadable(path: Path) -> TokenFileError:
    return TokenFileError(f"{path} holds something else than tokens: delete it and sign in again.")


def _key(login: str) -> str:
    return login.strip().casefold()
