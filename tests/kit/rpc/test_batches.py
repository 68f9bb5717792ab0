"""Calls of a foreign method that are answered together, on both transports."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse
from storymesh.story.v1.story_service_pb2 import CreateStoryRequest, GetStoryResponse

from kit.errors import ResourceExhausted
from kit.rpc.batches import Answer, BatchedCall, BatchHandler
from kit.rpc.served_call import ServedCall
from kit.rpc.server import Server
from kit.runtime.settings import ServiceSettings
from tests.identity import Issuer, service_tokens
from tests.kit import desk as desks
from tests.statuses import raises_status
from tests.waiting import until

SERVICE, METHOD = "envoy.service.ratelimit.v3.RateLimitService", "ShouldRateLimit"


class TooMany(ResourceExhausted):
    reason = "TOO_MANY"


@dataclass
class Counter:
    """Answers with the sizes of batches; the first one waits until it may go on."""

    go: threading.Event = field(default_factory=threading.Event)
    began: threading.Event = field(default_factory=threading.Event)
    batches: list[list[BatchedCall]] = field(default_factory=list)

    def answer(self, calls: Sequence[BatchedCall]) -> list[Answer]:
        self.batches.append(list(calls))
        self.began.set()
        assert self.go.wait(10)
        return [TooMany() if call.request == b"too many" else b"%d" % len(calls) for call in calls]

    async def answer_later(self, calls: Sequence[BatchedCall]) -> list[Answer]:
        return await asyncio.get_running_loop().run_in_executor(None, self.answer, calls)


Ask = Callable[..., Awaitable[bytes]]


@asynccontextmanager
async def serving(
    settings: ServiceSettings, handler: BatchHandler, *, most: int = 256
) -> AsyncIterator[grpc.aio.Channel]:
    server = Server(settings, required={})
    server.add_batched(SERVICE, METHOD, handler, most=most)
    running = asyncio.create_task(server.run())
    async with grpc.aio.insecure_channel(await server.address) as channel:
        yield channel
    server.stopping.set()
    await running


def asking(channel: grpc.aio.Channel) -> Ask:
    call: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/{SERVICE}/{METHOD}")
    return call


@pytest.mark.parametrize("later", [False, True], ids=["function", "coroutine"])
async def test_what_comes_during_a_batch_is_the_next_one(settings: ServiceSettings, later: bool) -> None:
    counter = Counter()
    async with serving(settings, counter.answer_later if later else counter.answer) as channel:
        ask = asking(channel)
        first = asyncio.ensure_future(ask(b"first"))
        await until(counter.began.is_set)
        others = [asyncio.ensure_future(ask(b"%d" % number)) for number in range(20)]
        # grpcio takes one call at a time, so that after as many later ones it has taken these.
        health: Any = HealthStub(channel)
        for _ in others:
            await health.Check(health_pb2.HealthCheckRequest())
        counter.go.set()
        assert await first == b"1"
        sizes = [int(each) for each in await asyncio.gather(*others)]
    assert max(sizes) > 10
    assert [call.request for call in counter.batches[0]] == [b"first"]


async def test_no_batch_is_larger_than_it_may_be(settings: ServiceSettings) -> None:
    counter = Counter()
    async with serving(settings, counter.answer, most=3) as channel:
        ask = asking(channel)
        asked = [asyncio.ensure_future(ask(b"")) for _ in range(20)]
        await until(counter.began.is_set)
        counter.go.set()
        await asyncio.gather(*asked)
    assert max(map(len, counter.batches)) <= 3
    assert sum(map(len, counter.batches)) == 20


async def test_each_call_gets_its_own_answer_or_error(settings: ServiceSettings) -> None:
    def double(calls: Sequence[BatchedCall]) -> list[Answer]:
        return [TooMany() if int(call.request) % 7 == 0 else call.request * 2 for call in calls]

    async with serving(settings, double) as channel:
        ask = asking(channel)
        answers = await asyncio.gather(*[ask(b"%d" % number) for number in range(1, 50)], return_exceptions=True)
        with raises_status(StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY"):
            await ask(b"7")
    for number, answer in enumerate(answers, 1):
        if number % 7:
            assert answer == b"%d" % number * 2
        else:
            assert isinstance(answer, AioRpcError)
            assert answer.code() is StatusCode.RESOURCE_EXHAUSTED


async def test_a_handler_sees_what_came_with_the_call(settings: ServiceSettings) -> None:
    seen: list[BatchedCall] = []

    def look(calls: Sequence[BatchedCall]) -> list[Answer]:
        seen.extend(calls)
        return [b""] * len(calls)

    async with serving(settings, look) as channel:
        ask = asking(channel)
        await ask(b"x", metadata=(("x-one", "1"), ("x-two-bin", b"\0\xff")), timeout=5)
        await ask(b"x")
    first, second = seen
    assert dict(first.metadata)["x-one"] == "1"
    assert dict(first.metadata)["x-two-bin"] == b"\0\xff"
    assert first.peer.startswith("ipv4:127.0.0.1:")
    assert first.remaining is not None
    assert 0 < first.remaining < 6
    assert second.remaining is None


@pytest.mark.parametrize("later", [False, True], ids=["function", "coroutine"])
async def test_a_handler_that_fails_fails_its_calls_and_no_later_ones(
    settings: ServiceSettings, caplog: pytest.LogCaptureFixture, later: bool
) -> None:
    broken = True

    def fail(calls: Sequence[BatchedCall]) -> list[Answer]:
        if broken:
            raise RuntimeError("the handler is broken")
        return [b"well"] * len(calls)

    async def fail_later(calls: Sequence[BatchedCall]) -> list[Answer]:
        return fail(calls)

    async with serving(settings, fail_later if later else fail) as channel:
        ask = asking(channel)
        with raises_status(StatusCode.INTERNAL, "INTERNAL"):
            await ask(b"")
        broken = False
        assert await ask(b"") == b"well"
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == [
        f"unexpected error in /{SERVICE}/{METHOD}"
    ]


async def test_too_few_answers_are_our_mistake(settings: ServiceSettings) -> None:
    async with serving(settings, lambda calls: [b""] * (len(calls) + 1)) as channel:
        with raises_status(StatusCode.INTERNAL, "INTERNAL"):
            await asking(channel)(b"")


async def test_a_call_waits_for_a_slow_batch_no_longer_than_its_deadline(settings: ServiceSettings) -> None:
    counter = Counter()
    async with serving(settings, counter.answer) as channel:
        ask = asking(channel)
        first = asyncio.ensure_future(ask(b"first"))
        await until(counter.began.is_set)
        began = monotonic()
        with pytest.raises(AioRpcError) as ended:
            await ask(b"second", timeout=0.1)
        assert ended.value.code() is StatusCode.DEADLINE_EXCEEDED
        assert monotonic() - began < 5
        third = asyncio.ensure_future(ask(b"third"))
        health: Any = HealthStub(channel)
        for _ in range(5):
            await health.Check(health_pb2.HealthCheckRequest())
        counter.go.set()
        assert (await first, await third) == (b"1", b"1")
    assert b"second" not in [call.request for batch in counter.batches for call in batch]


async def test_a_request_that_is_too_large_is_refused_before_it_is_in_a_batch(settings: ServiceSettings) -> None:
    counter = Counter()
    counter.go.set()
    async with serving(settings, counter.answer) as channel:
        ask = asking(channel)
        with pytest.raises(AioRpcError) as refused:
            await ask(b"x" * ((1 << 20) + 1))
        assert refused.value.code() is StatusCode.RESOURCE_EXHAUSTED
        assert await ask(b"x" * (1 << 20)) == b"1"
    assert sum(map(len, counter.batches)) == 1


async def test_health_and_reflection_do_not_wait_for_a_batch(settings: ServiceSettings) -> None:
    counter = Counter()
    async with serving(settings, counter.answer) as channel:
        asked = asyncio.ensure_future(asking(channel)(b""))
        await until(counter.began.is_set)
        health: Any = HealthStub(channel)
        answer = await health.Check(health_pb2.HealthCheckRequest(service=SERVICE), timeout=5)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
        reflect: grpc.aio.StreamStreamMultiCallable[ServerReflectionRequest, ServerReflectionResponse] = (
            channel.stream_stream(
                "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
                ServerReflectionRequest.SerializeToString,
                ServerReflectionResponse.FromString,
            )
        )
        (listed,) = [each async for each in reflect(iter([ServerReflectionRequest(list_services="")]), timeout=5)]
        assert SERVICE in {service.name for service in listed.list_services_response.service}
        assert not asked.done()
        counter.go.set()
        await asked


async def test_other_methods_are_served_beside_batches_by_the_same_transport(
    settings: ServiceSettings, transport: str
) -> None:
    counter, contexts = Counter(), []

    async def look(_request: object, context: desks.Context) -> GetStoryResponse:
        contexts.append(context)
        return GetStoryResponse()

    server = Server(settings, required={})
    server.add_batched(SERVICE, METHOD, counter.answer)
    desks.add(server, desks.Desk(look))
    running = asyncio.create_task(server.run(Issuer().access_tokens(), service_tokens("desk")))
    async with grpc.aio.insecure_channel(await server.address) as channel:
        asked = asyncio.ensure_future(asking(channel)(b""))
        await until(counter.began.is_set)
        await desks.DeskStub(channel).public(CreateStoryRequest(), timeout=5)
        assert not asked.done()
        counter.go.set()
        await asked
    server.stopping.set()
    await running
    assert isinstance(contexts[0], ServedCall) is (transport == "native")


async def test_a_batch_that_has_begun_is_answered_before_the_server_ends(settings: ServiceSettings) -> None:
    counter = Counter()
    server = Server(settings, required={})
    server.add_batched(SERVICE, METHOD, counter.answer)
    running = asyncio.create_task(server.run())
    async with grpc.aio.insecure_channel(await server.address) as channel:
        asked = asyncio.ensure_future(asking(channel)(b""))
        await until(counter.began.is_set)
        server.stopping.set()
        asyncio.get_running_loop().call_later(0.2, counter.go.set)
        assert await asked == b"1"
        await asyncio.wait_for(running, 10)
