"""Assembles the bootstrap configuration from its parts."""

from __future__ import annotations

from edge import listeners, quotas
from edge.clusters import RATE_LIMIT_CLUSTER, clusters, socket_address
from edge.config import Config, typed
from edge.observability import application_log
from edge.settings import Settings, SettingsError, Sizes
from mesh.contract import Contract


def bootstrap(settings: Settings, contract: Contract) -> Config:
    """The bootstrap configuration as a dict.

    Raises SettingsError when the settings do not fit the contract: a service has no endpoint, or a rate-limit class does not exist.
    """
    needed = dict.fromkeys([*(method.area for method in contract.exposed), RATE_LIMIT_CLUSTER])
    missing = [name for name in needed if name not in settings.services]
    if missing:
        raise SettingsError(f"services: no endpoints for {', '.join(missing)}")
    classes = contract.rate_limit_classes
    if unknown := sorted(settings.rate_limit.on_failure.keys() - set(classes)):
        raise SettingsError(
            f"rate_limit.on_failure: the contract has no rate-limit class {', '.join(unknown)}; it has {', '.join(classes)}"
        )
    quotas.require_fit(settings.rate_limit, classes)
    return {
        "node": {"id": "edge", "cluster": "edge"},
        # Not subject to the connection limit: a flood must not lock the operator out.
        "admin": {"address": socket_address(settings.admin), "ignore_global_conn_limit": True},
        "application_log_config": application_log(),
        "overload_manager": _overload_manager(settings.sizes),
        "static_resources": {
            "listeners": [
                listeners.public(settings, contract),
                listeners.internal(settings, contract),
                *([listeners.statistics(settings.statistics)] if settings.statistics else []),
            ],
            "clusters": clusters(settings),
        },
    }


def _overload_manager(sizes: Sizes) -> Config:
    """Overload protection: at 95 % of the heap limit Envoy returns memory, at 98 % it answers 503, so a flood cannot end it."""
    return {
        "refresh_interval": "0.25s",
        "resource_monitors": [
            {
                "name": "envoy.resource_monitors.fixed_heap",
                "typed_config": typed(
                    "extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig", max_heap_size_bytes=sizes.heap_bytes
                ),
            },
            {
                "name": "envoy.resource_monitors.global_downstream_max_connections",
                "typed_config": typed(
                    "extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                    max_active_downstream_connections=sizes.connections,
                ),
            },
        ],
        "actions": [
            _when_heap_reaches(0.95, "envoy.overload_actions.shrink_heap"),
            _when_heap_reaches(0.98, "envoy.overload_actions.stop_accepting_requests"),
        ],
    }


def _when_heap_reaches(share: float, action: str) -> Config:
    return {
        "name": action,
        "triggers": [{"name": "envoy.resource_monitors.fixed_heap", "threshold": {"value": share}}],
    }
