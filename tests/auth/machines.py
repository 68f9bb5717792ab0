"""Hypothesis state machines over a world that lives on an event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import datetime, timedelta
from functools import partial
from typing import Any, TypeVar, cast

from grpc.aio import AioRpcError
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import RuleBasedStateMachine, run_state_machine_as_test
from sqlalchemy import text

from services.auth.worker import Upkeep
from tests.auth.conftest import AuthWorld
from tests.statuses import reason_of

T = TypeVar("T")

_STEP_SECONDS = 30.0


class WorldMachine(RuleBasedStateMachine):
    """Begins each example with empty servers. Its synchronous rules run in a thread; `run` awaits on the event loop for them."""

    def __init__(self, world: AuthWorld, begins_at: datetime, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__()
        self.world = world
        self._loop = loop
        self.run(_start_over(world, begins_at))

    @property
    def now(self) -> datetime:
        return self.world.clock()

    def run(self, call: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(call, self._loop).result(_STEP_SECONDS)

    def outcome(self, call: Coroutine[Any, Any, T]) -> T | str:
        """The call's answer, or the reason of its refusal."""
        try:
            return self.run(call)
        except AioRpcError as error:
            return reason_of(error)


async def explore(machine: type[WorldMachine], world: AuthWorld, *, examples: int, steps: int) -> None:
    """Run the machine, derandomized: it takes the same paths every time, so that a failure is due to a change."""
    # Whole seconds, so that waits are exact in Redis's milliseconds.
    begins_at = world.clock.now.replace(microsecond=0)
    # Hypothesis's docstring allows any callable here.
    factory = cast("type[RuleBasedStateMachine]", partial(machine, world, begins_at, asyncio.get_running_loop()))
    profile = settings(
        max_examples=examples,
        stateful_step_count=steps,
        derandomize=True,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        # No deadline, because each step calls real servers.
        suppress_health_check=[HealthCheck.too_slow],
    )
    await asyncio.to_thread(run_state_machine_as_test, factory, settings=profile)


async def _start_over(world: AuthWorld, begins_at: datetime) -> None:
    """Empty the servers, but not the signing keys, which the service holds in memory."""
    await world.execute(
        "TRUNCATE users, registrations, challenges, sessions, revocations, audit_entries, outbox CASCADE"
    )
    await world.redis.flushall()
    world.clock.now = begins_at


async def clean_up(world: AuthWorld) -> None:
    """Run upkeep, but not on the audit log, which the database protects by its own clock."""
    century = timedelta(days=36_500)
    await Upkeep(world.db, world.ops.key_rotation, world.clock, every_seconds=1, audit_kept=century).clean_up()


async def rows(world: AuthWorld, query: str, **values: object) -> list[tuple[Any, ...]]:
    async with world.db.transaction() as tx:
        return [tuple(row) for row in await tx.execute(text(query), values)]
