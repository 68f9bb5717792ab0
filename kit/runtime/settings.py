"""Settings every service has, and how settings are read.

Values come from `STORYMESH_*` environment variables; secrets may also lie in files named like the setting in lower case, in the
folder that `STORYMESH_SECRETS_DIR` names (the form that Docker and Kubernetes mount).

In production, secrets that are fit for development only end the process. That follows from the types of the settings: whatever a
service adds as a `Key`, as `Keys` or as an address in a `SecretStr` is judged like the rest.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping
from typing import Annotated, Literal, TypeVar

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    Secret,
    SecretBytes,
    SecretStr,
    ValidationError,
    ValidationInfo,
    ValidatorFunctionWrapHandler,
    field_validator,
)
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from kit.runtime import base64url
from mesh.edge_protocol import TOKEN_AUDIENCE, TOKEN_ISSUER

from . import unknown_settings
from .development_secrets import KEY_MARK, fault_of_keys, fault_of_password, fault_of_text, is_marked

PREFIX = unknown_settings.PREFIX
KEY_BYTES = 32

_ENDPOINT = re.compile(r"https?://([A-Za-z0-9.-]+|\[[0-9A-Fa-f:.]+\])(:[0-9]{1,5})?")

S = TypeVar("S", bound=BaseSettings)


def _decoded(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    try:
        return base64url.decode(str(value).strip().removeprefix(KEY_MARK).rstrip("="))
    except ValueError:
        raise ValueError("is not base64url") from None


def _long_enough(value: SecretBytes) -> SecretBytes:
    if len(value.get_secret_value()) < KEY_BYTES:
        raise ValueError(f"needs at least {KEY_BYTES} random bytes in base64url, as from: openssl rand -base64 32")
    return value


def _each_decoded(value: object) -> tuple[bytes, ...]:
    if isinstance(value, tuple):
        return value
    if isinstance(value, bytes):
        return (value,)
    return tuple(_decoded(each) for each in str(value).split(","))


def _each_long_enough(value: Secret[tuple[bytes, ...]]) -> Secret[tuple[bytes, ...]]:
    if any(len(key) < KEY_BYTES for key in value.get_secret_value()):
        raise ValueError(
            f"needs keys of at least {KEY_BYTES} random bytes in base64url, as from: openssl rand -base64 32; "
            "several are separated by commas, the newest first"
        )
    return value


def _url(text: str) -> URL | None:
    """None for what is no address. Neither of the errors may be shown: they quote it."""
    try:
        return make_url(text)
    except (ArgumentError, ValueError):
        return None


def _for_psycopg(value: SecretStr) -> SecretStr:
    url = _url(value.get_secret_value())
    if url is None or url.drivername != "postgresql+psycopg":
        raise ValueError("needs the form postgresql+psycopg://role:password@host:port/database")
    return value


def _for_redis(value: SecretStr) -> SecretStr:
    url = _url(value.get_secret_value())
    if url is None or url.drivername not in ("redis", "rediss", "unix"):
        raise ValueError("needs the form redis://user:password@host:port/number, or rediss:// for TLS")
    return value


def _endpoint(text: str) -> str:
    """Checks an address of a server. Not by `urlsplit` alone, which takes nearly all."""
    if not _ENDPOINT.fullmatch(text):
        raise ValueError("needs the form http://host:port or https://host, without a path")
    return text


Key = Annotated[SecretBytes, BeforeValidator(_decoded), AfterValidator(_long_enough)]
"""A secret key of at least 32 bytes, written in base64url."""

Keys = Annotated[Secret[tuple[bytes, ...]], BeforeValidator(_each_decoded), AfterValidator(_each_long_enough)]
"""Such keys, separated by commas, the newest first: it alone makes what is new, the others still open what they made."""


def _fault(written: object, value: object, earlier: Mapping[str, object]) -> str | None:
    """What makes a setting unfit for production; `earlier` holds the settings that were read before it."""
    if keys := _keys(value):
        marked = isinstance(written, str) and any(is_marked(each.strip()) for each in written.split(","))
        others = [PREFIX + name.upper() for name, other in earlier.items() if not _keys(other).isdisjoint(keys)]
        return fault_of_keys(keys, marked=marked, others=others)
    if isinstance(value, SecretStr):
        secret = value.get_secret_value()
        url = _url(secret) if "://" in secret else None
        return _fault_of_url(url) if url else fault_of_text(secret)
    return None


def _keys(value: object) -> frozenset[bytes]:
    held = value.get_secret_value() if isinstance(value, SecretBytes | Secret) else None
    if isinstance(held, bytes):
        return frozenset([held])
    return frozenset(held) if isinstance(held, tuple) else frozenset()


def _fault_of_url(url: URL) -> str | None:
    query = url.normalized_query
    hosts = (url.host,) if url.host else query.get("host", ())
    if url.drivername == "unix" or (url.drivername.startswith("postgresql") and all(map(_is_path, hosts))):
        return None  # The kernel tells who calls at a Unix socket.
    password = url.password or "".join(query.get("password", ()))
    if not password and query.keys() & {"sslcert", "ssl_certfile", "passfile"}:
        return None
    return fault_of_password(password, names=(url.username or "", url.database or "", *hosts))


def _is_path(host: str) -> bool:
    return host.startswith("/")


class ProcessSettings(BaseSettings):
    """What every process is told, commands included that need nothing else of the mesh."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", hide_input_in_errors=True)

    # First, because the settings after it are judged by it.
    environment: Literal["development", "production"] = Field(
        "development",
        description="Where the process runs; every log line says so, and production refuses secrets made for development.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="The least level that is logged."
    )
    otlp_endpoint: str = Field(
        "", description="OTLP/gRPC collector, such as http://jaeger:4317; empty: traces are not exported."
    )

    @field_validator("*", mode="wrap")
    @classmethod
    def _not_for_development_only(
        cls, written: object, validate: ValidatorFunctionWrapHandler, info: ValidationInfo
    ) -> object:
        value = validate(written)
        fault = _fault(written, value, info.data) if info.data.get("environment") == "production" else None
        if fault:
            raise ValueError(fault)
        return value


