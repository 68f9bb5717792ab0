"""Calls from service to service."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from storymesh.story.v1.story_service_pb2 import CreateStoryRequest, GetStoryResponse

from services.kit import channels, deadline
from services.kit.server import Server
from tests.identity import Issuer, service_tokens
from tests.kit import desk as desks
from tests.kit.conftest import SETTINGS, RunningDesk
from tests.kit.desk import Context, DeskStub

ANYTHING = CreateStoryRequest()


@pytest.fixture
async def peer(desk: RunningDesk) -> AsyncIterator[DeskStub]:
    """The desk, called by the story service."""
    async with channels.connect(desk.address, "desk", service_tokens("story")) as channel:
        yield DeskStub(channel)


async def time_left(desk: RunningDesk, peer: DeskStub, timeout: float | None = None) -> float:
    seen: list[float | None] = []

    async def look(_request: CreateStoryRequest, context: Context) -> GetStoryResponse:
        seen.append(context.time_remaining())
        return GetStoryResponse()

    desk.desk.answer = look
    await peer.service(ANYTHING, timeout=timeout)
    assert seen[0] is not None
    return seen[0]


async def test_a_service_proves_itself_to_its_callee(peer: DeskStub) -> None:
    await peer.service(ANYTHING)


async def test_a_call_made_for_a_caller_gets_no_more_time_than_the_caller_has(
    desk: RunningDesk, peer: DeskStub
) -> None:
    async with deadline.within(1.0, longest=15.0):
        assert await time_left(desk, peer) < 1.0
        assert await time_left(desk, peer, timeout=3.0) < 1.0
        assert await time_left(desk, peer, timeout=0.5) < 0.6


async def test_a_call_of_ones_own_gets_five_seconds_or_what_it_asks_for(desk: RunningDesk, peer: DeskStub) -> None:
    assert 4 < await time_left(desk, peer) < 5.5
    assert 7 < await time_left(desk, peer, timeout=8.0) < 8.5


async def test_without_any_time_left_the_call_is_not_given_fresh_time(desk: RunningDesk, peer: DeskStub) -> None:
    left: list[float] = []

    async def too_late() -> None:
        async with deadline.within(0.12, longest=15.0):
            try:
                await asyncio.Event().wait()
            finally:
                began = asyncio.get_running_loop().time()
                with pytest.raises(Exception, match="DEADLINE_EXCEEDED"):
                    await peer.service(ANYTHING)
                left.append(asyncio.get_running_loop().time() - began)

    with pytest.raises(TimeoutError):
        await too_late()
    assert left[0] < 1
    assert desk.desk.calls == 0


async def test_a_callee_that_is_just_starting_is_waited_for(desk: RunningDesk) -> None:
    """Its replica was restarted: the port is the same, and for a moment nobody listens there."""
    server = Server(SETTINGS, required={})
    served = desks.Desk()
    desks.add(server, served)
    running = asyncio.create_task(server.run(Issuer().access_tokens(), service_tokens("desk")))
    address = await server.address
    async with channels.connect(address, "desk", service_tokens("story")) as channel:
        stub = DeskStub(channel)
        await stub.service(ANYTHING)
        server.stopping.set()
        await running
        again = Server(SETTINGS.model_copy(update={"listen": address}), required={})
        desks.add(again, served)
        calling = asyncio.ensure_future(stub.service(ANYTHING))
        running = asyncio.create_task(again.run(Issuer().access_tokens(), service_tokens("desk")))
        await calling
        again.stopping.set()
        await running
    assert served.calls == 2
