"""Measures both transports in turn, by the processor time of the serving process."""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

import grpc
import uvloop
from rich.console import Console
from storymesh.auth.v1.directory_service_pb2 import GetUserRequest
from storymesh.auth.v1.directory_service_pb2_grpc import DirectoryServiceStub
from storymesh.auth.v1.revocation_service_pb2 import WatchRevocationsRequest
from storymesh.auth.v1.revocation_service_pb2_grpc import RevocationServiceStub

from benchmarks.machine import this_machine
from benchmarks.report import Row, as_json, show
from kit.identity.tokens import ServiceTokens
from kit.runtime.clock import system_clock

from .serving import CALLEE, MESH_KEY, MESSAGES

_TRANSPORTS = ("native", "grpcio")
_AT_ONCE = (1, 16)
_REQUEST = GetUserRequest(user_id="01890000-0000-7000-8000-00000000a11c")
_PRINTED_WIDTH = 132

NOTES = (
    "A call passes what kit puts around a method: token, validation, deadline, metrics, log line, span; the method does nothing.",
    f"A stream has {MESSAGES} messages.",
)


@dataclass(frozen=True)
class Served:
    """One serving process."""

    process: asyncio.subprocess.Process
    channel: grpc.aio.Channel

    async def cpu_seconds(self) -> float:
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None  # noqa: S101  # both are pipes
        assert stdout is not None  # noqa: S101
        stdin.write(b"\n")
        return float(await stdout.readline())

    async def unary(self) -> None:
        stub = DirectoryServiceStub(self.channel)
        await stub.GetUser(_REQUEST, metadata=_token())

    async def stream(self) -> None:
        stub = RevocationServiceStub(self.channel)
        async for _ in stub.WatchRevocations(WatchRevocationsRequest(), metadata=_token()):
            pass


def _token() -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {_CALLER.mint(CALLEE)}"),)


_CALLER = ServiceTokens(MESH_KEY, service="story", clock=system_clock)


@asynccontextmanager
async def serving(transport: str) -> AsyncIterator[Served]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "benchmarks.transport.serving", transport),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None  # noqa: S101  # a pipe
    address = (await process.stdout.readline()).decode().strip()
    try:
        async with grpc.aio.insecure_channel(address) as channel:
            yield Served(process, channel)
    finally:
        process.terminate()
        await process.wait()


async def measure(calls: int, rounds: int) -> list[Row]:
    rows = []
    async with AsyncExitStack() as stack:
        servers = {name: await stack.enter_async_context(serving(name)) for name in _TRANSPORTS}
        for what, method, share in (("unary call", Served.unary, 1), ("stream", Served.stream, 5)):
            for at_once in _AT_ONCE:
                costs: dict[str, list[float]] = {name: [] for name in servers}
                for _ in range(rounds):
                    for name, served in servers.items():
                        costs[name].append(await _cost(served, method, calls // share, at_once))
                native, grpcio = (statistics.median(costs[name]) for name in _TRANSPORTS)
                rows.append(
                    Row(f"{what}, {at_once} in flight, on native, processor time", native, "µs", "grpcio", grpcio)
                )
    return rows


async def _cost(served: Served, method: Callable[[Served], Awaitable[None]], calls: int, at_once: int) -> float:
    """Microseconds of processor time a call."""

    async def call(times: int) -> None:
        for _ in range(times):
            await method(served)

    each = max(1, calls // at_once)
    before = await served.cpu_seconds()
    await asyncio.gather(*(call(each) for _ in range(at_once)))
    return 1e6 * (await served.cpu_seconds() - before) / (each * at_once)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.transport", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small measurements: show that all of them run")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    calls, rounds = (100, 1) if options.quick else (2000, 5)
    machine = this_machine()
    rows = uvloop.run(measure(calls, rounds))
    if options.json:
        print(as_json(machine, rows, NOTES))
    else:
        show(Console(width=None if sys.stdout.isatty() else _PRINTED_WIDTH), machine, rows, NOTES)


if __name__ == "__main__":
    main()
