"""The settings of the rate limiter; the only place that reads its environment."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from kit.runtime.settings import ServiceSettings


class RateLimitSettings(ServiceSettings):
    """Settings of the `serve` process."""

    grpc_server: Literal["grpcio", "native"] = Field(
        "native",
        description="As for every service. Only the edge calls the limiter, and a check costs a tenth on the native server.",
    )
    rate_limit_rules: Path = Field(
        description="The YAML file of the rate-limit rules, or a folder of them; read again when it changes."
    )
    rate_limit_redis_seconds: float = Field(
        0.5,
        gt=0,
        description="The longest that a check waits for Redis; Envoy's own timeout is heeded when it is nearer.",
    )
