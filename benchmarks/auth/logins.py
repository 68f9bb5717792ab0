"""Measures sign-ins and, alternately, argon2 alone."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial

from argon2 import PasswordHasher, Type

from benchmarks.machine import usable_cores
from services.auth.config import AuthSettings

from . import load
from .running import RunningAuth

COMPONENTS = ("auth", "postgres", "redis")

_CALLERS_PER_CORE = 5
"""As many as auth admits: while padded answers wait for their time, each processor must have another password to hash."""


@dataclass
class Logins:
    """Rates of both, one for each round."""

    rates: list[float] = field(default_factory=list)
    raw_rates: list[float] = field(default_factory=list)
    raw_cpu_seconds: float = 0.0
    """Processor time of one verification."""
    seen: load.Seen = field(default_factory=load.Seen)
    cpu_seconds: dict[str, float] = field(default_factory=dict)
    """Processor time of one sign-in, by process."""


async def measure(auth: RunningAuth, callers: Executor, *, rounds: int, seconds: float) -> Logins:
    cores = usable_cores()
    logins = Logins()
    used = dict.fromkeys(COMPONENTS, 0.0)
    raw_seconds = raw_count = 0.0

    async def sign_in(seconds: float) -> load.Seen:
        job = partial(load.sign_in, auth.target, auth.people, callers=cores * _CALLERS_PER_CORE, seconds=seconds)
        return await asyncio.get_running_loop().run_in_executor(callers, job)

    await sign_in(min(1.0, seconds))  # warm-up: connections, caches, imports
    for _ in range(rounds):
        own = time.process_time()
        rate = await asyncio.to_thread(raw, threads=cores, seconds=seconds)
        raw_seconds += time.process_time() - own
        raw_count += rate * seconds
        logins.raw_rates.append(rate)
        before = {name: auth.cpu_seconds(name) for name in COMPONENTS}
        seen = await sign_in(seconds)
        for name in COMPONENTS:
            used[name] += auth.cpu_seconds(name) - before[name]
        logins.rates.append(seen.rate)
        logins.seen += seen
    logins.raw_cpu_seconds = raw_seconds / raw_count
    logins.cpu_seconds = {name: used[name] / logins.seen.calls for name in COMPONENTS}
    return logins


def raw(*, threads: int, seconds: float) -> float:
    """Verifications per second by argon2-cffi alone, in as many threads as auth uses."""
    hasher = PasswordHasher(
        type=Type.ID,
        memory_cost=_default("memory_kib"),
        time_cost=_default("passes"),
        parallelism=1,
        hash_len=32,
        salt_len=16,
    )
    password = "correct horse battery staple"  # belongs to no account
    stored = hasher.hash(password)

    def verify(_: int) -> float:
        began, done = time.perf_counter(), 0
        while (spent := time.perf_counter() - began) < seconds:
            hasher.verify(stored, password)
            done += 1
        return done / spent

    with ThreadPoolExecutor(threads) as executor:
        return sum(executor.map(verify, range(threads)))


def _default(name: str) -> int:
    default: int = AuthSettings.model_fields[f"password_hash_{name}"].default
    return default
