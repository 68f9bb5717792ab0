"""Deaths and pauses of processes and servers while stories are requested, written, watched and announced: no client notices."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import replace
from functools import partial
from itertools import count

import httpx2
import psutil
import psycopg
import pytest
from redis.asyncio import Redis

from kit.events.inbox_stream import GROUP, stream_of
from local.failures import NotReady
from local.harness import RunningMesh
from local.mesh import writers
from local.mesh.components import services
from local.supervision.component import Component
from local.supervision.process import Child
from tests.system.conftest import databases_of, registered
from tests.system.ends import Reader, at_rest, ended_once, mailed
from tests.waiting import until

_PACE_SECONDS = 0.4
"""The pause between two requests of a client that requests stories continuously."""

_HELD_UP = "SELECT client_port FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND query LIKE '%UPDATE outbox%'"

WORKERS = ("story-worker-1", "story-worker-2")
AT_A_TIME = 4
"""Stories that both workers together write at a time."""
QUEUED = {"state": "STORY_STATE_QUEUED"}


async def writing(redis: Redis) -> set[int]:
    """Return the ids of the processes that write a story; the names of an inbox's consumers contain them."""
    consumers = await redis.xinfo_consumers(stream_of("story"), GROUP)
    return {int(each["name"].decode().split("-")[-2]) for each in consumers if each["pending"]}


@pytest.mark.parametrize("all_die", [False, True], ids=["by-another", "by-whoever-comes-back"])
async def test_a_story_whose_worker_is_killed_is_finished(
    mesh: RunningMesh, http: httpx2.AsyncClient, mesh_redis: Redis, all_die: bool
) -> None:
    # No other story is being written meanwhile.
    await at_rest(mesh, mesh_redis)
    pids = {name: mesh.pid(name) for name in WORKERS}
    reader = Reader(await registered(mesh, http))
    story_id = await reader.ask("one", "STORY_LENGTH_MEDIUM" if all_die else "STORY_LENGTH_SHORT")
    follower = reader.follow(story_id)
    async with asyncio.TaskGroup() as group:
        group.create_task(follower.to_the_end())
        # In one case before the first checkpoint, so that the text starts over; in the other after it, so that the text continues.
        await until(lambda: len(follower.text) >= (400 if all_die else 1))
        (writer,) = await writing(mesh_redis)
        doomed = {name: pid for name, pid in pids.items() if all_die or pid == writer}
        signal_all(doomed.values(), signal.SIGKILL)
    for name, pid in doomed.items():
        await mesh.healthy(name, not_pid=pid)
    await ended_once(mesh, mesh_redis, reader)
    story = await reader.person.story(story_id)
    assert (story["attempt"], follower.last["done"]["story"]) == (2, story)
    assert not follower.resumptions, "its watch broke off as well"


async def killed(mesh: RunningMesh, server: str) -> None:
    pid = mesh.pid(server)
    mesh.kill(server)
    await mesh.healthy(server, not_pid=pid)


async def emptied(mesh: RunningMesh, server: str) -> None:
    await mesh.stop(server)
    shutil.rmtree(mesh.layout.data / server)
    await mesh.start(server)


@pytest.mark.parametrize(
    ("server", "fault"),
    [("redis", killed), ("redis", emptied), ("postgres", killed)],
    ids=["redis-killed", "redis-emptied", "postgres-killed"],
)
async def test_a_server_that_comes_back_finds_everything_going_on(
    mesh: RunningMesh,
    http: httpx2.AsyncClient,
    mesh_redis: Redis,
    server: str,
    fault: Callable[[RunningMesh, str], Awaitable[None]],
) -> None:
    reader = Reader(await registered(mesh, http))
    over = asyncio.Event()

    async def ask_on() -> None:
        for number in count():
            reader.follow(await reader.ask(f"during-{number}"))
            group.create_task(reader.followers[-1].to_the_end())
            read = await reader.person.get("/v1/notifications")
            assert read.status_code in (200, 503), read.text
            if over.is_set():
                return
            await asyncio.sleep(_PACE_SECONDS)

    async with asyncio.TaskGroup() as group:
        for length in ("SHORT", "MEDIUM", "MEDIUM"):
            follower = reader.follow(await reader.ask(f"before-{len(reader.accepted)}", f"STORY_LENGTH_{length}"))
            group.create_task(follower.to_the_end())
        # The other stories are being written then.
        await until(lambda: mailed(mesh, reader))
        group.create_task(ask_on())
        await fault(mesh, server)
        over.set()
    await ended_once(mesh, mesh_redis, reader, redis_forgot=fault is emptied)