class ServiceSettings(ProcessSettings):
    """What every process of the mesh is told that serves or takes events."""

    listen: str = Field("127.0.0.1:50051", description="Address and port of the gRPC server.")
    grpc_server: Literal["grpcio", "native"] = Field(
        "native",
        description="The gRPC server: pygrpc-native's, whose HTTP/2 runs in Rust, or grpcio's own.",
    )
    redis_url: Annotated[SecretStr, AfterValidator(_for_redis)] = Field(
        SecretStr("redis://127.0.0.1:6379/0"), description="Redis 6.2 or newer, or Valkey."
    )
    mesh_key: Key = Field(description="Signs the tokens by which services prove themselves to each other.")
    auth_target: str = Field("127.0.0.1:50051", description="Address and port of the auth service.")
    token_issuer: str = Field(TOKEN_ISSUER, description="The `iss` of access tokens.")
    token_audience: str = Field(TOKEN_AUDIENCE, description="The `aud` of access tokens.")
    metrics_listen: str = Field(
        "", pattern=r"^$|:\d+$", description="Address and port where Prometheus reads numbers; empty: nowhere."
    )
    drain_seconds: float = Field(10.0, gt=0, description="How long open calls and running work may take after SIGTERM.")
    call_seconds: float = Field(15.0, gt=0, description="The longest that a unary call may take.")
    write_seconds: float = Field(
        30.0, gt=0, description="The longest that a message of a stream may wait for its client to read."
    )


class DatabaseSettings(ServiceSettings):
    """What a process with a database is told besides."""

    database_url: Annotated[SecretStr, AfterValidator(_for_psycopg)] = Field(
        description="postgresql+psycopg://role:password@host:port/database"
    )
    database_pool: int = Field(10, ge=1, description="Connections a process keeps at most.")


class InboxSettings(DatabaseSettings):
    """What a process that takes events from an inbox is told besides."""

    lease_seconds: float = Field(
        15.0, gt=0, description="How long a silent worker keeps an event before another takes it over."
    )
    max_failures: int = Field(8, ge=1, description="Failures after which an event is dead-lettered.")


class ObjectStoreSettings(ServiceSettings):
    """What a process with a bucket in an S3 server is told besides."""

    s3_endpoint: Annotated[str, AfterValidator(_endpoint)] = Field(
        "http://127.0.0.1:8333", description="The S3 server, as the mesh reaches it."
    )
    s3_public_endpoint: Annotated[str, AfterValidator(lambda text: text and _endpoint(text))] = Field(
        "",
        description="The S3 server, as clients reach it: signed addresses lead there. Empty: as the mesh reaches it.",
    )
    s3_region: str = Field(
        "us-east-1", min_length=1, description="The region that requests to the S3 server are signed for."
    )
    s3_bucket: str = Field(
        pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$",
        description="The bucket of the service alone. It must exist; on one machine and in compose it is made.",
    )
    s3_addressing: Literal["path", "virtual"] = Field(
        "path",
        description="Where the bucket's name stands: in the path, as MinIO and SeaweedFS take it, or before the host name, "
        "as Amazon wants it.",
    )
    s3_access_key: str = Field(min_length=1, description="Id of the key that may read, write and list the bucket.")
    s3_secret_key: SecretStr = Field(min_length=1, description="The secret of that key.")
    s3_seconds: float = Field(
        10.0, gt=0, description="The longest that a call of the S3 server may take; after it the server counts as away."
    )


def load(settings: type[S]) -> S:
    """Reads the settings or ends the process with a sentence for each setting that is unknown, missing or wrong."""
    folder = os.environ.get(f"{PREFIX}SECRETS_DIR")
    own = {f"{PREFIX}{name.upper()}" for name in settings.model_fields}
    problems = unknown_settings.in_environment(os.environ, also=own)
    try:
        if folder and not os.path.isdir(folder):
            raise NotADirectoryError(f"{folder} is not a folder")
        if folder:
            problems += unknown_settings.in_folder(os.listdir(folder), also=own)
        read = settings(_secrets_dir=folder or None)
        if not problems:
            return read
    except ValidationError as error:
        problems += [(_variable(*problem["loc"]), _sentence(problem)) for problem in error.errors()]
    except OSError as error:
        problems += [(_variable("secrets_dir"), str(error))]
    for name, sentence in problems:
        print(f"{name}: {sentence}", file=sys.stderr)
    sys.exit(78)  # EX_CONFIG of sysexits.h


def _variable(*location: int | str) -> str:
    return PREFIX + ".".join(map(str, location)).upper()


def _sentence(problem: ErrorDetails) -> str:
    """Never with the value itself, which may be a secret."""
    return "is not set" if problem["type"] == "missing" else problem["msg"].removeprefix("Value error, ")
