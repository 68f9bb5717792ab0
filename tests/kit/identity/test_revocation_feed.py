"""Revoked tokens at a service that follows auth's feed: refused in time, and cautious while nothing is heard."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack
from typing import Any
from uuid import uuid4

import pytest
from google.rpc.error_details_pb2 import RetryInfo
from grpc import StatusCode
from grpc.aio import AioRpcError
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from storymesh.auth.v1 import revocation_service_pb2 as pb
from storymesh.story.v1.story_service_pb2 import CreateStoryRequest, GetStoryResponse

from kit.identity.revocation_feed import RevocationFollower
from kit.identity.revocations import Revocations
from kit.rpc import channels
from kit.runtime.clock import system_clock
from tests.identity import bearer, service_tokens
from tests.kit.desk import Context
from tests.kit.identity.feeding import Auth, FollowingDesk, Message, following
from tests.kit.numbers import numbers
from tests.statuses import detail, raises_status, reason_of
from tests.waiting import until

ANYTHING = CreateStoryRequest()
FEED = "kit.identity.revocation_feed"
WITHIN_SECONDS = 2.0
"""In which a revoked token must have stopped to work."""


@pytest.fixture
def auth() -> Auth:
    return Auth()


@pytest.fixture
async def desk(auth: Auth) -> AsyncIterator[FollowingDesk]:
    async with auth.serving() as address, following(address) as desk:
        await until(lambda: desk.revocations.known)
        yield desk


@pytest.fixture(autouse=True)
def _told(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the feed said, without its reasons."""
    return [record.getMessage().partition(": auth")[0] for record in caplog.records if record.name == FEED]


async def refused(call: Any, reason: str) -> bool:
    """Whether the call is refused for the reason."""
    try:
        await call
    except AioRpcError as error:
        return reason_of(error) == reason
    return False


@pytest.mark.parametrize("what", ["session", "user", "kid"])
async def test_a_revoked_session_person_or_key_is_refused_and_others_are_not(
    auth: Auth, desk: FollowingDesk, what: str
) -> None:
    user_id, session_id = uuid4(), uuid4()
    metadata = bearer(desk.issuer.token(user_id, sid=str(session_id)))
    others = bearer(desk.issuer.token(uuid4()))
    await desk.stub.user(ANYTHING, metadata=metadata)
    match what:
        case "session":
            auth.revoke(session_id=session_id)
        case "user":
            auth.revoke(user_id=user_id)
        case "kid":
            auth.revoke(kid=desk.issuer.kid)
    await until(lambda: refused(desk.stub.user(ANYTHING, metadata=metadata), "SESSION_REVOKED"), WITHIN_SECONDS)
    for call in (desk.stub.read(ANYTHING, metadata=metadata), desk.stub.watch(ANYTHING, metadata=metadata).read()):
        with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
            await call
    assert await refused(desk.stub.user(ANYTHING, metadata=others), "SESSION_REVOKED") == (what == "kid")
    await desk.stub.public(ANYTHING, metadata=metadata)
    await desk.stub.service(ANYTHING, metadata=bearer(service_tokens("story").mint("desk")))


async def test_all_sessions_of_a_person_end_but_the_kept_one_and_later_ones(auth: Auth, desk: FollowingDesk) -> None:
    async def speak(_request: CreateStoryRequest, _context: Context) -> AsyncGenerator[GetStoryResponse, None]:
        yield GetStoryResponse()
        await asyncio.Event().wait()

    desk.desk.stream = speak
    user_id, kept, other, later = uuid4(), uuid4(), uuid4(), uuid4()
    # A version of auth without epochs issued the first two.
    epochs = {kept: None, other: None, later: 1}
    metadata = {each: bearer(desk.issuer.token(user_id, sid=str(each), epoch=epoch)) for each, epoch in epochs.items()}
    streams = {each: desk.stub.watch(ANYTHING, metadata=metadata[each]) for each in epochs}
    for stream in streams.values():
        await stream.read()
    auth.revoke(user_id=user_id, before_epoch=1, excepted=kept)
    async with asyncio.timeout(WITHIN_SECONDS):
        with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
            await streams[other].read()
    with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
        await desk.stub.user(ANYTHING, metadata=metadata[other])
    for each in (kept, later):
        await desk.stub.user(ANYTHING, metadata=metadata[each])
        assert not streams[each].done()
        streams[each].cancel()


