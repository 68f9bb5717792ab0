"""Three replicas of a service, some of which die, stand still or drain under load."""

from __future__ import annotations

import asyncio
import signal
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import grpc
import httpx2
import pytest
from storymesh.story.v1 import story_service_pb2 as story
from storymesh.story.v1 import story_service_pb2_grpc as story_grpc

from tests.envoy.conftest import REPOSITORY, Edge, Mesh, until
from tests.envoy.statuses import reason
from tests.statuses import raises_status

HUNG_SECONDS = 3.0
"""The delay that a replica that stands still may cause a call."""
SLOW_MACHINE_SECONDS = 2.0
"""The additional delay allowed on a machine that is busy with other tests."""
READERS, WRITERS = 6, 3


@dataclass
class Replica:
    name: str
    address: str
    process: asyncio.subprocess.Process

    def send(self, number: signal.Signals) -> None:
        self.process.send_signal(number)


@dataclass
class Outcome:
    """The result and duration of one call."""

    kind: str
    status: int
    reason: str
    begun: float
    seconds: float
    by: str


@dataclass
class Crowd:
    """Clients that read and write without a pause and record the outcome of each call."""

    client: httpx2.AsyncClient
    outcomes: list[Outcome] = field(default_factory=list)

    async def read(self) -> Outcome:
        return await self._call("read", lambda: self.client.get("/v1/stories/s"))

    async def write(self) -> Outcome:
        return await self._call("write", lambda: self.client.post("/v1/stories", json={}))

    async def _call(self, kind: str, call: Callable[[], Awaitable[httpx2.Response]]) -> Outcome:
        begun = monotonic()
        answer = await call()
        taken = monotonic() - begun
        said = "" if answer.is_success else reason(answer)
        by = answer.json()["story"]["title"] if answer.is_success else ""
        outcome = Outcome(kind, answer.status_code, said, begun, taken, by)
        self.outcomes.append(outcome)
        return outcome

    @asynccontextmanager
    async def at_work(self) -> AsyncIterator[None]:
        async def repeat(call: Callable[[], Awaitable[Outcome]]) -> None:
            while True:
                await call()

        calls = [self.read] * READERS + [self.write] * WRITERS
        tasks = [asyncio.create_task(repeat(call)) for call in calls]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            assert task.cancelled(), task.exception()

    async def answered_by(self, names: set[str], times: int = 40) -> bool:
        """True if these replicas, and each of them, served the latest calls."""
        latest = self.outcomes[-times:]
        return len(latest) == times and {each.by for each in latest} == names

    def failed(self) -> list[Outcome]:
        return [each for each in self.outcomes if each.status != 200]


@pytest.fixture
async def replicas() -> AsyncIterator[list[Replica]]:
    async with AsyncExitStack() as stack:
        yield await asyncio.gather(*(stack.enter_async_context(replica(name)) for name in ("one", "two", "three")))


@asynccontextmanager
async def replica(name: str, *listen: str) -> AsyncIterator[Replica]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.envoy.story_process", name, *listen),
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
    )
    try:
        assert process.stdout
        address = (await asyncio.wait_for(process.stdout.readline(), 60)).decode().strip()
        yield Replica(name, address, process)
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.fixture
async def edge_of_three(replicas: list[Replica], mesh_with: Callable[..., Awaitable[Edge]]) -> Edge:
    edge: Edge = await mesh_with(endpoints={"story": ",".join(each.address for each in replicas)}, impatient=True)
    return edge


@pytest.fixture
async def crowd(edge_of_three: Edge, mesh: Mesh) -> AsyncIterator[Crowd]:
    bearer = {"authorization": f"Bearer {mesh.key.sign()}"}
    async with httpx2.AsyncClient(base_url=edge_of_three.url, headers=bearer, timeout=30) as client:

        async def serves() -> bool:
            return (await client.get("/v1/stories/s")).status_code == 200

        await until(serves, 30)
        yield Crowd(client)


async def test_killed_replicas_cost_no_read_and_of_writes_only_what_was_under_way(
    crowd: Crowd, replicas: list[Replica]
) -> None:
    async with crowd.at_work():
        await until(lambda: crowd.answered_by({"one", "two", "three"}), 30)
        for each in replicas[:2]:
            each.send(signal.SIGKILL)
        await until(lambda: crowd.answered_by({"three"}), 30)
    failed = crowd.failed()
    assert {(each.kind, each.status, each.reason) for each in failed} <= {("write", 503, "SERVICE_UNAVAILABLE")}
    assert len(failed) <= WRITERS


