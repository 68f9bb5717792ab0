"""Manifest of the rate limiter."""

from mesh.manifest import Manifest

_RULES = "services/ratelimit/rules"

MANIFEST = Manifest(
    port=40,
    # For administrators' calls alone, whose tokens it verifies.
    calls=("auth",),
    redis_keys=("ratelimit",),
    local_settings={"RATE_LIMIT_RULES": f"{_RULES}/local.yaml"},
    container_settings={"RATE_LIMIT_RULES": f"{_RULES}/production.yaml"},
)