async def test_each_of_many_revocations_holds_within_two_seconds(auth: Auth, desk: FollowingDesk) -> None:
    for _ in range(100):
        session_id = uuid4()
        metadata = bearer(desk.issuer.token(uuid4(), sid=str(session_id)))
        await desk.stub.user(ANYTHING, metadata=metadata)
        auth.revoke(session_id=session_id)
        async with asyncio.timeout(WITHIN_SECONDS):
            while not await refused(desk.stub.user(ANYTHING, metadata=metadata), "SESSION_REVOKED"):
                pass


async def test_what_was_revoked_before_the_start_is_in_the_snapshot(auth: Auth) -> None:
    user_id = uuid4()
    auth.revoke(user_id=user_id)
    async with auth.serving() as address, following(address) as desk:
        await until(lambda: desk.revocations.known)
        with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
            await desk.stub.user(ANYTHING, metadata=bearer(desk.issuer.token(user_id)))


async def test_what_was_revoked_while_auth_restarted_is_refused_afterwards(
    auth: Auth, caplog: pytest.LogCaptureFixture
) -> None:
    user_id = uuid4()
    async with AsyncExitStack() as later:
        async with auth.serving() as address:
            desk = await later.enter_async_context(following(address))
            await until(lambda: desk.revocations.known)
        await until(lambda: told(caplog))
        metadata = bearer(desk.issuer.token(user_id))
        auth.revoke(user_id=user_id)
        await desk.stub.user(ANYTHING, metadata=metadata)  # known by nobody here, and fresh enough
        await later.enter_async_context(auth.serving(address))
        await until(lambda: refused(desk.stub.user(ANYTHING, metadata=metadata), "SESSION_REVOKED"))
        (lost, back) = [record for record in caplog.records if record.name == FEED]
        assert lost.getMessage().startswith("the revocation feed is lost: ")
        assert back.getMessage() == "the revocation feed is back"


async def test_a_server_that_accepts_and_says_nothing_is_left(auth: Auth, caplog: pytest.LogCaptureFixture) -> None:
    auth.mute = True
    async with auth.serving() as address, following(address, silence_seconds=0.1) as desk:
        await until(lambda: auth.connections >= 3)
        assert told(caplog) == ["the revocation feed is lost"]
        assert not desk.revocations.known
        auth.mute = False
        await until(lambda: desk.revocations.known)


async def test_a_feed_that_falls_silent_is_left_although_the_connection_stands(auth: Auth) -> None:
    async with auth.serving() as address, following(address, silence_seconds=0.2) as desk:
        await until(lambda: desk.revocations.known)
        await until(lambda: auth.connections >= 3)
        await until(lambda: len(auth.watchers) <= 1)


async def test_a_heartbeat_keeps_the_feed(auth: Auth) -> None:
    async with auth.serving() as address, following(address, silence_seconds=0.5) as desk:
        await until(lambda: desk.revocations.known)
        for _ in range(20):
            await asyncio.sleep(0.05)  # the beat that is tested, over twice the silence that is not borne
            auth.beat()
        assert auth.connections == 1
        desk.elapsed.seconds += 20
        auth.beat()
        await until(lambda: desk.revocations.age_seconds == 0)