async def test_stories_asked_for_while_no_relay_runs_are_all_written_later_in_their_order(
    mesh: RunningMesh, http: httpx2.AsyncClient, mesh_redis: Redis
) -> None:
    reader = Reader(await registered(mesh, http))
    async with asyncio.TaskGroup() as group:
        try:
            await asyncio.gather(*map(mesh.stop, WORKERS))
            for number in range(8):
                follower = reader.follow(await reader.ask(f"{number}"))
                group.create_task(follower.to_the_end())
            await until(lambda: all(each.last.get("state") == QUEUED for each in reader.followers))
            places = [(await reader.person.story(story_id))["queue_position"] for story_id in reader.story_ids]
            assert places == list(range(places[0], places[0] + 8))
        finally:
            await asyncio.gather(*map(mesh.start, WORKERS))
    await ended_once(mesh, mesh_redis, reader)
    started = [(await reader.person.story(story_id))["start_time"] for story_id in reader.story_ids]
    # Two workers write two stories each, so four begin together, and each further one when an earlier one is done.
    assert all(earlier < later for earlier, later in zip(started, started[AT_A_TIME:], strict=False))


@asynccontextmanager
async def frozen_in_its_transaction(mesh: RunningMesh, reader: Reader) -> AsyncIterator[str]:
    """Return the story whose event a stopped relay is publishing: it holds the row's lock and does not commit."""
    pids = [mesh.pid(name) for name in WORKERS]
    try:
        signal_all(pids, signal.SIGSTOP)
        story_id = await reader.ask("freezes")
        async with await psycopg.AsyncConnection.connect(databases_of(mesh)["story"]) as connection:
            # The relay can read and lock rows but not mark them as published.
            await connection.execute("LOCK TABLE outbox IN SHARE MODE")
            signal_all(pids, signal.SIGCONT)

            async def port() -> int:
                # Within a transaction Postgres caches the statistics that the query reads.
                await connection.execute("SELECT pg_stat_clear_snapshot()")
                row = await (await connection.execute(_HELD_UP)).fetchone()
                return int(row[0]) if row else 0

            held_up = await until(port)
            signal_all([pid for pid in pids if held_up in local_ports(pid)], signal.SIGSTOP)
        yield story_id
    finally:
        signal_all(pids, signal.SIGCONT)


def signal_all(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        os.kill(pid, number)


def local_ports(pid: int) -> set[int]:
    return {each.laddr.port for each in psutil.Process(pid).net_connections("tcp") if each.laddr}


async def test_a_relay_that_stands_still_holds_up_nothing_for_long_and_doubles_nothing_when_it_goes_on(
    mesh: RunningMesh, http: httpx2.AsyncClient, mesh_redis: Redis
) -> None:
    reader = Reader(await registered(mesh, http))
    async with frozen_in_its_transaction(mesh, reader) as story_id:
        async with asyncio.TaskGroup() as group:
            group.create_task(reader.follow(story_id).to_the_end())
            for number in range(2):
                group.create_task(reader.follow(await reader.ask(f"{number}")).to_the_end())
        await ended_once(mesh, mesh_redis, reader)
    await reader.follow(await reader.ask("goes-on")).to_the_end()
    await ended_once(mesh, mesh_redis, reader)


@asynccontextmanager
async def one_more_worker(mesh: RunningMesh) -> AsyncIterator[int]:
    """Run a third story worker, with the settings of the other two."""
    layout = replace(mesh.layout, settings=mesh.layout.settings.model_copy(update={"story_workers": 3}))
    writer = writers.choose(layout.settings)
    (component,) = (each for each in services.components(layout, writer) if each.name == "story-worker-3")
    # The settings that the fixture gives the mesh and that this process does not have.
    given = {
        name: value for name, value in environment_of(mesh.pid(WORKERS[0])).items() if name not in component.environment
    }
    child = Child.spawn(
        component.command,
        environment={**given, **component.environment},
        directory=component.directory,
        log=layout.log(component.name),
    )
    try:
        await until(partial(serving, component), 30)
        yield child.pid
    finally:
        await child.end(signal.SIGTERM, component.drain_seconds)


def environment_of(pid: int) -> dict[str, str]:
    return {name: value for name, value in psutil.Process(pid).environ().items() if name.startswith("STORYMESH_")}


async def serving(component: Component) -> bool:
    try:
        await component.probe()
    except NotReady:
        return False
    return True


async def test_three_workers_with_their_relays_share_the_work_and_double_nothing(
    mesh: RunningMesh, http: httpx2.AsyncClient, mesh_redis: Redis
) -> None:
    readers = [Reader(await registered(mesh, http)) for _ in range(3)]
    async with one_more_worker(mesh) as third:
        async with asyncio.TaskGroup() as group:
            await asyncio.gather(*(reader.ask(f"{number}") for reader in readers for number in range(4)))
            for reader in readers:
                for story_id in reader.story_ids:
                    group.create_task(reader.follow(story_id).to_the_end())

            async def all_write() -> bool:
                return await writing(mesh_redis) == {third, *map(mesh.pid, WORKERS)}

            await until(all_write)
        await ended_once(mesh, mesh_redis, *readers)
