"""Callers of auth, which run in a process of their own so that they do not slow the measuring process.

Each function opens its own channel, makes calls for a given time and returns the results. Requests are serialised before the
measurement starts, and answers are parsed only where their content is needed.
"""

from __future__ import annotations

import asyncio
import gc
import multiprocessing
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, fields
from itertools import cycle
from typing import Self

import grpc
import uvloop
from storymesh.auth.v1 import session_service_pb2 as pb

CREATE_SESSION = "/storymesh.auth.v1.SessionService/CreateSession"
REFRESH_SESSION = "/storymesh.auth.v1.SessionService/RefreshSession"

_DEADLINE_SECONDS = 10.0
_STEP_SECONDS = 0.002
_MOST_STEPS_AT_ONCE = 4
_HEADERS = (("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-00"),)
"""As the edge sends them: of a trace that is not sampled."""
_REFUSED = {grpc.StatusCode.RESOURCE_EXHAUSTED}


@dataclass(frozen=True)
class Person:
    """The credentials of an account."""

    login: str
    password: str


@dataclass
class Seen:
    """Results of the callers in the measured time."""

    answered: int = 0
    refused: int = 0
    """Calls refused with RESOURCE_EXHAUSTED, which is intended."""
    failed: int = 0
    """Calls that failed otherwise, exceeded deadlines included."""
    seconds: float = 0.0
    own_cpu_seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    """Latencies of the answered calls, in seconds."""
    refresh_tokens: list[str] = field(default_factory=list)
    """Refresh tokens of the sessions that were opened."""

    @property
    def rate(self) -> float:
        return self.answered / self.seconds

    @property
    def calls(self) -> int:
        return self.answered + self.refused + self.failed

    def __iadd__(self, other: Seen) -> Self:
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))
        return self


def process() -> ProcessPoolExecutor:
    """One process for all measurements of a run, which imports once. It is spawned, because gRPC does not survive a fork."""
    return ProcessPoolExecutor(
        1, mp_context=multiprocessing.get_context("spawn"), initializer=disable_garbage_collection
    )


def disable_garbage_collection() -> None:
    """Disables garbage collection in a measuring process: a pause of 50 ms would count as the service's and bunch the calls."""
    gc.disable()


def sign_in(target: str, people: Sequence[Person], *, callers: int, seconds: float) -> Seen:
    """Signs in with concurrent callers, each of which begins its next call when the last is answered (a closed loop)."""
    requests = cycle([_request(person) for person in people])

    async def once(channel: grpc.aio.Channel, seen: Seen) -> None:
        data = await _call(channel, CREATE_SESSION, next(requests))
        seen.refresh_tokens.append(pb.CreateSessionResponse.FromString(data).tokens.refresh_token)

    async def caller(channel: grpc.aio.Channel, _: int, ends: float, seen: Seen) -> None:
        while time.perf_counter() < ends:
            await _timed(once(channel, seen), seen)

    return uvloop.run(_measured(target, callers, seconds, caller))


def refresh(target: str, refresh_tokens: Sequence[str], *, callers: int, seconds: float) -> Seen:
    """Refreshes sessions with concurrent callers; each cycles through its own share of the sessions."""
    tokens = list(refresh_tokens)

    async def once(channel: grpc.aio.Channel, place: int) -> None:
        request = pb.RefreshSessionRequest(refresh_token=tokens[place]).SerializeToString()
        data = await _call(channel, REFRESH_SESSION, request)
        tokens[place] = pb.RefreshSessionResponse.FromString(data).tokens.refresh_token

    async def caller(channel: grpc.aio.Channel, number: int, ends: float, seen: Seen) -> None:
        for place in cycle(range(number, len(tokens), callers)):
            if time.perf_counter() >= ends:
                return
            await _timed(once(channel, place), seen)

    seen = uvloop.run(_measured(target, callers, seconds, caller))
    seen.refresh_tokens = tokens
    return seen


def flood(target: str, people: Sequence[Person], *, a_second: float, seconds: float) -> Seen:
    """Signs in at a fixed rate, without waiting for answers (an open loop).

    Calls that are late because this process did not get a processor are dropped, because making up for them would raise the rate.
    """
    requests = cycle([_request(person) for person in people])

    async def crowd(channel: grpc.aio.Channel, _: int, ends: float, seen: Seen) -> None:
        before, due = time.perf_counter(), 0.0
        open_calls: set[asyncio.Task[None]] = set()
        while (now := time.perf_counter()) < ends:
            # Calls start in small batches, because a timer for each call would cost more than the call.
            due = min(due + (now - before) * a_second, _MOST_STEPS_AT_ONCE * _STEP_SECONDS * a_second)
            before = now
            while due >= 1:
                task = asyncio.create_task(_timed(_call(channel, CREATE_SESSION, next(requests)), seen))
                open_calls.add(task)
                task.add_done_callback(open_calls.discard)
                due -= 1
            await asyncio.sleep(_STEP_SECONDS)
        await asyncio.gather(*open_calls)

    return uvloop.run(_measured(target, 1, seconds, crowd))


def _call(channel: grpc.aio.Channel, path: str, request: bytes) -> Awaitable[bytes]:
    """Makes a call with serialised messages."""
    method: Callable[..., Awaitable[bytes]] = channel.unary_unary(path)
    return method(request, timeout=_DEADLINE_SECONDS, metadata=_HEADERS)


async def _measured(
    target: str, callers: int, seconds: float, caller: Callable[[grpc.aio.Channel, int, float, Seen], Awaitable[None]]
) -> Seen:
    seen = Seen()
    async with grpc.aio.insecure_channel(target) as channel:
        await channel.channel_ready()
        began, own = time.perf_counter(), time.process_time()
        await asyncio.gather(*(caller(channel, number, began + seconds, seen) for number in range(callers)))
        seen.seconds = time.perf_counter() - began
        seen.own_cpu_seconds = time.process_time() - own
    return seen


async def _timed(call: Awaitable[object], seen: Seen) -> None:
    began = time.perf_counter()
    try:
        await call
    except grpc.aio.AioRpcError as error:
        if error.code() in _REFUSED:
            seen.refused += 1
        else:
            seen.failed += 1
        return
    seen.answered += 1
    seen.latencies.append(time.perf_counter() - began)


def _request(person: Person) -> bytes:
    return pb.CreateSessionRequest(login=person.login, password=person.password).SerializeToString()