async def test_after_thirty_seconds_without_a_word_writes_are_refused_and_reads_go_on(
    auth: Auth, desk: FollowingDesk, caplog: pytest.LogCaptureFixture
) -> None:
    metadata = bearer(desk.issuer.token(uuid4(), role="ADMIN"))
    health: Any = HealthStub(desk.channel)

    async def answers(name: str, status: int) -> bool:
        return bool((await health.Check(HealthCheckRequest(service=name))).status == status)

    desk.elapsed.seconds += 30
    await desk.stub.user(ANYTHING, metadata=metadata)
    desk.elapsed.seconds += 1
    for write in (desk.stub.user, desk.stub.admin):
        with pytest.raises(AioRpcError) as raised:
            await write(ANYTHING, metadata=metadata)
        assert (raised.value.code(), reason_of(raised.value)) == (StatusCode.UNAVAILABLE, "REVOCATIONS_UNKNOWN")
        retry = detail(raised.value, RetryInfo)
        assert retry is not None
        assert retry.retry_delay.ToTimedelta().total_seconds() > 0
    await desk.stub.read(ANYTHING, metadata=metadata)
    await desk.stub.watch(ANYTHING, metadata=metadata).read()
    await desk.stub.public(ANYTHING, metadata=metadata)
    await desk.stub.service(ANYTHING, metadata=bearer(service_tokens("story").mint("desk")))
    with raises_status(StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"):
        await desk.stub.user(ANYTHING)
    assert await until(lambda: told(caplog)) == [
        "the list of revocations is stale: writes are refused until the feed is back"
    ]
    await until(lambda: answers("revocations", HealthCheckResponse.NOT_SERVING))
    assert await answers("", HealthCheckResponse.SERVING)
    values = await numbers(desk.server.metrics)
    assert values["storymesh_revocation_feed_stale"] == 1
    assert values["storymesh_revocation_feed_age_seconds"] == 31
    assert values['storymesh_calls_refused_total{reason="REVOCATIONS_UNKNOWN"}'] == 2

    auth.beat()
    await until(lambda: not desk.revocations.stale)
    await desk.stub.user(ANYTHING, metadata=metadata)
    await until(lambda: answers("revocations", HealthCheckResponse.SERVING))
    assert told(caplog)[1:] == ["the revocation feed is back: writes are taken again"]
    assert (await numbers(desk.server.metrics))["storymesh_revocation_feed_stale"] == 0


async def test_a_loss_is_told_once_however_often_it_is_tried(auth: Auth, caplog: pytest.LogCaptureFixture) -> None:
    async with auth.serving() as address, following(address) as desk:
        await until(lambda: desk.revocations.known)
        for _ in range(2):
            caplog.clear()
            auth.opening = Message(heartbeat=Message.Heartbeat())  # vouches for a list that was not told
            auth.connections = 0
            auth.hang_up()
            await until(lambda: auth.connections >= 4)
            desk.elapsed.seconds += 31
            await until(lambda: len(told(caplog)) == 2)
            auth.opening = None
            await until(lambda: not desk.revocations.stale)
            assert told(caplog) == [
                "the revocation feed is lost",
                "the list of revocations is stale: writes are refused until the feed is back",
                "the revocation feed is back: writes are taken again",
            ]


@pytest.mark.parametrize(
    "opening",
    [
        Message(),
        Message(heartbeat=Message.Heartbeat()),
        Message(revocation=pb.Revocation(kid="k")),
        Message(snapshot=Message.Snapshot(revocations=[pb.Revocation()])),
        Message(snapshot=Message.Snapshot(revocations=[pb.Revocation(session_id="all of them")])),
    ],
    ids=["nothing", "a heartbeat", "a delta", "a kind that is not known", "an id that is none"],
)
async def test_a_list_that_is_not_understood_is_not_trusted(auth: Auth, opening: pb.WatchRevocationsResponse) -> None:
    auth.opening = opening
    async with auth.serving() as address, following(address) as desk:
        await until(lambda: auth.connections >= 2)
        assert not desk.revocations.known
        with raises_status(StatusCode.UNAVAILABLE, "REVOCATIONS_UNKNOWN"):
            await desk.stub.user(ANYTHING, metadata=bearer(desk.issuer.token(uuid4())))
        auth.opening = None
        await until(lambda: desk.revocations.known)
        await desk.stub.user(ANYTHING, metadata=bearer(desk.issuer.token(uuid4())))


async def test_a_start_without_trouble_warns_of_nothing(
    auth: Auth, desk: FollowingDesk, caplog: pytest.LogCaptureFixture
) -> None:
    health: Any = HealthStub(desk.channel)
    for name in ("", "revocations", "revocation_snapshot"):
        assert (await health.Check(HealthCheckRequest(service=name))).status == HealthCheckResponse.SERVING
    assert [record.getMessage() for record in caplog.get_records("setup") if record.levelno >= logging.WARNING] == []


async def test_a_replica_is_not_ready_before_it_has_a_list(auth: Auth, caplog: pytest.LogCaptureFixture) -> None:
    async with auth.serving() as address:
        pass
    async with following(address) as desk:
        health: Any = HealthStub(desk.channel)

        async def ready() -> bool:
            answer = await health.Check(HealthCheckRequest())
            return bool(answer.status == HealthCheckResponse.SERVING)

        assert not await ready()
        async with auth.serving(address):
            await until(ready)
            caplog.clear()
        await until(lambda: "the revocation feed is lost" in " ".join(told(caplog)))
        assert await ready()


@pytest.mark.parametrize("mute", [True, False], ids=["that says nothing", "that is up to date"])
async def test_the_end_of_the_process_waits_for_no_feed(auth: Auth, mute: bool) -> None:
    auth.mute = mute
    stopping = asyncio.Event()
    async with auth.serving() as address, channels.connect(address, "auth", service_tokens("desk")) as channel:
        feed = RevocationFollower(channel, Revocations(system_clock))
        running = asyncio.create_task(feed.run(stopping))
        await until(lambda: auth.connections)
        stopping.set()
        await asyncio.wait_for(running, 5)  # of the twelve seconds' silence that would be borne


@pytest.mark.parametrize("what", ["session", "user", "kid"])
async def test_an_open_stream_ends_when_its_session_person_or_key_is_revoked(
    auth: Auth, desk: FollowingDesk, what: str
) -> None:
    cleaned = asyncio.Event()

    async def speak(_request: CreateStoryRequest, _context: Context) -> AsyncGenerator[GetStoryResponse, None]:
        try:
            yield GetStoryResponse()
            await asyncio.Event().wait()
        finally:
            cleaned.set()

    desk.desk.stream = speak
    tasks = len(asyncio.all_tasks())
    user_id, session_id = uuid4(), uuid4()
    call = desk.stub.watch(ANYTHING, metadata=bearer(desk.issuer.token(user_id, sid=str(session_id))))
    await call.read()
    match what:
        case "session":
            auth.revoke(session_id=session_id)
        case "user":
            auth.revoke(user_id=user_id)
        case "kid":
            auth.revoke(kid=desk.issuer.kid)
    async with asyncio.timeout(WITHIN_SECONDS):
        with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
            await call.read()
    assert cleaned.is_set()
    await until(lambda: len(asyncio.all_tasks()) <= tasks)
    values = await numbers(desk.server.metrics)
    assert values['storymesh_calls_refused_total{reason="SESSION_REVOKED"}'] == 1


async def test_a_stream_that_takes_its_time_to_end_may_be_revoked_again(auth: Auth, desk: FollowingDesk) -> None:
    ending, end = asyncio.Event(), asyncio.Event()

    async def speak(_request: CreateStoryRequest, _context: Context) -> AsyncGenerator[GetStoryResponse, None]:
        yield GetStoryResponse()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            ending.set()
            await end.wait()  # and ends as if nothing were wrong

    desk.desk.stream = speak
    user_id, session_id = uuid4(), uuid4()
    call = desk.stub.watch(ANYTHING, metadata=bearer(desk.issuer.token(user_id, sid=str(session_id))))
    await call.read()
    auth.revoke(session_id=session_id)
    await ending.wait()
    auth.revoke(user_id=user_id)
    auth.revoke(kid="another")
    await until(lambda: len(desk.revocations.current()) == 3)
    assert auth.connections == 1
    end.set()
    with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
        await call.read()


async def test_other_peoples_streams_and_ones_other_session_go_on(auth: Auth, desk: FollowingDesk) -> None:
    go_on = asyncio.Event()

    async def speak(_request: CreateStoryRequest, _context: Context) -> AsyncGenerator[GetStoryResponse, None]:
        yield GetStoryResponse()
        await go_on.wait()
        yield GetStoryResponse()

    desk.desk.stream = speak
    user_id, session_id = uuid4(), uuid4()
    ended, other_session, other_person = (
        desk.stub.watch(ANYTHING, metadata=bearer(desk.issuer.token(user, sid=str(session))))
        for user, session in ((user_id, session_id), (user_id, uuid4()), (uuid4(), uuid4()))
    )
    for call in (ended, other_session, other_person):
        await call.read()
    auth.revoke(session_id=session_id)
    with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
        await ended.read()
    go_on.set()
    for call in (other_session, other_person):
        await call.read()
        assert await call.code() is StatusCode.OK


async def test_a_stream_whose_reader_is_slow_ends_too(auth: Auth, desk: FollowingDesk) -> None:
    cleaned, written = asyncio.Event(), 0

    async def speak(_request: CreateStoryRequest, _context: Context) -> AsyncGenerator[GetStoryResponse, None]:
        nonlocal written
        message = GetStoryResponse()
        message.story.title = "x" * 65536
        try:
            while True:
                yield message
                written += 1
        finally:
            cleaned.set()

    async def stuck() -> bool:
        before = written
        await asyncio.sleep(0.1)
        return before == written

    desk.desk.stream = speak
    session_id = uuid4()
    call = desk.stub.watch(ANYTHING, metadata=bearer(desk.issuer.token(uuid4(), sid=str(session_id))))
    messages = aiter(call)
    await anext(messages)
    await until(stuck)
    auth.revoke(session_id=session_id)
    await asyncio.wait_for(cleaned.wait(), WITHIN_SECONDS)

    async def read_all() -> None:
        async for _ in messages:
            pass

    with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
        await read_all()
    await desk.stub.public(ANYTHING)


async def test_a_stream_that_was_open_while_the_feed_was_lost_ends_with_the_new_snapshot(
    auth: Auth, desk: FollowingDesk
) -> None:
    async def speak(_request: CreateStoryRequest, _context: Context) -> AsyncGenerator[GetStoryResponse, None]:
        yield GetStoryResponse()
        await asyncio.Event().wait()

    desk.desk.stream = speak
    user_id = uuid4()
    call = desk.stub.watch(ANYTHING, metadata=bearer(desk.issuer.token(user_id)))
    await call.read()
    watchers, auth.watchers = auth.watchers, []
    auth.revoke(user_id=user_id)
    auth.watchers = watchers
    auth.hang_up()
    async with asyncio.timeout(WITHIN_SECONDS):
        with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
            await call.read()


async def test_a_streams_own_timeout_is_not_taken_for_a_revocation(desk: FollowingDesk) -> None:
    async def dawdle(_request: CreateStoryRequest, _context: Context) -> AsyncGenerator[GetStoryResponse, None]:
        async with asyncio.timeout(0.01):
            await asyncio.Event().wait()
        yield GetStoryResponse()

    desk.desk.stream = dawdle
    with raises_status(StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"):
        await desk.stub.watch(ANYTHING, metadata=bearer(desk.issuer.token(uuid4()))).read()
