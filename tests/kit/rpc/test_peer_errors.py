"""What becomes of a peer's refusal: in the service that called, and before that service's own callers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.code_pb2 import NOT_FOUND
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from grpc import StatusCode
from grpc.aio import AioRpcError
from storymesh.story.v1.story_service_pb2 import CreateStoryRequest, GetStoryResponse

from kit import errors
from kit.errors import MeshError, Violation
from kit.rpc import channels
from kit.rpc.channels import in_the_name_of
from kit.rpc.server import Server
from kit.rpc.statuses import as_mesh_error
from tests.identity import bearer, service_tokens
from tests.kit import desk as desks
from tests.kit.conftest import RunningDesk
from tests.kit.desk import Context, DeskStub
from tests.statuses import detail, raises_status, reason_of

ANYTHING = CreateStoryRequest()
DETAILS = "grpc-status-details-bin"


class StoryNotFound(errors.NotFound):
    reason = "STORY_NOT_FOUND"
    message = "there is no such story"


class Overloaded(errors.ResourceExhausted):
    reason = "OVERLOADED"
    message = "the service is busy; try again"


@pytest.fixture
async def peer(desk: RunningDesk) -> AsyncIterator[DeskStub]:
    """The desk, called by the story service."""
    async with channels.connect(desk.address, "desk", service_tokens("story"), wait=lambda _: 0.0) as channel:
        yield DeskStub(channel)


def refuse(desk: desks.Desk, error: MeshError) -> None:
    """Lets the desk raise the error at every call, with one answer or several."""

    async def answer(_request: CreateStoryRequest, _context: Context) -> GetStoryResponse:
        raise error

    async def stream(request: CreateStoryRequest, context: Context) -> AsyncGenerator[GetStoryResponse, None]:
        yield await answer(request, context)

    desk.answer, desk.stream = answer, stream


async def received(call: Any) -> MeshError:
    with pytest.raises(MeshError) as raised:
        await call
    return raised.value


ERRORS = [
    StoryNotFound(story_id=7, title="é\n"),
    Overloaded(retry_after=timedelta(seconds=2.5), queue="long"),
    errors.InvalidArgument([Violation("preferences[1]", "is blank", "BLANK"), Violation("theme", "is long", "LONG")]),
    errors.MalformedRequest(),
    errors.Unauthenticated(),
    errors.SessionRevoked(),
    errors.PermissionDenied(),
    errors.AlreadyExists(),
    errors.FailedPrecondition(),
    errors.StreamStalled(),
    errors.Unavailable(dependency="postgres"),
    errors.RevocationsUnknown(),
    errors.DeadlineExceeded(),
    errors.Unimplemented(),
    errors.Internal(),
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.reason)
@pytest.mark.parametrize("method", ["service", "watch_service"])
async def test_a_peers_error_arrives_as_the_error_that_it_was(
    desk: RunningDesk, peer: DeskStub, error: MeshError, method: str
) -> None:
    refuse(desk.desk, error)
    call = getattr(peer, method)(ANYTHING)
    arrived = await received(call.read() if method == "watch_service" else call)
    # A class of one service's own is not known to the others: it arrives as the error of its code.
    kind = type(error) if type(error).__module__ == errors.__name__ else type(error).__base__
    assert type(arrived) is kind
    assert (arrived.reason, str(arrived), arrived.metadata) == (error.reason, str(error), error.metadata)
    assert arrived.retry_after == error.retry_after
    assert getattr(arrived, "violations", None) == getattr(error, "violations", None)


async def test_an_error_amid_a_stream_arrives_after_what_came_before_it(desk: RunningDesk, peer: DeskStub) -> None:
    async def stream(_request: CreateStoryRequest, _context: Context) -> AsyncGenerator[GetStoryResponse, None]:
        yield GetStoryResponse()
        raise StoryNotFound(story_id=7)

    desk.desk.stream = stream
    messages = aiter(peer.watch_service(ANYTHING))
    assert await anext(messages) == GetStoryResponse()
    with pytest.raises(errors.NotFound) as raised:
        await anext(messages)
    assert (raised.value.reason, raised.value.metadata) == ("STORY_NOT_FOUND", {"story_id": "7"})


async def test_a_peer_that_nobody_runs_is_unavailable(unused_tcp_port: int) -> None:
    async with channels.connect(f"127.0.0.1:{unused_tcp_port}", "desk", service_tokens("story")) as channel:
        stub = DeskStub(channel)
        for call in (stub.read_service(ANYTHING), stub.watch_service(ANYTHING).read()):
            assert type(await received(call)) is errors.Unavailable


async def test_a_peer_that_does_not_answer_in_time_has_exceeded_the_deadline(desk: RunningDesk, peer: DeskStub) -> None:
    async def think(_request: CreateStoryRequest, _context: Context) -> GetStoryResponse:
        await asyncio.Event().wait()
        raise AssertionError

    async def stream(request: CreateStoryRequest, context: Context) -> AsyncGenerator[GetStoryResponse, None]:
        yield await think(request, context)

    desk.desk.answer, desk.desk.stream = think, stream
    for call in (peer.service(ANYTHING, timeout=0.1), peer.watch_service(ANYTHING, timeout=0.1).read()):
        assert type(await received(call)) is errors.DeadlineExceeded


async def test_a_channel_that_is_closed_is_unavailable(desk: RunningDesk) -> None:
    channel = channels.connect(desk.address, "desk", service_tokens("story"))
    stub = DeskStub(channel)
    await channel.close()
    for call in (stub.service(ANYTHING), stub.read_service(ANYTHING), stub.watch_service(ANYTHING).read()):
        assert type(await received(call)) is errors.Unavailable


async def test_a_call_that_is_given_up_is_cancelled_and_no_error(desk: RunningDesk, peer: DeskStub) -> None:
    ended, begun = asyncio.Event(), asyncio.Event()

    async def think(_request: CreateStoryRequest, _context: Context) -> GetStoryResponse:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    async def stream(request: CreateStoryRequest, context: Context) -> AsyncGenerator[GetStoryResponse, None]:
        yield await think(request, context)

    desk.desk.answer, desk.desk.stream = think, stream
    for method in (peer.service, peer.watch_service):
        begun.clear()
        ended.clear()
        call: Any = method(ANYTHING)
        calling = asyncio.ensure_future(call.read() if method is peer.watch_service else _answer(call))
        await begun.wait()
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await calling
        call.cancel()
        async with asyncio.timeout(5):
            await ended.wait()


async def _answer(call: Any) -> Any:
    return await call


# What a peer of another version, a proxy or an attacker may answer.


@asynccontextmanager
async def answering(
    code: StatusCode | int, *trailers: tuple[str, str | bytes], message: str = "odd"
) -> AsyncIterator[DeskStub]:
    """A server without any of ours around it that refuses every call with these trailers."""

    class Odd(grpc.GenericRpcHandler):
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
            async def refuse(_request: Any, context: Any) -> None:
                context.set_trailing_metadata(trailers)
                context.set_code(code)
                context.set_details(message)

            if "Watch" not in str(handler_call_details.method):
                return grpc.unary_unary_rpc_method_handler(refuse)

            async def refuse_stream(request: Any, context: Any) -> None:
                await refuse(request, context)

            return grpc.unary_stream_rpc_method_handler(refuse_stream)

    server = grpc.aio.server(handlers=[Odd()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with channels.connect(
            f"127.0.0.1:{port}", "desk", service_tokens("story"), wait=lambda _: 0.0
        ) as channel:
            yield DeskStub(channel)
    finally:
        await server.stop(0)


def details(*several: Message, code: int = NOT_FOUND) -> tuple[str, bytes]:
    status = Status(code=code, message="odd")
    for each in several:
        status.details.add().Pack(each)
    return (DETAILS, status.SerializeToString())


def packed(kind: type[Message], value: bytes) -> tuple[str, bytes]:
    status = Status(code=NOT_FOUND)
    status.details.append(AnyMessage(type_url=f"type.googleapis.com/{kind.DESCRIPTOR.full_name}", value=value))
    return (DETAILS, status.SerializeToString())


INFO = ErrorInfo(reason="STORY_NOT_FOUND", domain="storymesh", metadata={"story_id": "7"})

BROKEN = {
    "none": (),
    "no status": ((DETAILS, b"\xff\xfe\x00"),),
    "empty": ((DETAILS, b""),),
    "text": (("x-odd", "1"),),
    "a detail of odd bytes": (packed(ErrorInfo, b"\x0a\xff\xff"),),
    "a reason that is no UTF-8": (packed(ErrorInfo, b"\x0a\x02\xff\xfe"),),
    "an unknown detail": (details(Duration(seconds=1)),),
    "no reason": (details(ErrorInfo(domain="storymesh")),),
    "another domain": (details(ErrorInfo(reason="STORY_NOT_FOUND", domain="googleapis.com")),),
    "a reason of another form": (details(ErrorInfo(reason="story not found\n", domain="storymesh")),),
    "a reason without end": (details(ErrorInfo(reason="A" * 5000, domain="storymesh")),),
    "details of another code": (details(INFO, code=7),),
    "a time to wait that is none": (details(RetryInfo(retry_delay=Duration(seconds=-5))),),
    "a time to wait without end": (details(RetryInfo(retry_delay=Duration(seconds=2**62, nanos=-(2**31)))),),
}


@pytest.mark.parametrize("trailers", BROKEN.values(), ids=BROKEN)
async def test_broken_details_leave_the_plain_error_of_the_code(trailers: tuple[tuple[str, str | bytes], ...]) -> None:
    async with answering(StatusCode.NOT_FOUND, *trailers) as stub:
        for call in (stub.service(ANYTHING), stub.watch_service(ANYTHING).read()):
            arrived = await received(call)
            assert (type(arrived), arrived.reason, arrived.metadata, arrived.retry_after) == (
                errors.NotFound,
                "NOT_FOUND",
                {},
                None,
            )


async def test_a_detail_that_cannot_be_read_does_not_hide_the_others() -> None:
    name, value = details(INFO)
    broken = AnyMessage(type_url=f"type.googleapis.com/{RetryInfo.DESCRIPTOR.full_name}", value=b"\xff")
    status = Status.FromString(value)
    status.details.insert(0, broken)
    async with answering(StatusCode.NOT_FOUND, (name, status.SerializeToString())) as stub:
        arrived = await received(stub.service(ANYTHING))
    assert (arrived.reason, arrived.metadata) == ("STORY_NOT_FOUND", {"story_id": "7"})


@pytest.mark.parametrize(
    "code", [StatusCode.UNKNOWN, StatusCode.DATA_LOSS, StatusCode.ABORTED, StatusCode.OUT_OF_RANGE, 99]
)
async def test_an_unexpected_code_is_internal(code: StatusCode | int) -> None:
    async with answering(code) as stub:
        assert type(await received(stub.service(ANYTHING))) is errors.Internal


async def test_a_violation_without_a_form_and_many_of_them_are_cut_short() -> None:
    many = BadRequest(field_violations=[BadRequest.FieldViolation(field=f"field{n}") for n in range(200)])
    async with answering(StatusCode.INVALID_ARGUMENT, details(many, code=3)) as stub:
        arrived = await received(stub.service(ANYTHING))
    assert isinstance(arrived, errors.InvalidArgument)
    assert len(arrived.violations) == 32
    assert arrived.violations[0] == Violation("field0", "", "INVALID")


async def test_details_of_any_size_end_in_an_error_and_nothing_else() -> None:
    for size in (4_000, 20_000, 200_000):
        huge = ErrorInfo(reason="STORY_NOT_FOUND", domain="storymesh", metadata={"x": "y" * size})
        async with answering(StatusCode.NOT_FOUND, details(huge), message="z" * 3000) as stub:
            arrived = await received(stub.service(ANYTHING))
        assert len(str(arrived)) + sum(map(len, arrived.metadata.values())) <= 2000


async def test_an_answer_of_odd_bytes_is_internal() -> None:
    class Odd(grpc.GenericRpcHandler):
        def service(self, handler_call_details: grpc.HandlerCallDetails) -> Any:
            async def answer(_request: Any, _context: Any) -> bytes:
                return b"\xff"

            async def stream(_request: Any, context: Any) -> None:
                await context.write(b"\xff")

            if "Watch" in str(handler_call_details.method):
                return grpc.unary_stream_rpc_method_handler(stream)
            return grpc.unary_unary_rpc_method_handler(answer)

    server = grpc.aio.server(handlers=[Odd()])
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with channels.connect(f"127.0.0.1:{port}", "desk", service_tokens("story")) as channel:
        stub = DeskStub(channel)
        for call in (stub.service(ANYTHING), stub.watch_service(ANYTHING).read()):
            assert type(await received(call)) is errors.Internal
    await server.stop(0)


# Before the callers of the service that called.


@asynccontextmanager
async def fronting(desk: RunningDesk, *, in_a_persons_name: bool = False) -> AsyncIterator[DeskStub]:
    """A service that asks the desk for whatever it is asked."""
    front = desks.Desk()
    server = Server(desk.settings, required={})
    desks.add(server, front)
    running = asyncio.create_task(server.run(desk.issuer.access_tokens(), service_tokens("front")))
    async with (
        channels.connect(desk.address, "desk", service_tokens("front"), wait=lambda _: 0.0) as behind,
        grpc.aio.insecure_channel(await server.address) as calling,
    ):
        stub = DeskStub(behind)

        async def ask(request: CreateStoryRequest, context: Context) -> GetStoryResponse:
            if not in_a_persons_name:
                return await stub.service(request)
            token = dict(context.invocation_metadata() or ())["authorization"]
            return await stub.user(request, metadata=in_the_name_of(str(token).removeprefix("Bearer ")))

        front.answer = ask
        yield DeskStub(calling)
    server.stopping.set()
    await running


async def test_nothing_that_a_peer_refuses_us_is_told_to_our_callers(desk: RunningDesk) -> None:
    """Least of all UNAUTHENTICATED, at which they would sign out."""
    me = bearer(desk.issuer.token(uuid4()))
    async with fronting(desk) as stub:
        for error in ERRORS:
            refuse(desk.desk, error)
            with pytest.raises(AioRpcError) as raised:
                await stub.user(ANYTHING, metadata=me)
            away = error.code in (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED)
            told = (raised.value.code(), reason_of(raised.value), str(raised.value.details()))
            assert told == (
                (StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE", errors.Unavailable.message)
                if away
                else (StatusCode.INTERNAL, "INTERNAL", errors.Internal.message)
            )
            info = detail(raised.value, ErrorInfo)
            assert info is not None
            assert dict(info.metadata) == {}
            assert (detail(raised.value, RetryInfo) is not None) == away


async def test_what_a_peer_refuses_a_person_is_told_to_that_person(desk: RunningDesk) -> None:
    me = bearer(desk.issuer.token(uuid4()))
    async with fronting(desk, in_a_persons_name=True) as stub:
        for error in ERRORS:
            refuse(desk.desk, error)
            with pytest.raises(AioRpcError) as raised:
                await stub.user(ANYTHING, metadata=me)
            info = detail(raised.value, ErrorInfo)
            assert info is not None
            expected: tuple[StatusCode, str, dict[str, str]]
            match error.code:
                case StatusCode.UNAVAILABLE | StatusCode.DEADLINE_EXCEEDED:
                    expected = (StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE", {})
                case StatusCode.INTERNAL | StatusCode.UNIMPLEMENTED:
                    expected = (StatusCode.INTERNAL, "INTERNAL", {})
                case _:
                    expected = (error.code, error.reason, error.metadata)
            assert (raised.value.code(), info.reason, dict(info.metadata)) == expected


@pytest.mark.parametrize(
    "trailers", [(), details(), details(ErrorInfo(reason="STORY_NOT_FOUND", domain="elsewhere"))], ids=str
)
async def test_what_is_not_refused_in_the_words_of_the_mesh_is_told_to_nobody(trailers: Any) -> None:
    async with answering(StatusCode.NOT_FOUND, *([trailers] if trailers else [])) as stub:
        arrived = await received(stub.user(ANYTHING, metadata=in_the_name_of("a-token")))
    assert type(arrived) is errors.NotFound
    assert type(as_mesh_error(arrived)) is errors.Internal


async def test_the_log_names_the_peer_and_what_it_said(desk: RunningDesk, caplog: pytest.LogCaptureFixture) -> None:
    refuse(desk.desk, StoryNotFound())
    async with fronting(desk) as stub:
        with raises_status(StatusCode.INTERNAL, "INTERNAL"):
            await stub.public(ANYTHING)
    assert "desk answered NOT_FOUND STORY_NOT_FOUND" in caplog.text
