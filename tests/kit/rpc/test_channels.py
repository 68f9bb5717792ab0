"""Calls from service to service."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import sys
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from time import monotonic

import pytest
from storymesh.story.v1.story_pb2 import Story
from storymesh.story.v1.story_service_pb2 import CreateStoryRequest, GetStoryResponse

from kit.errors import DeadlineExceeded, MeshError, NotFound, Unavailable
from kit.rpc import channels, deadline
from kit.rpc.server import Server
from kit.runtime.settings import ServiceSettings
from tests import identity
from tests.identity import Issuer, service_tokens
from tests.kit import desk as desks
from tests.kit.conftest import RunningDesk
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
                with pytest.raises(DeadlineExceeded):
                    await peer.service(ANYTHING)
                left.append(asyncio.get_running_loop().time() - began)

    with pytest.raises(TimeoutError):
        await too_late()
    assert left[0] < 1
    assert desk.desk.calls == 0


@pytest.mark.parametrize("method", ["read_service", "keep_service", "service", "watch_service"])
async def test_a_callee_that_is_just_starting_is_waited_for(settings: ServiceSettings, method: str) -> None:
    """Its replica was restarted: the port is the same, and for a moment nobody listens there."""
    server = Server(settings, required={})
    served = desks.Desk()
    desks.add(server, served)
    running = asyncio.create_task(server.run(Issuer().access_tokens(), service_tokens("desk")))
    address = await server.address
    async with channels.connect(address, "desk", service_tokens("story"), wait=lambda _: 0.3) as channel:
        stub = DeskStub(channel)

        async def ask() -> None:
            if method == "watch_service":
                assert [message async for message in stub.watch_service(ANYTHING)] == [GetStoryResponse()]
            else:
                await getattr(stub, method)(ANYTHING)

        await ask()
        server.stopping.set()
        await running
        again = Server(settings.model_copy(update={"listen": address}), required={})
        desks.add(again, served)
        calling = asyncio.ensure_future(ask())
        running = asyncio.create_task(again.run(Issuer().access_tokens(), service_tokens("desk")))
        await calling
        again.stopping.set()
        await running
    assert served.calls == 2


@pytest.mark.parametrize(
    ("method", "times"), [("read_service", 4), ("keep_service", 4), ("service", 1), ("watch_service", 4)]
)
async def test_what_the_contract_lets_be_repeated_is_asked_again_and_nothing_else(
    desk: RunningDesk, method: str, times: int
) -> None:
    """A callee that answers UNAVAILABLE may have done its work before."""

    async def away(_request: CreateStoryRequest, _context: Context) -> GetStoryResponse:
        raise Unavailable

    async def stream(request: CreateStoryRequest, context: Context) -> AsyncGenerator[GetStoryResponse, None]:
        yield await away(request, context)

    desk.desk.answer, desk.desk.stream = away, stream
    async with channels.connect(desk.address, "desk", service_tokens("story"), wait=lambda _: 0.0) as channel:
        call = getattr(DeskStub(channel), method)(ANYTHING)
        with pytest.raises(Unavailable):
            await (call.read() if method == "watch_service" else call)
    assert desk.desk.calls == times


async def test_a_repetition_can_succeed(desk: RunningDesk, peer: DeskStub) -> None:
    async def away_at_first(_request: CreateStoryRequest, _context: Context) -> GetStoryResponse:
        if desk.desk.calls < 3:
            raise Unavailable
        return GetStoryResponse()

    desk.desk.answer = away_at_first
    await peer.read_service(ANYTHING)
    assert desk.desk.calls == 3


async def test_a_refusal_is_not_repeated(desk: RunningDesk, peer: DeskStub) -> None:
    async def refuse(_request: CreateStoryRequest, _context: Context) -> GetStoryResponse:
        raise NotFound

    desk.desk.answer = refuse
    with pytest.raises(NotFound):
        await peer.read_service(ANYTHING)
    assert desk.desk.calls == 1


async def test_a_stream_that_has_begun_is_not_asked_again(desk: RunningDesk, peer: DeskStub) -> None:
    async def begin(_request: CreateStoryRequest, _context: Context) -> AsyncGenerator[GetStoryResponse, None]:
        yield GetStoryResponse(story=Story(title="one"))
        yield GetStoryResponse(story=Story(title="two"))
        raise Unavailable

    desk.desk.stream = begin
    messages = aiter(peer.watch_service(ANYTHING))
    assert [(await anext(messages)).story.title for _ in range(2)] == ["one", "two"]
    with pytest.raises(Unavailable):
        await anext(messages)
    assert desk.desk.calls == 1


async def test_no_repetition_goes_beyond_the_deadline(desk: RunningDesk) -> None:
    async def away(_request: CreateStoryRequest, _context: Context) -> GetStoryResponse:
        raise Unavailable

    desk.desk.answer = away
    async with channels.connect(desk.address, "desk", service_tokens("story"), wait=lambda _: 3600.0) as channel:
        with pytest.raises(Unavailable):
            await DeskStub(channel).read_service(ANYTHING)
    assert desk.desk.calls == 1


def test_the_waits_between_repetitions_are_spread_from_nothing_to_a_second() -> None:
    waits = {failures: [channels.wait_seconds(failures) for _ in range(2000)] for failures in (1, 2, 3, 50)}
    for failures, most in ((1, 0.2), (2, 0.4), (3, 0.8), (50, 1.0)):
        assert min(waits[failures]) < most / 10
        assert most * 0.9 < max(waits[failures]) <= most


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


async def test_a_target_may_be_a_list_of_addresses(desk: RunningDesk) -> None:
    addresses = f"ipv4:{desk.address},{desk.address}"
    async with channels.connect(addresses, "desk", service_tokens("story")) as channel:
        await DeskStub(channel).read_service(ANYTHING)


@pytest.mark.slow
async def test_a_replica_that_stands_still_is_missed_and_what_it_was_asked_is_asked_of_another() -> None:
    async with AsyncExitStack() as stack:
        (one, hung), (two, _) = [await stack.enter_async_context(replica()) for _ in range(2)]
        channel = await stack.enter_async_context(
            channels.connect(f"ipv4:{one},{two}", "desk", service_tokens("story"))
        )
        stub = DeskStub(channel)
        # Both are connected to.
        await asyncio.gather(*(stub.read_service(ANYTHING) for _ in range(10)))
        hung.send_signal(signal.SIGSTOP)
        # By turns, so about half of them are asked of the one that cannot answer.
        await asyncio.gather(*(stub.read_service(ANYTHING) for _ in range(10)))


@pytest.mark.parametrize("repeatable", [True, False])
async def test_alone_a_peer_that_stands_still_is_unavailable_in_time_and_at_once_when_it_is_known(
    repeatable: bool,
) -> None:
    async with replica() as (address, hung), channels.connect(address, "desk", service_tokens("story")) as channel:
        stub = DeskStub(channel)
        call = stub.read_service if repeatable else stub.service
        await call(ANYTHING)
        hung.send_signal(signal.SIGSTOP)

        async def refused_within(seconds: float) -> bool:
            begun = monotonic()
            with pytest.raises(Unavailable):
                await call(ANYTHING)
            return monotonic() - begun < seconds

        await until(lambda: refused_within(2), 30)
        hung.send_signal(signal.SIGCONT)

        async def answered() -> bool:
            try:
                await call(ANYTHING)
            except MeshError:
                return False
            return True

        await until(answered, 10)
