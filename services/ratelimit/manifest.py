"""Manifest of the rate limiter."""

from mesh.manifest import Manifest

_RULES = "services/ratelimit/rules"

MANIFEST = Manifest(
    port=40,
    redis_keys=("ratelimit",),
    local_settings={"RATE_LIMIT_RULES": f"{_RULES}/local.yaml"},
    container_settings={"RATE_LIMIT_RULES": f"{_RULES}/production.yaml"},
)
