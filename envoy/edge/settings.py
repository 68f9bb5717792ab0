"""The edge's settings: one YAML file with overrides.

Every field's default suits one machine. An invalid or unknown field is refused with its name, because a setting must not
silently have no effect.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from mesh.catalog import DEFAULT_BASE_PORT, manifests
from mesh.contract import DESCRIPTORS
from mesh.edge_protocol import CLOCK_SKEW_SECONDS, TOKEN_AUDIENCE, TOKEN_ISSUER


class Address(NamedTuple):
    """A host (name or address, IPv6 without brackets) and a port."""

    host: str
    port: int


def _address(value: object) -> object:
    if not isinstance(value, str):
        return value
    host, colon, port = value.rpartition(":")
    if not colon or not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ValueError(f"{value!r} is not host:port")
    return Address(host.removeprefix("[").removesuffix("]"), int(port))


def _listed(value: object) -> object:
    """Accepts `a:1,b:2` beside a YAML list, so that an override on the command line stays short."""
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


HostPort = Annotated[Address, BeforeValidator(_address)]
Endpoints = Annotated[tuple[HostPort, ...], BeforeValidator(_listed), Field(min_length=1)]
Origins = Annotated[tuple[str, ...], BeforeValidator(_listed)]
Seconds = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Files(_Section):
    """Files that the edge reads. Relative paths start at the settings file; the defaults are the repository's."""

    contract: Path = Field(default=DESCRIPTORS, description="Descriptor set of the contract.")
    openapi: Path = Field(default=DESCRIPTORS.with_name("openapi.yaml"), description="Served at /openapi.yaml.")
    docs: Path = Field(default=DESCRIPTORS.with_name("docs.html"), description="Served at /docs.")


class Authentication(_Section):
    """Which access tokens the edge lets in."""

    issuer: str = Field(default=TOKEN_ISSUER, description="The `iss` claim.")
    audience: str = Field(default=TOKEN_AUDIENCE, description="The `aud` claim.")
    clock_skew_seconds: Annotated[int, Field(ge=0)] = Field(
        default=CLOCK_SKEW_SECONDS, description="How far clocks may differ when a token begins or ends."
    )
    keys_cache_seconds: Seconds = Field(
        default=300,
        description="How old the edge's copy of the key set may grow. Shorter than the time a key is published before it signs.",
    )


class Cors(_Section):
    """Which web pages may call the edge from a browser."""

    origins: Origins = Field(default=(), description="Exact origins, or `*` for any; none by default.")
    max_age_seconds: Count = Field(
        default=600, description="How long a browser may remember the answer to a preflight."
    )


class Timeouts(_Section):
    """How long the edge waits."""

    unary_seconds: Seconds = Field(default=15, description="For the whole answer of a call that does not stream.")
    stream_idle_seconds: Seconds = Field(
        default=60,
        description="For the next message of a stream. Longer than the services' heartbeats, which come every 15 s.",
    )
    stream_seconds: Seconds = Field(default=3600, description="For a whole stream; clients resume afterwards.")
    connect_seconds: Seconds = Field(default=1, description="For a connection to a service.")
    request_headers_seconds: Seconds = Field(default=10, description="For all headers of a request to arrive.")
    connection_idle_seconds: Seconds = Field(default=300, description="Before a connection without requests is closed.")


class Sizes(_Section):
    """Limits on sizes and counts."""

    request_body_bytes: Count = Field(default=131_072, description="Of a request; more is refused with 413.")
    response_body_bytes: Count = Field(
        default=4_194_304, description="Of a JSON answer, which is buffered while it is made."
    )
    request_headers_kb: Annotated[int, Field(gt=0, le=48)] = Field(
        default=32, description="Of all headers of a request. The services take 64 KB together with what the edge adds."
    )
    connections: Count = Field(default=10_000, description="Open at the same time, over all clients.")
    streams_per_connection: Count = Field(default=100, description="Of one HTTP/2 connection at the same time.")
    requests_per_service: Count = Field(default=10_000, description="In flight to one service, open streams included.")
    heap_bytes: Count = Field(default=536_870_912, description="Memory near which the edge starts to refuse requests.")


class OnFailure(Enum):
    """What happens to a call when the limiter does not answer."""

    ALLOW = "allow"
    DENY = "deny"


class LocalLimit(_Section):
    """A token bucket over all clients in Envoy itself: it keeps a flood from reaching the limiter."""

    requests_per_second: Count = Field(default=5_000, description="The rate.")
    burst: Count = Field(default=10_000, description="The bucket's size.")


