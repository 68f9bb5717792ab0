"""Redis servers of a test's own, as primaries with replicas and as clusters."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import ConstantBackoff

from local.mesh.components.redis import program
from tests.waiting import until

SLOTS = 16_384


class Node:
    """A running server, and a client of it."""

    def __init__(self, port: int, process: asyncio.subprocess.Process, client: Redis) -> None:
        self.port = port
        self.process = process
        self.client = client

    async def ask(self, *words: str | bytes | int) -> Any:
        ask: Any = self.client.execute_command
        return await ask(*words)

    async def kill(self) -> None:
        if self.process.returncode is None:
            self.process.kill()
        await self.process.wait()


@asynccontextmanager
async def nodes(folder: Path, count: int, **options: str) -> AsyncIterator[list[Node]]:
    """Servers without a configuration in common."""
    with ExitStack() as free:
        ports = [free.enter_context(socket.create_server(("127.0.0.1", 0))).getsockname()[1] for _ in range(2 * count)]
    async with AsyncExitStack() as stack:
        started = []
        for number in range(count):
            place = folder / f"redis-{number}"
            place.mkdir()
            port = ports[2 * number]
            chosen = {
                "port": str(port),
                "cluster-port": str(ports[2 * number + 1]),
                "dir": str(place),
                "save": "",
            } | options
            command = [str(program()), *(word for name, value in chosen.items() for word in (f"--{name}", value))]
            process = await asyncio.create_subprocess_exec(*command, stdout=asyncio.subprocess.DEVNULL)
            client = await stack.enter_async_context(Redis(port=port, retry=Retry(ConstantBackoff(0.05), 400)))
            node = Node(port, process, client)
            stack.push_async_callback(node.kill)
            await client.ping()
            started.append(node)
        yield started


@asynccontextmanager
async def cluster(folder: Path, primaries: int) -> AsyncIterator[list[Node]]:
    """Primaries that share the slots evenly, then a replica of the first one."""
    options = {"cluster-enabled": "yes", "cluster-node-timeout": "2000", "cluster-require-full-coverage": "no"}
    async with nodes(folder, primaries + 1, **options) as started:
        for number, node in enumerate(started[:primaries]):
            first, after = SLOTS * number // primaries, SLOTS * (number + 1) // primaries
            await node.ask("CLUSTER", "ADDSLOTSRANGE", first, after - 1)
            await node.ask("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        await _meet(started)
        replica, primary = started[-1], await started[0].ask("CLUSTER", "MYID")
        await replica.ask("CLUSTER", "REPLICATE", primary.decode())

        async def is_ready() -> bool:
            states = [await node.ask("CLUSTER", "INFO") for node in started]
            follows = (await replica.client.info("replication")).get("master_link_status") == "up"
            return follows and all(
                b"cluster_state:ok" in state and b"slots_assigned:16384" in state for state in states
            )

        await until(is_ready)
        yield started


async def _meet(started: Sequence[Node]) -> None:
    buses = [await node.client.config_get("cluster-port") for node in started]
    for node, bus in zip(started[1:], buses[1:], strict=True):
        await started[0].ask("CLUSTER", "MEET", "127.0.0.1", node.port, str(bus["cluster-port"]))

    async def all_know_each_other() -> bool:
        known = [(await node.ask("CLUSTER", "NODES")).splitlines() for node in started]
        return all(len(each) == len(started) and not any(b"handshake" in line for line in each) for each in known)

    await until(all_know_each_other)
