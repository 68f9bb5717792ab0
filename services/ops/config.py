"""The settings of the operators' service; the only place that reads its environment."""

from __future__ import annotations

from typing import Any

from pydantic import Field, create_model

from kit.runtime.settings import Key, ServiceSettings
from mesh.catalog import manifests
from mesh.manifest import INBOX

KEEPERS = tuple(name for name, manifest in manifests().items() if INBOX in manifest.kit_tables)
"""The services that have a table of dead letters."""


def _with_targets() -> type[ServiceSettings]:
    """Settings with the address of each keeper: a service that comes to the mesh brings its own without a line here."""
    targets: dict[str, Any] = {
        f"{name}_target": (str, Field("127.0.0.1:50051", description=f"Address and port of the {name} service."))
        for name in KEEPERS
    }
    return create_model("Targets", __base__=ServiceSettings, **targets)


class OpsSettings(_with_targets()):  # type: ignore[misc]  # a base that only the manifests know
    """What `serve` is told."""

    cursor_key: Key = Field(description="Signs page tokens; the same for all replicas.")
