"""What happens around every call, seen from the caller's side and in the log."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import grpc
import pytest
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from grpc import StatusCode
from grpc.aio import AioRpcError
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub
from opentelemetry import trace
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor, TracerProvider
from storymesh.story.v1.story_pb2 import Story
from storymesh.story.v1.story_service_pb2 import DESCRIPTOR, CreateStoryRequest, GetStoryRequest, GetStoryResponse
from storymesh.story.v1.story_service_pb2_grpc import StoryServiceServicer, add_StoryServiceServicer_to_server

from kit.errors import FailedPrecondition, ResourceExhausted
from kit.identity.access import AccessControl
from kit.identity.caller import caller_of, current_caller, origin_of
from kit.rpc import deadline
from kit.rpc.server import Server
from kit.runtime import tracing
from kit.runtime.settings import ServiceSettings
from mesh import contract
from tests.identity import Issuer, bearer, service_tokens
from tests.kit import desk as desks
from tests.kit.conftest import RunningDesk
from tests.kit.desk import Context
from tests.statuses import raises_status, reason_of, violated_fields
from tests.waiting import until

ALICE = UUID("01890000-0000-7000-8000-00000000a11c")
ANYTHING = CreateStoryRequest()
INTERCEPTOR = "kit.rpc.interceptor"
STORY_SERVICE = DESCRIPTOR.services_by_name["StoryService"]
STORIES = STORY_SERVICE.full_name
STORY_REQUESTS: dict[str, dict[str, Any]] = {"CreateStory": {}, "ListStories": {}}
"""Requests that break no rule; all other methods name a story."""


class StoryNotCancellable(FailedPrecondition):
    reason = "STORY_NOT_CANCELLABLE"


def said(title: str) -> GetStoryResponse:
    return GetStoryResponse(story=Story(title=title))


def lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """The request log."""
    return [record for record in caplog.records if record.name == INTERCEPTOR and hasattr(record, "event.action")]


@pytest.fixture(autouse=True)
def _everything_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


async def test_a_public_method_admits_anyone(desk: RunningDesk) -> None:
    await desk.stub.public(ANYTHING)
    await desk.stub.public(ANYTHING, metadata=bearer("garbage"))


@pytest.mark.parametrize("method", ["user", "admin", "service", "watch"])
async def test_a_guarded_method_admits_nobody_without_a_token(desk: RunningDesk, method: str) -> None:
    with raises_status(StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"):
        call = getattr(desk.stub, method)(ANYTHING)
        await (call.read() if method == "watch" else call)
    assert desk.desk.calls == 0


async def test_a_persons_token_opens_the_methods_for_people_only(desk: RunningDesk) -> None:
    auth = bearer(desk.issuer.token(ALICE))
    await desk.stub.user(ANYTHING, metadata=auth)
    with raises_status(StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"):
        await desk.stub.admin(ANYTHING, metadata=auth)
    with raises_status(StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"):
        await desk.stub.service(ANYTHING, metadata=auth)


async def test_an_administrators_token_opens_the_methods_for_administrators_too(desk: RunningDesk) -> None:
    auth = bearer(desk.issuer.token(ALICE, role="ADMIN"))
    await desk.stub.user(ANYTHING, metadata=auth)
    await desk.stub.admin(ANYTHING, metadata=auth)
    with raises_status(StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"):
        await desk.stub.service(ANYTHING, metadata=auth)


async def test_a_services_token_opens_the_methods_for_services_only(desk: RunningDesk) -> None:
    auth = bearer(service_tokens("story").mint("desk"))
    await desk.stub.service(ANYTHING, metadata=auth)
    for call in (desk.stub.user, desk.stub.admin):
        with raises_status(StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"):
            await call(ANYTHING, metadata=auth)


async def test_a_services_token_for_another_callee_opens_nothing(desk: RunningDesk) -> None:
    with raises_status(StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"):
        await desk.stub.service(ANYTHING, metadata=bearer(service_tokens("story").mint("auth")))


async def test_two_credentials_are_refused_even_if_one_is_good(desk: RunningDesk) -> None:
    good, other = desk.issuer.token(ALICE), desk.issuer.token(uuid4())
    for second in (other, good, "garbage"):
        with raises_status(StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"):
            await desk.stub.user(ANYTHING, metadata=(*bearer(good), *bearer(second)))


@pytest.mark.parametrize("form", ["{}", "Basic {}", "Bearer", "Bearer ", "Token {}", "Bearer {} {}"])
async def test_a_credential_of_another_form_is_refused(desk: RunningDesk, form: str) -> None:
    value = form.format(*[desk.issuer.token(ALICE)] * 2)
    with raises_status(StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"):
        await desk.stub.user(ANYTHING, metadata=(("authorization", value),))


async def test_the_schemes_name_is_free_of_case(desk: RunningDesk) -> None:
    await desk.stub.user(ANYTHING, metadata=(("authorization", f"bEARER {desk.issuer.token(ALICE)}"),))


def test_a_method_without_a_policy_is_refused_with_its_name() -> None:
    with pytest.raises(ValueError, match=r"UnguardedService\.AskPublic has no .*policy"):
        contract.linked([desks.UNGUARDED])


def test_a_server_with_a_method_without_a_policy_does_not_start() -> None:
    with pytest.raises(ValueError, match="UnguardedService"):
        AccessControl([desks.NAME, desks.UNGUARDED], Issuer().access_tokens(), service_tokens("desk"))


async def test_a_server_that_would_have_to_admit_people_needs_their_tokens(settings: ServiceSettings) -> None:
    server = Server(settings, required={})
    desks.add(server, desks.Desk())
    with pytest.raises(ValueError, match="tokens"):
        await server.run()


async def test_invalid_fields_are_named_with_their_index(desk: RunningDesk) -> None:
    with pytest.raises(AioRpcError) as raised:
        await desk.stub.public(CreateStoryRequest(preferences=["cats", " "], theme="\n"))
    assert (raised.value.code(), reason_of(raised.value)) == (StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")
    assert violated_fields(raised.value) == ["preferences[1]", "theme"]
    assert desk.desk.calls == 0


async def test_a_request_with_thousands_of_faults_still_gets_its_answer(desk: RunningDesk) -> None:
    with pytest.raises(AioRpcError) as raised:
        await desk.stub.public(CreateStoryRequest(preferences=[" "] * 5000))
    assert raised.value.code() is StatusCode.INVALID_ARGUMENT
    assert violated_fields(raised.value)


async def test_who_may_not_call_learns_nothing_of_the_rules(desk: RunningDesk) -> None:
    with raises_status(StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"):
        await desk.stub.user(CreateStoryRequest(theme="\n"))


async def test_an_operations_error_reaches_the_caller_with_its_reason(desk: RunningDesk) -> None:
    async def refuse(_request: CreateStoryRequest, _context: Context) -> GetStoryResponse:
        raise StoryNotCancellable

    desk.desk.answer = refuse
    with raises_status(StatusCode.FAILED_PRECONDITION, "STORY_NOT_CANCELLABLE"):
        await desk.stub.public(ANYTHING)


async def test_the_unexpected_is_told_to_the_log_only(desk: RunningDesk, caplog: pytest.LogCaptureFixture) -> None:
    async def break_down(_request: CreateStoryRequest, _context: Context) -> GetStoryResponse:
        raise RuntimeError("s3cret detail")

    desk.desk.answer = break_down
    with pytest.raises(AioRpcError) as raised:
        await desk.stub.public(ANYTHING)
    assert (raised.value.code(), raised.value.details()) == (StatusCode.INTERNAL, "internal error")
    assert "s3cret" not in str(raised.value.trailing_metadata())
    (told,) = [record for record in caplog.records if record.exc_info]
    assert "s3cret detail" in str(told.exc_info)


async def test_a_status_that_a_servicer_sends_itself_passes(
    desk: RunningDesk, caplog: pytest.LogCaptureFixture
) -> None:
    async def abort(_request: CreateStoryRequest, context: Context) -> GetStoryResponse:
        await context.abort(StatusCode.DATA_LOSS, "told by the servicer")

    desk.desk.answer = abort
    with pytest.raises(AioRpcError) as raised:
        await desk.stub.public(ANYTHING)
    assert (raised.value.code(), raised.value.details()) == (StatusCode.DATA_LOSS, "told by the servicer")
    (line,) = await until(lambda: lines(caplog))
    assert line.getMessage() == f"/{desks.NAME}/AskPublic DATA_LOSS"


async def test_a_stream_brings_its_messages_and_ends_well(desk: RunningDesk) -> None:
    async def count(_request: CreateStoryRequest, _context: Context) -> AsyncGenerator[GetStoryResponse, None]:
        for number in range(3):
            yield said(str(number))

    desk.desk.stream = count
    call = desk.stub.watch(ANYTHING, metadata=bearer(desk.issuer.token(ALICE)))
    assert [message.story.title async for message in call] == ["0", "1", "2"]
    assert await call.code() is StatusCode.OK


@pytest.mark.parametrize("messages", [0, 2])
async def test_a_streams_error_comes_after_what_it_said_before(desk: RunningDesk, messages: int) -> None:
    async def give_up(_request: CreateStoryRequest, _context: Context) -> AsyncGenerator[GetStoryResponse, None]:
        for number in range(messages):
            yield said(str(number))
        raise StoryNotCancellable

    desk.desk.stream = give_up
    call = desk.stub.watch(ANYTHING, metadata=bearer(desk.issuer.token(ALICE)))
    got = []

    async def read() -> None:
        async for message in call:
            got.append(message)  # noqa: PERF401  # what came before the error counts

    with raises_status(StatusCode.FAILED_PRECONDITION, "STORY_NOT_CANCELLABLE"):
        await read()
    assert len(got) == messages


async def test_a_streams_request_is_validated(desk: RunningDesk) -> None:
    call = desk.stub.watch(CreateStoryRequest(theme="\n"), metadata=bearer(desk.issuer.token(ALICE)))
    with raises_status(StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"):
        await call.read()


async def test_a_servicer_sees_the_callers_time_less_what_is_kept(desk: RunningDesk) -> None:
    left = []

    async def look(_request: CreateStoryRequest, _context: Context) -> GetStoryResponse:
        left.append(deadline.remaining())
        return GetStoryResponse()

    desk.desk.answer = look
    await desk.stub.public(ANYTHING, timeout=0.8)
    await desk.stub.public(ANYTHING)
    short, longest = left
    assert short is not None
    assert longest is not None
    # gRPC sends whole milliseconds, rounded up.
    assert short <= 0.781
    assert 0.8 < longest <= desk.settings.call_seconds


async def test_a_load_check_refuses_before_the_message_is_read_and_the_call_is_logged(
    desk: RunningDesk, caplog: pytest.LogCaptureFixture
) -> None:
    full = True

    def check() -> None:
        if full:
            raise ResourceExhausted(retry_after=timedelta(seconds=1))

    desk.server.add_load_check(f"/{desks.NAME}/AskPublic", check)
    unreadable: Any = desk.channel.unary_unary(f"/{desks.NAME}/AskPublic")
    for _ in range(2):
        with raises_status(StatusCode.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED"):
            await unreadable(b"\xff")
    assert desk.desk.calls == 0
    await until(lambda: len(lines(caplog)) == 2)
    assert {vars(line)["error.code"] for line in lines(caplog)} == {"RESOURCE_EXHAUSTED"}
    # Other methods are not asked, and this one is again each time.
    await desk.stub.user(ANYTHING, metadata=bearer(desk.issuer.token(ALICE)))
    full = False
    await desk.stub.public(ANYTHING)
    with raises_status(StatusCode.INVALID_ARGUMENT, "REQUEST_MALFORMED"):
        await unreadable(b"\xff")


async def test_a_call_that_takes_too_long_is_ended_and_told_so(desk: RunningDesk) -> None:
    ended = asyncio.Event()

    async def dawdle(_request: CreateStoryRequest, _context: Context) -> GetStoryResponse:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()
        raise AssertionError

    desk.desk.answer = dawdle
    with raises_status(StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"):
        await desk.stub.public(ANYTHING)
    assert ended.is_set()


@pytest.mark.parametrize("seconds", [0.09, 0.03])
async def test_a_short_time_is_enough_for_a_short_call(desk: RunningDesk, seconds: float) -> None:
    await desk.stub.public(ANYTHING)  # connects, so that the next call's time is not spent on that

    async def answered() -> bool:
        call = desk.stub.public(ANYTHING, timeout=seconds)
        return await call.code() is StatusCode.OK

    # Again when the machine itself was too slow.
    await until(answered)


async def test_a_call_that_its_short_time_does_not_suffice_for_ends_and_is_told_so(desk: RunningDesk) -> None:
    await desk.stub.public(ANYTHING)
    unfinished: list[int] = []

    async def dawdle(_request: CreateStoryRequest, _context: Context) -> GetStoryResponse:
        unfinished.append(1)
        try:
            await asyncio.Event().wait()
        finally:
            unfinished.pop()
        raise AssertionError

    desk.desk.answer = dawdle
    for seconds in (0.09, 0.03, 0.005, 0.001):
        assert await desk.stub.public(ANYTHING, timeout=seconds).code() is StatusCode.DEADLINE_EXCEEDED
    desk.desk.answer = desks.greet
    await desk.stub.public(ANYTHING)
    await until(lambda: not unfinished)


async def test_a_stream_has_no_longest_time(desk: RunningDesk) -> None:
    left = []

    async def look(_request: CreateStoryRequest, _context: Context) -> AsyncGenerator[GetStoryResponse, None]:
        left.append(deadline.remaining())
        yield GetStoryResponse()

    desk.desk.stream = look
    await desk.stub.watch(ANYTHING, metadata=bearer(desk.issuer.token(ALICE))).read()
    assert left == [None]


async def test_a_stream_is_ended_with_a_status_before_its_deadline(desk: RunningDesk) -> None:
    async def speak_once(_request: CreateStoryRequest, _context: Context) -> AsyncGenerator[GetStoryResponse, None]:
        yield said("a word")
        await asyncio.Event().wait()

    desk.desk.stream = speak_once

    async def reason_after(seconds: float) -> str:
        call = desk.stub.watch(ANYTHING, metadata=bearer(desk.issuer.token(ALICE)), timeout=seconds)
        await call.read()
        with pytest.raises(AioRpcError) as ended:
            await call.read()
        assert ended.value.code() is StatusCode.DEADLINE_EXCEEDED
        return reason_of(ended.value)

    # A busy machine may need more than a tenth of a second to answer, but hardly of each of these.
    assert "DEADLINE_EXCEEDED" in [await reason_after(seconds) for seconds in (1, 3)]


async def test_a_call_that_its_caller_gives_up_is_cancelled(
    desk: RunningDesk, caplog: pytest.LogCaptureFixture
) -> None:
    begun, cleaned = asyncio.Event(), asyncio.Event()

    async def wait(_request: CreateStoryRequest, _context: Context) -> GetStoryResponse:
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            cleaned.set()
        raise AssertionError

    desk.desk.answer = wait
    call = desk.stub.public(ANYTHING)
    await begun.wait()
    call.cancel()
    await asyncio.wait_for(cleaned.wait(), 5)
    (line,) = await until(lambda: lines(caplog))
    assert line.__dict__["rpc.grpc.status_code"] == "CANCELLED"


@pytest.mark.parametrize("silent", [True, False], ids=["while it is silent", "while it speaks faster than is listened"])
async def test_a_stream_that_its_caller_leaves_is_cleaned_up(
    desk: RunningDesk, caplog: pytest.LogCaptureFixture, silent: bool
) -> None:
    cleaned = asyncio.Event()

    async def speak(_request: CreateStoryRequest, _context: Context) -> AsyncGenerator[GetStoryResponse, None]:
        try:
            while True:
                yield said("x" * 65536)
                if silent:
                    await asyncio.Event().wait()
        finally:
            cleaned.set()

    desk.desk.stream = speak
    call = desk.stub.watch(ANYTHING, metadata=bearer(desk.issuer.token(ALICE)))
    await call.read()
    call.cancel()
    await asyncio.wait_for(cleaned.wait(), 5)
    (line,) = await until(lambda: lines(caplog))
    assert line.__dict__["rpc.grpc.status_code"] == "CANCELLED"
    assert line.__dict__["user.id"] == str(ALICE)
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


async def test_each_of_many_calls_at_once_sees_its_own_caller(desk: RunningDesk) -> None:
    async def who(_request: CreateStoryRequest, context: Context) -> GetStoryResponse:
        before = caller_of(context).user_id
        await asyncio.sleep(0.01)
        assert caller_of(context).user_id == before
        return said(str(before))

    desk.desk.answer = who
    people = [uuid4() for _ in range(30)]

    async def ask(person: UUID) -> str:
        answer = await desk.stub.user(ANYTHING, metadata=bearer(desk.issuer.token(person)))
        return answer.story.title

    assert await asyncio.gather(*map(ask, people)) == [str(person) for person in people]


async def test_a_public_call_after_a_persons_has_no_caller(desk: RunningDesk) -> None:
    seen = []

    async def look(_request: CreateStoryRequest, _context: Context) -> GetStoryResponse:
        seen.append(current_caller.get())
        return GetStoryResponse()

    desk.desk.answer = look
    await desk.stub.user(ANYTHING, metadata=bearer(desk.issuer.token(ALICE)))
    await desk.stub.public(ANYTHING, metadata=bearer(desk.issuer.token(ALICE)))
    person, nobody = seen
    assert person is not None
    assert person.user_id == ALICE
    assert nobody is None
    assert current_caller.get() is None


async def test_a_method_that_asks_for_the_caller_of_a_public_call_is_our_mistake(desk: RunningDesk) -> None:
    async def ask(_request: CreateStoryRequest, context: Context) -> GetStoryResponse:
        caller_of(context)
        raise AssertionError

    desk.desk.answer = ask
    with raises_status(StatusCode.INTERNAL, "INTERNAL"):
        await desk.stub.public(ANYTHING)


@pytest.fixture
async def bare_stories(settings: ServiceSettings) -> AsyncIterator[tuple[grpc.aio.Channel, Issuer]]:
    """A story service of which no method is written yet."""
    server, issuer = Server(settings, required={}), Issuer()
    nothing = StoryServiceServicer()  # type: ignore[abstract]  # that is the point
    server.add(add_StoryServiceServicer_to_server, nothing)
    running = asyncio.create_task(server.run(issuer.access_tokens(), service_tokens("story")))
    async with grpc.aio.insecure_channel(await server.address) as channel:
        yield channel, issuer
    server.stopping.set()
    await running


@pytest.mark.parametrize("method", [method.name for method in STORY_SERVICE.methods])
async def test_a_method_that_nobody_has_written_is_unimplemented(
    bare_stories: tuple[grpc.aio.Channel, Issuer], caplog: pytest.LogCaptureFixture, method: str
) -> None:
    channel, issuer = bare_stories
    request = STORY_REQUESTS.get(method, {"story_id": str(ALICE)})
    kind = GetMessageClass(STORY_SERVICE.methods_by_name[method].input_type)
    with raises_status(StatusCode.UNIMPLEMENTED, "UNIMPLEMENTED"):
        await _called(channel, f"/{STORIES}/{method}", kind(**request), bearer(issuer.token(ALICE)))
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize(
    "path", [f"/{STORIES}/Nothing", "/storymesh.story.v9.StoryService/GetStory", "/grpc.health.v1.Health/Nothing", "/x"]
)
async def test_an_unknown_method_is_unimplemented_at_the_services_own_door(
    bare_stories: tuple[grpc.aio.Channel, Issuer], path: str
) -> None:
    channel, _ = bare_stories
    with raises_status(StatusCode.UNIMPLEMENTED, "UNIMPLEMENTED"):
        await _called(channel, path, GetStoryRequest(), ())
    # A client that streams, and has not said anything yet.
    call: grpc.aio.StreamStreamCall[bytes, bytes] = channel.stream_stream(path)()
    with raises_status(StatusCode.UNIMPLEMENTED, "UNIMPLEMENTED"):
        await call.read()


async def _called(channel: grpc.aio.Channel, path: str, request: Message, metadata: Any) -> None:
    method: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(path)
    async for _ in method(request.SerializeToString(), metadata=metadata, timeout=5):
        pass


async def test_something_not_implemented_deep_inside_is_an_error_like_any_other(desk: RunningDesk) -> None:
    async def fail(_request: CreateStoryRequest, _context: Context) -> GetStoryResponse:
        raise NotImplementedError

    desk.desk.answer = fail
    with raises_status(StatusCode.INTERNAL, "INTERNAL"):
        await desk.stub.public(ANYTHING)


CLAIMS = {"x-forwarded-for": "6.6.6.6", "forwarded": "for=6.6.6.6", "x-real-ip": "6.6.6.6", "x-client-ip": "6.6.6.6"}


@pytest.mark.parametrize(
    ("told", "ip"),
    [
        ({}, "127.0.0.1"),
        ({"x-storymesh-client-address": "203.0.113.7"}, "203.0.113.7"),
        ({"x-storymesh-client-address": "2001:DB8:0::7"}, "2001:db8::7"),
        ({"x-storymesh-client-address": "::ffff:203.0.113.7"}, "203.0.113.7"),
        ({"x-storymesh-client-address": "fe80::1%eth0"}, "fe80::1"),
        ({"x-storymesh-client-address": "nowhere"}, "127.0.0.1"),
    ],
    ids=["called directly", "IPv4", "IPv6", "IPv4 mapped into IPv6", "IPv6 with a zone", "no address"],
)
async def test_the_origin_is_what_the_edge_saw_not_what_anybody_claims(
    desk: RunningDesk, told: dict[str, str], ip: str
) -> None:
    origins = []

    async def look(_request: CreateStoryRequest, context: Context) -> GetStoryResponse:
        origins.append(origin_of(context))
        return GetStoryResponse()

    desk.desk.answer = look
    await desk.stub.public(ANYTHING, metadata=tuple({**CLAIMS, **told}.items()))
    assert origins[0].ip == ip


async def test_the_agent_is_the_browsers_or_the_clients_own(desk: RunningDesk) -> None:
    agents = []

    async def look(_request: CreateStoryRequest, context: Context) -> GetStoryResponse:
        agents.append(origin_of(context).user_agent)
        return GetStoryResponse()

    desk.desk.answer = look
    await desk.stub.public(ANYTHING)
    await desk.stub.public(ANYTHING, metadata=(("x-user-agent", "browser/1"),))
    assert "grpc-python-asyncio" in agents[0]
    assert agents[1] == "browser/1"


async def test_each_call_is_one_line_of_the_request_log(desk: RunningDesk, caplog: pytest.LogCaptureFixture) -> None:
    token = desk.issuer.token(ALICE)
    await desk.stub.user(
        ANYTHING, metadata=(*bearer(token), ("x-request-id", "r-1"), ("x-storymesh-client-address", "203.0.113.7"))
    )
    (line,) = await until(lambda: lines(caplog))
    fields = line.__dict__
    assert line.getMessage() == f"/{desks.NAME}/AskUser OK"
    assert fields["event.action"] == f"/{desks.NAME}/AskUser"
    assert fields["event.outcome"] == "success"
    assert fields["event.duration"] > 0
    assert fields["rpc.grpc.status_code"] == "OK"
    assert fields["client.ip"] == "203.0.113.7"
    assert fields["http.request.id"] == "r-1"
    assert fields["user.id"] == str(ALICE)


async def test_a_failed_call_is_logged_with_its_reason(desk: RunningDesk, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(AioRpcError):
        await desk.stub.public(CreateStoryRequest(theme="\n"))
    (line,) = await until(lambda: lines(caplog))
    assert line.__dict__["event.outcome"] == "failure"
    assert line.__dict__["rpc.grpc.status_code"] == "INVALID_ARGUMENT"
    assert line.__dict__["error.code"] == "INVALID_ARGUMENT"


async def test_neither_credentials_nor_what_was_asked_are_logged(
    desk: RunningDesk, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger="kit")
    token = desk.issuer.token(ALICE)
    await desk.stub.user(CreateStoryRequest(prompt="s3cret wish"), metadata=bearer(token))
    with pytest.raises(AioRpcError):
        await desk.stub.user(CreateStoryRequest(theme="s3cret\n"), metadata=bearer(token))
    await until(lambda: len(lines(caplog)) == 2)
    logged = " ".join(str(record.__dict__) for record in caplog.records)
    assert "s3cret" not in logged
    assert token.rpartition(".")[2] not in logged


async def test_health_and_unknown_methods_pass_untouched(desk: RunningDesk) -> None:
    stub: Any = HealthStub(desk.channel)
    answer = await stub.Check(health_pb2.HealthCheckRequest(service=desks.NAME))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    unknown: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = desk.channel.unary_unary(f"/{desks.NAME}/Nothing")
    with pytest.raises(AioRpcError) as raised:
        await unknown(b"")
    assert raised.value.code() is StatusCode.UNIMPLEMENTED


async def test_a_request_that_is_too_large_is_refused(desk: RunningDesk) -> None:
    with pytest.raises(AioRpcError) as raised:
        await desk.stub.public(CreateStoryRequest(prompt="x" * (1 << 20)))
    assert raised.value.code() is StatusCode.RESOURCE_EXHAUSTED


async def test_bytes_that_are_no_request_are_refused_like_any_other_mistake(
    desk: RunningDesk, caplog: pytest.LogCaptureFixture
) -> None:
    raw: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = desk.channel.unary_unary(f"/{desks.NAME}/AskPublic")
    with raises_status(StatusCode.INVALID_ARGUMENT, "REQUEST_MALFORMED"):
        await raw(b"\xff\xff")
    assert not [record for record in caplog.records if record.exc_info]
    assert await until(lambda: lines(caplog))


@pytest.mark.parametrize("silent", [True, False], ids=["while it is silent", "while it speaks"])
async def test_a_clean_up_that_fails_after_the_caller_has_left_harms_no_other_call(
    desk: RunningDesk, caplog: pytest.LogCaptureFixture, silent: bool
) -> None:
    async def speak(_request: CreateStoryRequest, _context: Context) -> AsyncGenerator[GetStoryResponse, None]:
        try:
            while True:
                yield said("x" * 65536)
                if silent:
                    await asyncio.Event().wait()
        finally:
            raise RuntimeError("the clean-up failed")

    desk.desk.stream = speak
    call = desk.stub.watch(ANYTHING, metadata=bearer(desk.issuer.token(ALICE)))
    await call.read()
    call.cancel()
    await until(lambda: lines(caplog))
    await desk.stub.public(ANYTHING)
    assert "Task exception was never retrieved" not in caplog.text


async def test_a_call_is_a_span_in_its_callers_trace_and_only_our_faults_are_errors(desk: RunningDesk) -> None:
    spans: list[ReadableSpan] = []
    seen: list[str] = []

    async def fail(request: CreateStoryRequest, _context: Context) -> GetStoryResponse:
        seen.append(tracing.trace_id())
        raise {"ours": RuntimeError(), "theirs": StoryNotCancellable()}[request.theme]

    desk.desk.answer = fail
    metadata = (("traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),)
    with recorded(spans):
        for theme in ("ours", "theirs"):
            with pytest.raises(AioRpcError):
                await desk.stub.public(CreateStoryRequest(theme=theme), metadata=metadata)
        await until(lambda: len(spans) == 2)
    assert seen == ["0af7651916cd43dd8448eb211c80319c"] * 2
    ours, theirs = spans
    assert (ours.name, ours.status.status_code) == (f"{desks.NAME}/AskPublic", trace.StatusCode.ERROR)
    assert [event.name for event in ours.events] == ["exception"]
    assert (theirs.status.status_code, theirs.events) == (trace.StatusCode.UNSET, ())
    codes = [(span.attributes or {})["rpc.grpc.status_code"] for span in spans]
    assert codes == [StatusCode.INTERNAL.value[0], StatusCode.FAILED_PRECONDITION.value[0]]


@contextmanager
def recorded(spans: list[ReadableSpan]) -> Iterator[None]:
    """Keeps the spans that the kit makes meanwhile."""

    class Keep(SpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            spans.append(span)

    provider = TracerProvider()
    provider.add_span_processor(Keep())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracing, "_tracer", provider.get_tracer("test"))
        yield
    provider.shutdown()
