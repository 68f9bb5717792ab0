"""The settings of the rate limiter; the only place that reads its environment."""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from kit.runtime.settings import ServiceSettings


class RateLimitSettings(ServiceSettings):
    """Settings of the `serve` process."""

    rate_limit_rules: Path = Field(
        description="The YAML file of the rate-limit rules, or a folder of them; read again when it changes."
    )
    rate_limit_redis_seconds: float = Field(
        0.5,
        gt=0,
        description="The longest that a check waits for Redis; Envoy's own timeout is heeded when it is nearer.",
    )
