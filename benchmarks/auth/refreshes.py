"""Measures refreshes of tokens, with many sessions and few concurrent callers."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import Executor
from functools import partial

from benchmarks.machine import usable_cores

from . import load
from .running import RunningAuth

_CALLERS_PER_CORE = 4


async def measure(auth: RunningAuth, callers: Executor, refresh_tokens: Sequence[str], *, seconds: float) -> load.Seen:
    job = partial(
        load.refresh, auth.target, refresh_tokens, callers=usable_cores() * _CALLERS_PER_CORE, seconds=seconds
    )
    return await asyncio.get_running_loop().run_in_executor(callers, job)
