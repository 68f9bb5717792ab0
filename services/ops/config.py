"""The settings of the operators' service; the only place that reads its environment."""

from __future__ import annotations

from typing import Any

from pydantic import Field, create_model

from kit.runtime.settings import Key, ServiceSettings
from mesh.catalog import manifests
from mesh.manifest import INBOX

KEEPERS = tuple(name for name, manifest in manifests().items() if INBOX in manifest.kit_tables)
"""The services that have a table of dead letters."""


class OpsSettings(ServiceSettings):
    """What `serve` is told, besides where the keepers are."""

    cursor_key: Key = Field(description="Signs page tokens; the same for all replicas.")


_TARGETS: dict[str, Any] = {
    f"{name}_target": (str, Field("127.0.0.1:50051", description=f"Address and port of the {name} service."))
    for name in KEEPERS
}

SETTINGS: type[OpsSettings] = create_model("SETTINGS", __base__=OpsSettings, **_TARGETS)
"""All that `serve` is told: a service that comes to the mesh brings its address without a line here."""
