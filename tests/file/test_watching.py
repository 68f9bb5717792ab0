"""Watches of a file, and lists."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from uuid import UUID, uuid4

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError
from storymesh.file.v1 import file_pb2
from storymesh.file.v1 import file_service_pb2 as pb

from mesh.edge_protocol import STREAM_ENDED_HEADER
from services.file import store
from services.file.model import CheckStep, State
from tests.file.conftest import FileWorld, Person
from tests.statuses import raises_status


@asynccontextmanager
async def watching(person: Person, file_id: str, token: str = "") -> AsyncIterator[AsyncIterator[pb.WatchFileResponse]]:
    """Open a watch during the block; its deadline fails a test whose message never comes."""
    request = pb.WatchFileRequest(file_id=file_id, resume_token=token)
    call = person.stub.WatchFile(request, metadata=person.auth, timeout=20)
    try:
        yield aiter(call)
    finally:
        call.cancel()


async def next_change(messages: AsyncIterator[pb.WatchFileResponse]) -> pb.WatchFileResponse:
    """The next message that is no heartbeat."""
    while True:
        message = await anext(messages)
        if message.WhichOneof("event") != "heartbeat":
            return message


async def step(world: FileWorld, file_id: str, check_step: CheckStep) -> None:
    async with world.db.transaction() as tx:
        assert await store.files.change(tx, UUID(file_id), within=[State.CHECKING], check_step=check_step)


async def test_a_watch_tells_each_step_once_and_goes_on_where_it_was_left(world: FileWorld) -> None:
    person = world.person()
    file_id = await person.uploaded()
    async with watching(person, file_id) as messages:
        first = await anext(messages)
        assert first.file.state == file_pb2.FILE_STATE_PENDING
        await person.complete(file_id)
        queued = await next_change(messages)
        assert queued.file.check_step == file_pb2.FILE_CHECK_STEP_QUEUED
        await step(world, file_id, CheckStep.VERIFYING)
        verifying = await next_change(messages)
        assert verifying.file.check_step == file_pb2.FILE_CHECK_STEP_VERIFYING
    # Nothing is new: the stream is alive, and tells nothing again.
    async with watching(person, file_id, verifying.resume_token) as messages:
        assert (await anext(messages)).WhichOneof("event") == "heartbeat"
        await step(world, file_id, CheckStep.RENDERING)
        assert (await next_change(messages)).file.check_step == file_pb2.FILE_CHECK_STEP_RENDERING
    # What came in between is told by the latest state.
    async with watching(person, file_id, first.resume_token) as messages:
        assert (await anext(messages)).file.check_step == file_pb2.FILE_CHECK_STEP_RENDERING
        await world.becomes(file_id, State.READY)
        done = await next_change(messages)
        assert done.done.file.state == file_pb2.FILE_STATE_READY
        with pytest.raises(StopAsyncIteration):
            await anext(messages)

    # Coming back with the end's token is answered by a word for the edge, which says 204.
    for token, ended in ((done.resume_token, True), (first.resume_token, False)):
        call = person.stub.WatchFile(
            pb.WatchFileRequest(file_id=file_id, resume_token=token), metadata=person.auth, timeout=20
        )
        assert [message.WhichOneof("event") async for message in call] == ["done"]
        assert any(key == STREAM_ENDED_HEADER for key, _ in await call.initial_metadata()) is ended


async def test_a_watch_ends_with_the_deletion_of_its_file_and_with_its_server(world: FileWorld) -> None:
    person = world.person()
    deleted, kept = await person.uploaded(), await person.uploaded()
    async with watching(person, deleted) as messages, watching(person, kept) as others:
        await anext(messages)
        await anext(others)
        await person.delete(deleted)
        with raises_status(StatusCode.NOT_FOUND, "FILE_NOT_FOUND"):
            await next_change(messages)
        world.server.stopping.set()
        last = await next_change(others)
        assert last.WhichOneof("event") == "reconnect"
        assert last.resume_token


async def test_watches_are_bounded_and_their_tokens_are_for_one_file_of_one_person(world: FileWorld) -> None:
    person, stranger = world.person(), world.person()
    file_id, other = await person.uploaded(), await person.uploaded()
    async with watching(person, file_id) as messages:
        token = (await anext(messages)).resume_token
    for watcher, watched, tried, status in (
        (person, other, token, (StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")),
        (person, file_id, "forged", (StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")),
        (stranger, file_id, "", (StatusCode.NOT_FOUND, "FILE_NOT_FOUND")),
        (stranger, str(uuid4()), "", (StatusCode.NOT_FOUND, "FILE_NOT_FOUND")),
    ):
        async with watching(watcher, watched, tried) as messages:
            with raises_status(*status):
                await anext(messages)
    calls = [
        person.stub.WatchFile(pb.WatchFileRequest(file_id=file_id), metadata=person.auth, timeout=20) for _ in range(8)
    ]
    firsts = await asyncio.gather(*(call.read() for call in calls), return_exceptions=True)
    assert sum(isinstance(first, AioRpcError) for first in firsts) == 3
    for call in calls:
        call.cancel()


async def test_lists_are_paged_filtered_and_of_the_caller_alone(world: FileWorld) -> None:
    person, stranger = world.person(), world.person()
    made = [(await person.create()).file.id for _ in range(3)]
    note = (await person.create(purpose=file_pb2.FILE_PURPOSE_MESSAGE_ATTACHMENT)).file.id
    await stranger.create()
    await world.becomes(made[1], State.READY)

    async def listed(who: Person = person, **query: object) -> pb.ListFilesResponse:
        return await who.stub.ListFiles(pb.ListFilesRequest(**query), metadata=who.auth)  # type: ignore[arg-type]

    assert [file.id for file in (await listed()).files] == [note, *reversed(made)]
    first = await listed(page_size=3)
    second = await listed(page_size=3, page_token=first.next_page_token)
    assert [file.id for file in (*first.files, *second.files)] == [note, *reversed(made)]
    assert second.next_page_token == ""
    ready = await listed(state=file_pb2.FILE_STATE_READY)
    assert [file.id for file in ready.files] == [made[1]]
    attachments = await listed(purpose=file_pb2.FILE_PURPOSE_MESSAGE_ATTACHMENT)
    assert [file.id for file in attachments.files] == [note]
    await person.delete(made[0])
    assert made[0] not in [file.id for file in (await listed()).files]
    for who, query in ((stranger, {}), (person, {"state": file_pb2.FILE_STATE_READY})):
        with raises_status(StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"):
            await listed(who, page_token=first.next_page_token, **query)
