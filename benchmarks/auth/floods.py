"""Measures the latency of other calls while sign-ins arrive faster than passwords can be hashed."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Executor
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import grpc
from storymesh.auth.v1 import account_service_pb2, key_service_pb2
from storymesh.auth.v1.account_service_pb2_grpc import AccountServiceStub
from storymesh.auth.v1.key_service_pb2_grpc import KeyServiceStub

from . import load
from .running import RunningAuth

TIMES = 10
"""Rate of sign-ins in a flood, as a multiple of the rate at which passwords can be hashed."""

_PROBES_A_SECOND = 50
_PROBE_DEADLINE_SECONDS = 5.0
_SETTLING_SECONDS = 1.0


@dataclass
class Probes:
    """Latencies in seconds from the time at which a call was due; a failed call counts as its deadline."""

    get_account: list[float] = field(default_factory=list)
    get_jwks: list[float] = field(default_factory=list)
    failed: int = 0


@dataclass
class Floods:
    quiet: Probes = field(default_factory=Probes)
    flooded: Probes = field(default_factory=Probes)
    flood: load.Seen = field(default_factory=load.Seen)
    """Results of all floods together."""
    auth_cpu_share: float = 0.0
    """Auth's processor time as a share of one processor, in the last flood."""


async def measure(
    auth: RunningAuth, callers: Executor, access_token: str, *, a_second: float, rounds: int, seconds: float
) -> Floods:
    """Probes auth alternately without and with a flood. The callers' process makes the flood, this one the probes."""
    seen = Floods()
    async with grpc.aio.insecure_channel(auth.target) as channel:
        await channel.channel_ready()
        for _ in range(rounds):
            await _probe(channel, access_token, seen.quiet, seconds)
            job = partial(
                load.flood, auth.target, auth.people, a_second=a_second, seconds=seconds + 2 * _SETTLING_SECONDS
            )
            flooding = asyncio.get_running_loop().run_in_executor(callers, job)
            await asyncio.sleep(_SETTLING_SECONDS)
            before = auth.cpu_seconds("auth")
            await _probe(channel, access_token, seen.flooded, seconds)
            seen.auth_cpu_share = (auth.cpu_seconds("auth") - before) / seconds
            seen.flood += await flooding
            await asyncio.sleep(_SETTLING_SECONDS)
    return seen


async def _probe(channel: grpc.aio.Channel, access_token: str, probes: Probes, seconds: float) -> None:
    """Makes calls at a fixed rate, without waiting for answers, because waiting would hide the slowest calls."""
    accounts, keys = AccountServiceStub(channel), KeyServiceStub(channel)
    metadata = (("authorization", f"Bearer {access_token}"),)

    async def get_account(due_at: float) -> None:
        call = accounts.GetAccount(
            account_service_pb2.GetAccountRequest(), metadata=metadata, timeout=_PROBE_DEADLINE_SECONDS
        )
        probes.get_account.append(await _latency(call, due_at, probes))

    async def get_jwks(due_at: float) -> None:
        call = keys.GetJwks(key_service_pb2.GetJwksRequest(), timeout=_PROBE_DEADLINE_SECONDS)
        probes.get_jwks.append(await _latency(call, due_at, probes))

    began = time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for number in range(int(seconds * _PROBES_A_SECOND)):
            due_at = began + number / _PROBES_A_SECOND
            await asyncio.sleep(due_at - time.perf_counter())
            group.create_task(get_account(due_at))
            group.create_task(get_jwks(due_at))


async def _latency(call: grpc.aio.UnaryUnaryCall[Any, Any], due_at: float, probes: Probes) -> float:
    try:
        await call
    except grpc.aio.AioRpcError:
        probes.failed += 1
        return _PROBE_DEADLINE_SECONDS
    return time.perf_counter() - due_at
