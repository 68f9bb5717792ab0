"""The settings of the operators' service; the only place that reads its environment."""

from __future__ import annotations

from typing import Any

from pydantic import Field, create_model

from kit.runtime.settings import Key, ServiceSettings
from mesh.catalog import manifests
from mesh.manifest import INBOX

RECEIVERS = tuple(name for name, manifest in manifests().items() if INBOX in manifest.kit_tables)
"""The services that receive events and so have a table of dead letters, from the manifests."""


def _with_targets() -> type[ServiceSettings]:
    """Settings with the address of each such service, derived from the manifests, so that a new service needs no line here."""
    targets: dict[str, Any] = {
        f"{name}_target": (str, Field("127.0.0.1:50051", description=f"Address and port of the {name} service."))
        for name in RECEIVERS
    }
    return create_model("Targets", __base__=ServiceSettings, **targets)


class OpsSettings(_with_targets()):  # type: ignore[misc]  # a base that only the manifests know
    """Settings of the `serve` process."""

    ratelimit_target: str = Field("127.0.0.1:50051", description="Address and port of the ratelimit service.")
    cursor_key: Key = Field(description="Signs page tokens; the same for all replicas.")
