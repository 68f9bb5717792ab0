"""Settings every service has, and how settings are read.

Values come from `STORYMESH_*` environment variables; secrets may also lie in files named like the setting in lower case, in the
folder that `STORYMESH_SECRETS_DIR` names (the form that Docker and Kubernetes mount).
"""

from __future__ import annotations

import base64
import os
import sys
from typing import Annotated, Literal, TypeVar

from pydantic import AfterValidator, BeforeValidator, Field, SecretBytes, SecretStr, ValidationError
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError

PREFIX = "STORYMESH_"
KEY_BYTES = 32
_STANDARD_ALPHABET = str.maketrans("-_", "+/")

S = TypeVar("S", bound=BaseSettings)


def _decoded(value: object) -> bytes:
    if isinstance(value, bytes):
        return value
    # The other alphabet's two characters may stand too: the key is the same, and `openssl rand -base64` writes it so.
    text = str(value).strip().rstrip("=").translate(_STANDARD_ALPHABET)
    try:
        # Strict: the lenient decoder skips what it does not know, which makes another key than the other service has.
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise ValueError("is not base64url") from None


def _long_enough(value: SecretBytes) -> SecretBytes:
    if len(value.get_secret_value()) < KEY_BYTES:
        raise ValueError(f"needs at least {KEY_BYTES} random bytes in base64url, as from: openssl rand -base64 32")
    return value


def _for_psycopg(value: SecretStr) -> SecretStr:
    try:
        driver = make_url(value.get_secret_value()).drivername
    except ArgumentError:
        driver = ""
    if driver != "postgresql+psycopg":
        raise ValueError("needs the form postgresql+psycopg://role:password@host:port/database")
    return value


def _for_redis(value: SecretStr) -> SecretStr:
    if not value.get_secret_value().startswith(("redis://", "rediss://", "unix://")):
        raise ValueError("needs the form redis://user:password@host:port/number, or rediss:// for TLS")
    return value


Key = Annotated[SecretBytes, BeforeValidator(_decoded), AfterValidator(_long_enough)]
"""A secret key of at least 32 bytes, written in base64url."""


class ServiceSettings(BaseSettings):
    """What every process of the mesh is told."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", hide_input_in_errors=True)

    environment: Literal["development", "production"] = Field(
        "development", description="Where the process runs; every log line says so."
    )
    listen: str = Field("127.0.0.1:50051", description="Address and port of the gRPC server.")
    redis_url: Annotated[SecretStr, AfterValidator(_for_redis)] = Field(
        SecretStr("redis://127.0.0.1:6379/0"), description="Redis 6.2 or newer, or Valkey."
    )
    mesh_key: Key = Field(description="Signs the tokens by which services prove themselves to each other.")
    auth_target: str = Field("127.0.0.1:50051", description="Address and port of the auth service.")
    token_issuer: str = Field("storymesh", description="The `iss` of access tokens.")
    token_audience: str = Field("storymesh", description="The `aud` of access tokens.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        "INFO", description="The least level that is logged."
    )
    otlp_endpoint: str = Field(
        "", description="OTLP/gRPC collector, such as http://jaeger:4317; empty: traces are not exported."
    )
    drain_seconds: float = Field(10.0, gt=0, description="How long open calls and running work may take after SIGTERM.")
    call_seconds: float = Field(15.0, gt=0, description="The longest that a unary call may take.")


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


def load(settings: type[S]) -> S:
    """Reads the settings or ends the process with a sentence for each setting that is missing or wrong."""
    folder = os.environ.get(f"{PREFIX}SECRETS_DIR")
    try:
        if folder and not os.path.isdir(folder):
            raise NotADirectoryError(f"{folder} is not a folder")
        return settings(_secrets_dir=folder or None)
    except ValidationError as error:
        problems = [(".".join(map(str, problem["loc"])), _sentence(problem)) for problem in error.errors()]
    except OSError as error:
        problems = [("secrets_dir", str(error))]
    for name, sentence in problems:
        print(f"{PREFIX}{name.upper()}: {sentence}", file=sys.stderr)
    sys.exit(78)  # EX_CONFIG of sysexits.h


def _sentence(problem: ErrorDetails) -> str:
    """Never with the value itself, which may be a secret."""
    return "is not set" if problem["type"] == "missing" else problem["msg"].removeprefix("Value error, ")
