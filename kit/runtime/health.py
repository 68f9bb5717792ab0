"""gRPC health (grpc.health.v1): overall, per service and per dependency."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from time import monotonic
from typing import Any

from grpc_health.v1 import health
from grpc_health.v1.health_pb2 import HealthCheckResponse

from .loops import every

log = logging.getLogger(__name__)

Check = Callable[[], Awaitable[object]]
"""Raises when the dependency does not answer."""

EVERY_SECONDS = 2.0
CHECK_SECONDS = 2.0
_KNOWN_SECONDS = 2.2
"""The edge asks three times a second, and needs two seconds to give up one that does not answer (envoy/edge/clusters.py)."""

_SERVING = HealthCheckResponse.SERVING
_NOT_SERVING = HealthCheckResponse.NOT_SERVING


def seldom(check: Check, *, every_seconds: float) -> Check:
    """Spares a server that is not ours: what it answered, or that it did not, holds for a while before it is asked again."""
    asked_at: float | None = None
    failure: Exception | None = None

    async def remembered() -> None:
        nonlocal asked_at, failure
        now = monotonic()
        if asked_at is None or now - asked_at >= every_seconds:
            # What stands when the caller loses patience and cancels the check.
            asked_at, failure = now, TimeoutError("no answer in time")
            try:
                await check()
                failure = None
            except Exception as error:
                failure = error
        if failure is not None:
            raise failure

    return remembered


class _Servicer(health.aio.HealthServicer):
    """Remembers when it was asked last."""

    asked_at = float("-inf")

    async def Check(self, request: Any, context: Any) -> Any:  # noqa: N802  # the contract's name
        self.asked_at = monotonic()
        return await super().Check(request, context)


class Health:
    """Answers under "" and each service's name while every required dependency answers; each dependency has a name of its own."""

    def __init__(
        self,
        services: Iterable[str],
        required: Mapping[str, Check],
        optional: Mapping[str, Check],
        *,
        every_seconds: float = EVERY_SECONDS,
        check_seconds: float = CHECK_SECONDS,
    ) -> None:
        """Each dependency is checked every `every_seconds`, and counts as away when it has not answered in `check_seconds`."""
        self.servicer = _Servicer()
        self._services = ("", *services)
        self._required = required
        self._optional = optional
        self._every_seconds = every_seconds
        self._check_seconds = check_seconds
        self._last: dict[str, bool] = {}

    async def watch(self, stopping: asyncio.Event) -> None:
        """Checks until `stopping` is set."""
        await every(self._every_seconds, stopping, self.check, failure="health cannot be told now", at_once=False)

    async def check(self) -> None:
        """Checks every dependency once and publishes the outcome."""
        checks = {**self._required, **self._optional}
        outcomes = dict(zip(checks, await asyncio.gather(*map(self._answers, checks.values())), strict=True))
        for name, good in outcomes.items():
            if not good and self._last.get(name, True):
                log.warning("dependency %s does not answer", name)
            elif good and not self._last.get(name, True):
                log.info("dependency %s answers again", name)
            await self._publish(name, good)
        ready = all(outcomes[name] for name in self._required)
        for name in self._services:
            await self._publish(name, ready)

    async def leave(self) -> None:
        """Answers NOT_SERVING from now on, whatever the checks say."""
        await self.servicer.enter_graceful_shutdown()

    @property
    def known_after_seconds(self) -> float:
        """Seconds until the callers that probe our health know of a change. 0 when no probe has come lately."""
        serves = len(self._services) > 1
        return _KNOWN_SECONDS if serves and monotonic() - self.servicer.asked_at < _KNOWN_SECONDS else 0.0

    async def _answers(self, check: Check) -> bool:
        try:
            async with asyncio.timeout(self._check_seconds):
                await check()
        except Exception:
            return False
        return True

    async def _publish(self, name: str, good: bool) -> None:
        if self._last.get(name) is not good:
            self._last[name] = good
            await self.servicer.set(name, _SERVING if good else _NOT_SERVING)