async def test_drained_replicas_cost_nothing(crowd: Crowd, replicas: list[Replica]) -> None:
    async with crowd.at_work():
        await until(lambda: crowd.answered_by({"one", "two", "three"}), 30)
        for each in replicas[:2]:
            each.send(signal.SIGTERM)
        await until(lambda: crowd.answered_by({"three"}), 30)
        for each in replicas[:2]:
            assert await asyncio.wait_for(each.process.wait(), 30) == 0
    assert crowd.failed() == []


async def test_replicas_that_stand_still_cost_no_read_and_no_call_more_than_three_seconds(
    crowd: Crowd, replicas: list[Replica]
) -> None:
    async with crowd.at_work():
        await until(lambda: crowd.answered_by({"one", "two", "three"}), 30)
        for each in replicas[:2]:
            each.send(signal.SIGSTOP)
        stopped = monotonic()
        await until(lambda: crowd.answered_by({"three"}), 30)
        await until(lambda: any(each.begun > stopped + HUNG_SECONDS for each in crowd.outcomes), 30)
        for each in replicas[:2]:
            each.send(signal.SIGCONT)
        resumed = monotonic()
        await until(lambda: crowd.answered_by({"one", "two", "three"}), 30)
    failed = crowd.failed()
    assert {(each.kind, each.status, each.reason) for each in failed} <= {("write", 503, "SERVICE_UNAVAILABLE")}
    assert max(each.seconds for each in crowd.outcomes) < HUNG_SECONDS + SLOW_MACHINE_SECONDS
    # Answered before the replicas went on, and not by them when they did.
    assert {each.by for each in crowd.outcomes if each.status == 200 and each.seconds > 1} <= {"three"}
    known = [
        each for each in crowd.outcomes if stopped + HUNG_SECONDS < each.begun and each.begun + each.seconds < resumed
    ]
    assert {each.by for each in known} == {"three"}
    assert max(each.seconds for each in known) < SLOW_MACHINE_SECONDS


async def test_a_watch_of_a_replica_that_impatient_ends_and_goes_on_elsewhere(
    crowd: Crowd, replicas: list[Replica]
) -> None:
    async def first_word(lines: AsyncIterator[str]) -> str:
        async for line in lines:
            if line.startswith("data:"):
                return next(each.name for each in replicas if each.name in line)
        return ""

    async with crowd.client.stream("GET", "/v1/stories/s:watch") as watch:
        lines = watch.aiter_lines()
        name = await first_word(lines)
        (watched,) = [each for each in replicas if each.name == name]
        watched.send(signal.SIGSTOP)
        stopped = monotonic()
        with pytest.raises(httpx2.RemoteProtocolError):
            await _last_of(lines)
        assert monotonic() - stopped < HUNG_SECONDS + SLOW_MACHINE_SECONDS

    async def elsewhere() -> bool:
        async with crowd.client.stream("GET", "/v1/stories/s:watch") as again:
            return await first_word(again.aiter_lines()) not in ("", name)

    await until(elsewhere, 10)


async def _last_of(lines: AsyncIterator[str]) -> None:
    async for _ in lines:
        pass


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGSTOP], ids=lambda each: each.name)
async def test_without_a_healthy_replica_every_call_is_refused_at_once_until_one_is_back(
    crowd: Crowd,
    replicas: list[Replica],
    edge_of_three: Edge,
    credentials: tuple[tuple[str, str]],
    number: signal.Signals,
) -> None:
    for each in replicas:
        each.send(number)

    async def refused_at_once() -> bool:
        outcomes = [await crowd.read(), await crowd.write()]
        return all(each.status == 503 and each.seconds < 1 for each in outcomes)

    await until(refused_at_once, 15)
    refusals = [await call() for call in (crowd.read, crowd.write) for _ in range(20)]
    assert Counter((each.status, each.reason) for each in refusals) == {(503, "SERVICE_UNAVAILABLE"): 40}
    answer = await crowd.client.get("/v1/stories/s")
    assert answer.headers["retry-after"] == "1"
    async with grpc.aio.insecure_channel(edge_of_three.target) as channel:
        with raises_status(grpc.StatusCode.UNAVAILABLE, "SERVICE_UNAVAILABLE"):
            stub = story_grpc.StoryServiceStub(channel)
            await stub.GetStory(story.GetStoryRequest(story_id="s"), metadata=credentials)

    async with AsyncExitStack() as stack:
        if number is signal.SIGSTOP:
            replicas[0].send(signal.SIGCONT)
        else:
            await replicas[0].process.wait()
            await stack.enter_async_context(replica("one", replicas[0].address))

        async def served() -> Any:
            return (await crowd.read()).by == "one" and (await crowd.write()).by == "one"

        await until(served, 15)