class RateLimit(_Section):
    """How the edge asks the limiter."""

    domain: str = Field(default="storymesh", description="The limiter's domain.")
    timeout_seconds: Seconds = Field(default=0.25, description="For the limiter's answer.")
    on_failure: dict[str, OnFailure] = Field(
        default={
            "stream": OnFailure.ALLOW,
            "refresh": OnFailure.ALLOW,
            "page": OnFailure.ALLOW,
            "default": OnFailure.ALLOW,
        },
        description="Per rate-limit class of the contract, what happens when the limiter does not answer. A class left out "
        "is denied: guessing passwords and spending computing time must not become free. Reading must not stop, and nobody be "
        "signed out.",
    )
    quota_classes: tuple[str, ...] = Field(
        default=(),
        description="Rate-limit classes of which the edge decides by itself: the limiter hands it tokens by the quota protocol "
        "(RLQS). Such calls cost no question, but tell no limits in headers; docs/rate-limits.md says what else is different. Only "
        "classes whose calls pass while the limiter does not answer.",
    )
    local: LocalLimit = LocalLimit()


class Tracing(_Section):
    """The trace collector. Without one, the edge still starts or continues every trace and passes it on."""

    otlp: HostPort | None = Field(default=None, description="The collector's OTLP/gRPC address.")
    sampling_percent: Annotated[float, Field(ge=0, le=100)] = Field(
        default=100, description="How many of the traces that begin here are recorded, when there is a collector."
    )


class Settings(_Section):
    """All settings of one edge."""

    listen: HostPort = Field(default=Address("127.0.0.1", 8080), description="Where clients connect.")
    admin: HostPort = Field(
        default=Address("127.0.0.1", 9901), description="Envoy's admin interface; keep it on loopback."
    )
    internal: HostPort = Field(
        default=Address("127.0.0.1", 9902),
        description="Where Envoy fetches the key set from itself; keep it on loopback.",
    )
    statistics: HostPort | None = Field(
        default=None,
        description="Where Prometheus reads Envoy's statistics, and nothing else of the admin interface. Unset: nowhere.",
    )
    trusted_proxies: Annotated[int, Field(ge=0)] = Field(
        default=0,
        description="How many proxies in front append to x-forwarded-for. One too many, and clients choose their own address.",
    )
    services: dict[str, Endpoints] = Field(
        description="Endpoints of each service. Every process is one endpoint. A file that names some has to name all."
    )
    drain_seconds: Seconds = Field(default=10, description="How long open requests may go on after SIGTERM.")
    files: Files = Files()
    authentication: Authentication = Authentication()
    cors: Cors = Cors()
    timeouts: Timeouts = Timeouts()
    sizes: Sizes = Sizes()
    rate_limit: RateLimit = RateLimit()
    tracing: Tracing = Tracing()


class SettingsError(Exception):
    """The settings cannot be used; the message names the file and the field."""


def load(path: Path, overrides: Iterable[str] = ()) -> Settings:
    """Reads the settings file. An override is `dotted.name=value` with the value in YAML, and wins over the file.

    Raises SettingsError for a missing file, invalid YAML, an unknown field or a value that does not fit.
    """
    try:
        document = yaml.safe_load(path.read_text()) or {}
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"cannot read the settings {path}: {error}") from error
    if isinstance(document, dict):
        document.setdefault("services", _services_of_one_machine())
    for override in overrides:
        _override(document, override)
    try:
        settings = Settings.model_validate(document)
    except ValidationError as error:
        problems = "; ".join(f"{'.'.join(map(str, each['loc']))}: {each['msg']}" for each in error.errors())
        raise SettingsError(f"{path}: {problems}") from error
    beside = path.resolve().parent
    files = {name: (beside / value).resolve() for name, value in settings.files}
    return settings.model_copy(update={"files": Files(**files)})


def _services_of_one_machine() -> dict[str, list[str]]:
    return {name: [f"127.0.0.1:{DEFAULT_BASE_PORT + manifest.port}"] for name, manifest in manifests().items()}


def _override(document: dict[str, Any], override: str) -> None:
    name, equals, value = override.partition("=")
    if not equals:
        raise SettingsError(f"--set {override}: expected name=value")
    *sections, last = name.split(".")
    for section in sections:
        document = document.setdefault(section, {})
        if not isinstance(document, dict):
            raise SettingsError(f"--set {override}: {section} is not a section")
    try:
        document[last] = yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise SettingsError(f"--set {override}: {error}") from error
