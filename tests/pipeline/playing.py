"""Many scenarios at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from .world import World

T = TypeVar("T")


async def side_by_side(
    worlds: Sequence[World], tasks: Iterable[T], play: Callable[[World, T], Awaitable[object]]
) -> None:
    """Plays them in order, as many at a time as there are worlds. The first failure ends it."""
    waiting = iter(tasks)

    async def play_on(world: World) -> None:
        for task in waiting:
            await play(world, task)

    async with asyncio.TaskGroup() as group:
        for world in worlds:
            group.create_task(play_on(world))
