"""A service made for these tests: a method of every access, whose behaviour the test gives."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TypeAlias

import grpc
from google.protobuf import descriptor_pb2, descriptor_pool
from grpc.aio import Channel, ServicerContext
from storymesh.options.v1 import policy_pb2
from storymesh.story.v1.story_service_pb2 import DESCRIPTOR as STORY_SERVICE
from storymesh.story.v1.story_service_pb2 import CreateStoryRequest, GetStoryResponse

from kit.rpc.server import Server

NAME = "storymesh.kittest.v1.DeskService"
UNGUARDED = "storymesh.kittest.v1.UnguardedService"

Context: TypeAlias = "ServicerContext[CreateStoryRequest, GetStoryResponse]"
Answer = Callable[[CreateStoryRequest, Context], Awaitable[GetStoryResponse]]
Stream = Callable[[CreateStoryRequest, Context], AsyncGenerator[GetStoryResponse, None]]

_UNARY = {
    "AskPublic": policy_pb2.ACCESS_PUBLIC,
    "AskUser": policy_pb2.ACCESS_USER,
    "ReadUser": policy_pb2.ACCESS_USER,
    "AskAdmin": policy_pb2.ACCESS_ADMIN,
    "AskService": policy_pb2.ACCESS_SERVICE,
    "ReadService": policy_pb2.ACCESS_SERVICE,
    "KeepService": policy_pb2.ACCESS_SERVICE,
}
_STREAMS = {"Watch": policy_pb2.ACCESS_USER, "WatchService": policy_pb2.ACCESS_SERVICE}
_READS = {"ReadUser", "ReadService", "Watch", "WatchService"}


def _declare() -> None:
    file = descriptor_pb2.FileDescriptorProto(
        name="storymesh/kittest/v1/desk.proto",
        package="storymesh.kittest.v1",
        dependency=[STORY_SERVICE.name],
        syntax="proto3",
    )
    desk = file.service.add(name="DeskService")
    for name, access in {**_UNARY, **_STREAMS}.items():
        method = desk.method.add(
            name=name,
            input_type=f".{CreateStoryRequest.DESCRIPTOR.full_name}",
            output_type=f".{GetStoryResponse.DESCRIPTOR.full_name}",
            server_streaming=name in _STREAMS,
        )
        method.options.Extensions[policy_pb2.policy].access = access
        if name in _READS:
            method.options.idempotency_level = descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS
        if name == "KeepService":
            method.options.idempotency_level = descriptor_pb2.MethodOptions.IDEMPOTENT
    unguarded = file.service.add(name="UnguardedService").method.add()
    unguarded.CopyFrom(desk.method[0])
    unguarded.ClearField("options")
    descriptor_pool.Default().Add(file)


_declare()


async def greet(_request: CreateStoryRequest, _context: Context) -> GetStoryResponse:
    return GetStoryResponse()


async def greet_once(request: CreateStoryRequest, context: Context) -> AsyncGenerator[GetStoryResponse, None]:
    yield await greet(request, context)


@dataclass
class Desk:
    """The servicer and its clerk: `answer` and `stream` are what it does."""

    answer: Answer = greet
    stream: Stream = greet_once
    calls: int = field(default=0, init=False)

    def add_to(self, server: grpc.aio.Server) -> None:
        unary = grpc.unary_unary_rpc_method_handler(
            self._answer, CreateStoryRequest.FromString, GetStoryResponse.SerializeToString
        )
        watch = grpc.unary_stream_rpc_method_handler(
            self._stream, CreateStoryRequest.FromString, GetStoryResponse.SerializeToString
        )
        handlers = {**dict.fromkeys(_UNARY, unary), **dict.fromkeys(_STREAMS, watch)}
        server.add_registered_method_handlers(NAME, handlers)

    async def _answer(self, request: CreateStoryRequest, context: Context) -> GetStoryResponse:
        self.calls += 1
        return await self.answer(request, context)

    async def _stream(self, request: CreateStoryRequest, context: Context) -> AsyncIterator[GetStoryResponse]:
        self.calls += 1
        async with aclosing(self.stream(request, context)) as messages:
            async for message in messages:
                yield message


class DeskStub:
    """Calls the desk over a channel."""

    def __init__(self, channel: Channel) -> None:
        def unary(name: str) -> grpc.aio.UnaryUnaryMultiCallable[CreateStoryRequest, GetStoryResponse]:
            return channel.unary_unary(
                f"/{NAME}/{name}", CreateStoryRequest.SerializeToString, GetStoryResponse.FromString
            )

        self.public = unary("AskPublic")
        self.user = unary("AskUser")
        self.read = unary("ReadUser")
        self.admin = unary("AskAdmin")
        self.service = unary("AskService")
        self.read_service = unary("ReadService")
        self.keep_service = unary("KeepService")

        def stream(name: str) -> grpc.aio.UnaryStreamMultiCallable[CreateStoryRequest, GetStoryResponse]:
            return channel.unary_stream(
                f"/{NAME}/{name}", CreateStoryRequest.SerializeToString, GetStoryResponse.FromString
            )

        self.watch = stream("Watch")
        self.watch_service = stream("WatchService")


def add(server: Server, desk: Desk) -> None:
    server.add(Desk.add_to, desk)
