"""Calls from service to service."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from time import monotonic

import pytest
from grpc.aio import AioRpcError
from storymesh.story.v1.story_service_pb2 import CreateStoryRequest, GetStoryResponse

from kit.errors import Unavailable
from kit.rpc import channels, deadline
from kit.rpc.server import Server
from kit.rpc.statuses import as_mesh_error
from tests import identity
from tests.identity import Issuer, service_tokens
from tests.kit import desk as desks
from tests.kit.conftest import SETTINGS, RunningDesk
from tests.kit.desk import Context, DeskStub
from tests.waiting import until

ANYTHING = CreateStoryRequest()
MESH_KEY = base64.urlsafe_b64encode(identity.MESH_KEY).decode()


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


@asynccontextmanager
async def replica() -> AsyncIterator[tuple[str, asyncio.subprocess.Process]]:
    """A desk of its own process, and its address."""
    environment = {"PATH": os.environ["PATH"], "STORYMESH_LISTEN": "127.0.0.1:0", "STORYMESH_MESH_KEY": MESH_KEY}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.kit.desk_process", "serve"),
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
    )
    try:
        assert process.stdout
        async for line in process.stdout:
            if "serving on" in (said := json.loads(line)["message"]):
                break
        yield said.removeprefix("serving on "), process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_a_replica_that_stands_still_is_missed_and_what_it_was_asked_is_asked_of_another() -> None:
    async with AsyncExitStack() as stack:
        (one, hung), (two, _) = [await stack.enter_async_context(replica()) for _ in range(2)]
        channel = await stack.enter_async_context(
            channels.connect(f"ipv4:{one},{two}", "desk", service_tokens("story"))
        )
        stub = DeskStub(channel)
        # Both are connected to.
        await asyncio.gather(*(stub.service(ANYTHING) for _ in range(10)))
        hung.send_signal(signal.SIGSTOP)
        # By turns, so about half of them are asked of the one that cannot answer.
        await asyncio.gather(*(stub.service(ANYTHING) for _ in range(10)))


async def test_alone_a_peer_that_stands_still_is_unavailable_in_time_and_at_once_when_it_is_known() -> None:
    async with replica() as (address, hung), channels.connect(address, "desk", service_tokens("story")) as channel:
        stub = DeskStub(channel)
        await stub.service(ANYTHING)
        hung.send_signal(signal.SIGSTOP)

        async def refused_within(seconds: float) -> bool:
            begun = monotonic()
            with pytest.raises(AioRpcError) as raised:
                await stub.service(ANYTHING)
            assert isinstance(as_mesh_error(raised.value), Unavailable)
            return monotonic() - begun < seconds

        await until(lambda: refused_within(2), 30)
        hung.send_signal(signal.SIGCONT)

        async def answered() -> bool:
            try:
                await stub.service(ANYTHING)
            except AioRpcError:
                return False
            return True

        await until(answered, 10)
