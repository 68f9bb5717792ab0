"""Runs several scenarios at the same time."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from typing import TypeVar

from .pipeline import Pipeline

T = TypeVar("T")


async def run_concurrently(
    pipelines: Sequence[Pipeline], tasks: Iterable[T], run: Callable[[Pipeline, T], Awaitable[object]]
) -> None:
    """Runs the tasks in their order, one at a time on each pipeline. The first failure cancels the rest."""
    waiting = iter(tasks)

    async def run_on(pipeline: Pipeline) -> None:
        for task in waiting:
            await run(pipeline, task)

    async with asyncio.TaskGroup() as group:
        for pipeline in pipelines:
            group.create_task(run_on(pipeline))
