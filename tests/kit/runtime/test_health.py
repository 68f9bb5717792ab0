"""What a service says of itself and of what it depends on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub

from kit.rpc.server import Server
from kit.runtime.health import Check, Health, seldom
from tests.identity import Issuer, service_tokens
from tests.kit import desk as desks
from tests.kit.conftest import SETTINGS
from tests.waiting import until

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


class Dependency:
    """Something that answers, or does not, or never comes back."""

    def __init__(self) -> None:
        self.answers = True
        self.hangs = False
        self.asked = 0

    async def check(self) -> None:
        self.asked += 1
        if self.hangs:
            await asyncio.Event().wait()
        if not self.answers:
            raise ConnectionError("s3cret address")


class Asked:
    """A serving desk's health, as probes see it."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._stub: Any = HealthStub(channel)

    async def __call__(self, name: str = "") -> int:
        return int((await self._stub.Check(HealthCheckRequest(service=name))).status)


@asynccontextmanager
async def serving(required: dict[str, Check], optional: dict[str, Check] | None = None) -> AsyncIterator[Asked]:
    server = Server(SETTINGS, required=required, optional=optional, check_every_seconds=0.03, check_seconds=0.2)
    desks.add(server, desks.Desk())
    running = asyncio.create_task(server.run(Issuer().access_tokens(), service_tokens("desk")))
    async with grpc.aio.insecure_channel(await server.address) as channel:
        yield Asked(channel)
    server.stopping.set()
    await running


async def becomes(health: Asked, name: str, status: int) -> None:
    async def is_so() -> bool:
        return await health(name) == status

    await until(is_so)


async def test_a_service_is_ready_while_all_that_it_requires_answers() -> None:
    postgres, redis = Dependency(), Dependency()
    async with serving({"postgres": postgres.check, "redis": redis.check}) as health:
        assert [await health(name) for name in ("", desks.NAME, "postgres", "redis")] == [SERVING] * 4
        redis.answers = False
        await becomes(health, "", NOT_SERVING)
        assert [await health(name) for name in (desks.NAME, "postgres", "redis")] == [NOT_SERVING, SERVING, NOT_SERVING]
        redis.answers = True
        await becomes(health, "", SERVING)
        assert [await health(name) for name in (desks.NAME, "redis")] == [SERVING] * 2


async def test_what_is_optional_is_told_and_changes_nothing_else() -> None:
    smtp = Dependency()
    async with serving({}, {"smtp": smtp.check}) as health:
        smtp.answers = False
        await becomes(health, "smtp", NOT_SERVING)
        assert await health("") == SERVING


async def test_a_dependency_that_hangs_counts_as_away_and_holds_no_other_up() -> None:
    hanging, other = Dependency(), Dependency()
    async with serving({"hanging": hanging.check, "other": other.check}) as health:
        hanging.hangs = True
        await becomes(health, "hanging", NOT_SERVING)
        other.answers = False
        await becomes(health, "other", NOT_SERVING)


async def test_a_service_starts_unready_while_its_dependency_is_away() -> None:
    postgres = Dependency()
    postgres.answers = False
    async with serving({"postgres": postgres.check}) as health:
        assert await health("") == NOT_SERVING
        postgres.answers = True
        await becomes(health, "", SERVING)


async def test_a_name_that_is_no_service_is_not_found() -> None:
    async with serving({}) as health:
        with pytest.raises(AioRpcError) as raised:
            await health("unheard.of")
        assert raised.value.code() is StatusCode.NOT_FOUND


async def test_a_change_is_logged_once_without_details(caplog: pytest.LogCaptureFixture) -> None:
    postgres = Dependency()
    health = Health([], {"postgres": postgres.check}, {})
    await health.check()
    postgres.answers = False
    for _ in range(3):
        await health.check()
    told = [record.getMessage() for record in caplog.records if record.name == "kit.runtime.health"]
    assert told == ["dependency postgres does not answer"]


async def test_who_leaves_is_never_ready_again() -> None:
    health = Health([], {}, {})
    await health.check()
    await health.leave()
    await health.check()
    servicer: Any = health.servicer
    assert (await servicer.Check(HealthCheckRequest(), None)).status == NOT_SERVING


async def test_a_background_task_that_breaks_ends_the_process() -> None:
    async def break_down(_stopping: asyncio.Event) -> None:
        raise RuntimeError("broken")

    server = Server(SETTINGS, required={})
    server.background(break_down)
    with pytest.raises(RuntimeError, match="broken"):
        await server.run()


async def test_background_tasks_are_told_to_end_and_waited_for() -> None:
    ended = []

    async def work(stopping: asyncio.Event) -> None:
        await stopping.wait()
        await asyncio.sleep(0.1)
        ended.append("in order")

    server = Server(SETTINGS, required={})
    server.background(work)
    running = asyncio.create_task(server.run())
    await server.address
    server.stopping.set()
    await running
    assert ended == ["in order"]


async def test_a_background_task_that_does_not_end_is_cancelled_after_the_drain() -> None:
    cancelled = []

    async def stay(_stopping: asyncio.Event) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.append("late")
            raise

    server = Server(SETTINGS, required={})
    server.background(stay)
    running = asyncio.create_task(server.run())
    await server.address
    server.stopping.set()
    await asyncio.wait_for(running, 5)
    assert cancelled == ["late"]


async def test_a_server_that_is_not_ours_is_asked_seldom() -> None:
    smtp = Dependency()
    check = seldom(smtp.check, every_seconds=60)
    for _ in range(5):
        await check()
    assert smtp.asked == 1


async def test_that_it_does_not_answer_holds_as_long() -> None:
    smtp = Dependency()
    smtp.answers = False
    check = seldom(smtp.check, every_seconds=60)
    for _ in range(5):
        with pytest.raises(ConnectionError):
            await check()
    assert smtp.asked == 1


async def test_after_that_time_it_is_asked_again() -> None:
    smtp = Dependency()
    smtp.answers = False
    check = seldom(smtp.check, every_seconds=0)
    with pytest.raises(ConnectionError):
        await check()
    smtp.answers = True
    await check()
    assert smtp.asked == 2


async def test_an_answer_that_nobody_waited_for_is_none() -> None:
    smtp = Dependency()
    smtp.hangs = True
    check = seldom(smtp.check, every_seconds=60)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(check(), 0.05)
    with pytest.raises(TimeoutError):
        await check()
