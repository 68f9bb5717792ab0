"""Settings of the local runner, from `STORYMESH_*`; the only module of `local` that reads the environment."""

import os
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import AfterValidator, Field, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, SettingsConfigDict

from kit.runtime import unknown_settings
from local.failures import LocalSettingsError
from mesh.catalog import DEFAULT_BASE_PORT, FIRST_SPARE_PORT, PORTS_IN_A_MESH, manifests

REPOSITORY = Path(__file__).resolve().parents[1]
LONGEST_TMPDIR = 60
"""Longest TMPDIR in bytes: programs create Unix sockets in subfolders of it, and a socket path holds about 100 bytes."""


def _absolute(path: Path) -> Path:
    return path.expanduser().absolute()


FilePath = Annotated[Path, AfterValidator(_absolute)]
"""An absolute path, which does not depend on a process's working directory."""


class LocalSettings(BaseSettings):
    """Settings of one mesh. Two meshes on one machine differ in `state_dir`, `port` and `base_port`.

    Besides the fields below, it has `<service>_workers` for each service that runs several workers.
    """

    model_config = SettingsConfigDict(env_prefix="STORYMESH_", frozen=True, extra="ignore")

    state_dir: FilePath = Field(
        default=REPOSITORY / ".local",
        description="Directory of everything the mesh keeps: data, secrets, logs and mail.",
    )
    port: int = Field(default=8080, ge=1, le=65535, description="Port of the edge.")
    base_port: int = Field(
        default=DEFAULT_BASE_PORT,
        ge=1024,
        le=65535 - PORTS_IN_A_MESH,
        description=f"First of the {PORTS_IN_A_MESH} ports that the components share. The default lies below every system's "
        "ephemeral range, so that no outgoing connection takes one of them by accident.",
    )
    writer: str = Field(
        default="",
        description="`local`, `openai` or `composer`. Empty: `local` where its package and model are installed, "
        "else `composer`.",
    )
    model_path: FilePath | None = Field(default=None, description="GGUF file of the `local` writer.")
    edge_settings: FilePath = Field(
        default=REPOSITORY / "envoy" / "edge.yaml",
        description="Settings file of the edge, read at each of its starts. Its addresses are decided by the runner.",
    )
    s3_origins: str = Field(
        default="",
        description="Origins of the pages that may send signed requests to the object store from a browser, separated by "
        "commas, such as https://app.example.com; empty: none.",
    )
    start_seconds: float = Field(
        default=60.0, gt=0, description="How long one component may take to become healthy before that is a failure."
    )
    min_free_megabytes: int = Field(
        default=512, ge=0, description="Free disk space below which the mesh refuses to start."
    )
    durable: bool = Field(
        default=True,
        description="Whether Postgres and Redis wait for the disk. Tests turn it off; what a crash of the machine "
        "loses does not matter to them.",
    )

    @model_validator(mode="after")
    def _the_edge_stays_out_of_the_components_range(self) -> Self:
        if self.base_port <= self.port < self.base_port + FIRST_SPARE_PORT:
            raise ValueError(
                f"the edge's port {self.port} lies among the components' ports "
                f"{self.base_port}-{self.base_port + PORTS_IN_A_MESH - 1}"
            )
        return self

    def workers(self, service: str) -> int:
        """Number of worker processes of the service."""
        count: int = getattr(self, worker_setting(service), manifests()[service].workers)
        return count

    def environment(self) -> dict[str, str]:
        """These settings as environment variables for another process."""
        return {f"STORYMESH_{name.upper()}": str(value) for name, value in self if value is not None}


def worker_setting(service: str) -> str:
    """Name of the setting for the number of the service's workers."""
    return f"{service}_workers"


def scaled() -> tuple[str, ...]:
    """Services whose number of workers can be set."""
    return tuple(name for name, manifest in manifests().items() if manifest.most_workers > 1)


for _name in scaled():
    LocalSettings.model_fields[worker_setting(_name)] = FieldInfo.from_annotated_attribute(
        int,
        Field(
            default=manifests()[_name].workers,
            ge=1,
            le=manifests()[_name].most_workers,
            description=f"How many {_name} workers run side by side.",
        ),
    )
LocalSettings.model_rebuild(force=True)


def load(**overrides: Any) -> LocalSettings:
    """Read the settings; `overrides` that are not None take precedence over the environment.

    Raises LocalSettingsError with a sentence for each variable that is not a setting, or for the first invalid value.
    """
    if unknown := unknown_settings.in_environment(os.environ):
        raise LocalSettingsError("\n".join(f"{name} {sentence}." for name, sentence in unknown))
    try:
        return LocalSettings(**{name: value for name, value in overrides.items() if value is not None})
    except ValidationError as error:
        problem = error.errors()[0]
        if problem["loc"]:
            name = f"STORYMESH_{str(problem['loc'][0]).upper()}"
            raise LocalSettingsError(f"{name}={problem['input']!r} cannot be used: {problem['msg']}.") from None
        reason = problem["msg"].removeprefix("Value error, ")
        raise LocalSettingsError(
            f"STORYMESH_PORT and STORYMESH_BASE_PORT collide: {reason}; change one of them."
        ) from None


def inherited_environment() -> dict[str, str]:
    """The part of the caller's environment that every child process gets: enough to run, and no credential by accident.

    Proxy variables are left out, because gRPC would send even loopback calls through a proxy.
    """
    names = ("PATH", "HOME", "LANG", "TZ", "TMPDIR", "USER", "LOGNAME", "TERM")
    prefixes = ("LC_", "PYTHON", "SSL_CERT_", "UV_", "VIRTUAL_ENV", "COVERAGE_", "DYLD_", "LD_LIBRARY_PATH")
    kept = {
        name: value for name, value in supervisors_environment().items() if name in names or name.startswith(prefixes)
    }
    if len(os.fsencode(kept.get("TMPDIR", ""))) > LONGEST_TMPDIR:
        del kept["TMPDIR"]
    return kept | {"PYTHONUNBUFFERED": "1"}


def supervisors_environment() -> dict[str, str]:
    """The caller's environment without PYTHONDONTWRITEBYTECODE.

    Without cached bytecode each of a dozen processes compiles every package, which takes longer than the rest of the start.
    """
    return {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}


def users_settings() -> dict[str, str]:
    """Every `STORYMESH_*` variable that the caller has set; the process table decides which process gets which."""
    return {name: value for name, value in os.environ.items() if name.startswith("STORYMESH_")}
