"""The list of notifications: each person's own, page by page."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import grpc
import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError
from storymesh.notification.v1.notification_pb2 import NOTIFICATION_TYPE_STORY_READY, NOTIFICATION_TYPE_WELCOME
from storymesh.notification.v1.notification_service_pb2 import ListNotificationsRequest
from storymesh.notification.v1.notification_service_pb2_grpc import NotificationServiceStub
from uuid_utils.compat import uuid7

from kit.data.database import Database
from kit.rpc.resources import Resources
from services.notification import store
from services.notification.__main__ import api as build_api
from services.notification.config import NotificationSettings
from services.notification.model import Kind, Notification
from services.notification.operations import operations
from tests.conftest import empty
from tests.identity import Issuer, bearer
from tests.statuses import raises_status, violated_fields

if TYPE_CHECKING:
    from storymesh.notification.v1.notification_service_pb2_grpc import NotificationServiceAsyncStub

KEY = "bW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW0="


class Api:
    """The API as clients call it."""

    def __init__(self, db: Database, stub: NotificationServiceAsyncStub, issuer: Issuer) -> None:
        self._db = db
        self._stub = stub
        self._issuer = issuer

    async def add(self, user: UUID, title: str, kind: Kind = Kind.STORY_READY) -> Notification:
        note = Notification(
            id=uuid7(),
            user_id=user,
            type=kind,
            title=title,
            body="body",
            story_id=uuid4() if kind is Kind.STORY_READY else None,
            created_at=datetime.now(UTC),
            read_at=None,
        )
        async with self._db.transaction() as tx:
            await store.notifications.insert(tx, note)
        return note

    async def titles(self, user: UUID, size: int = 0, token: str = "") -> tuple[list[str], str]:
        request = ListNotificationsRequest(page_size=size, page_token=token)
        answer = await self._stub.ListNotifications(request, metadata=bearer(self._issuer.token(user)))
        return [each.title for each in answer.notifications], answer.next_page_token

    @property
    def stub(self) -> NotificationServiceAsyncStub:
        return self._stub

    def auth(self, user: UUID) -> tuple[tuple[str, str], ...]:
        return bearer(self._issuer.token(user))


@pytest.fixture
async def api(database_of: Callable[[str], Database], migrated: Callable[[str], str]) -> AsyncIterator[Api]:
    db = database_of("notification")
    await empty(db)
    settings = NotificationSettings(
        listen="127.0.0.1:0", database_url=migrated("notification"), mesh_key=KEY, cursor_key=KEY, drain_seconds=1
    )
    issuer = Issuer()
    async with Resources("notification", settings, db=db, revocations=issuer.revocations) as resources:
        server = build_api(settings, resources, operations(settings, resources))
        running = asyncio.create_task(server.run(issuer.access_tokens(), resources.service_tokens))
        async with grpc.aio.insecure_channel(await server.address) as channel:
            yield Api(db, NotificationServiceStub(channel), issuer)
        server.stopping.set()
        await running


async def test_the_newest_comes_first_and_pages_follow_without_gap_or_repeat(api: Api) -> None:
    ada = uuid4()
    for number in range(5):
        await api.add(ada, str(number))
    first, token = await api.titles(ada, size=2)
    await api.add(ada, "meanwhile")
    second, token = await api.titles(ada, size=2, token=token)
    third, token = await api.titles(ada, size=2, token=token)
    assert (first, second, third, token) == (["4", "3"], ["2", "1"], ["0"], "")


async def test_nobody_sees_anothers_notifications(api: Api) -> None:
    ada, bob = uuid4(), uuid4()
    await api.add(ada, "for Ada")
    await api.add(bob, "for Bob")
    assert await api.titles(ada) == (["for Ada"], "")
    assert await api.titles(uuid4()) == ([], "")


async def test_a_page_token_works_for_nobody_else(api: Api) -> None:
    ada, bob = uuid4(), uuid4()
    for title in "abc":
        await api.add(ada, title)
    _, token = await api.titles(ada, size=1)
    for user, given in ((bob, token), (ada, "made-up"), (ada, token[:-2])):
        with pytest.raises(AioRpcError) as raised:
            await api.titles(user, token=given)
        assert raised.value.code() is StatusCode.INVALID_ARGUMENT
        assert violated_fields(raised.value) == ["page_token"]


@pytest.mark.parametrize("size", [-1, 101])
async def test_a_page_size_out_of_bounds_is_refused(api: Api, size: int) -> None:
    with pytest.raises(AioRpcError) as raised:
        await api.titles(uuid4(), size=size)
    assert violated_fields(raised.value) == ["page_size"]


async def test_without_a_size_twenty_come(api: Api) -> None:
    ada = uuid4()
    for number in range(21):
        await api.add(ada, str(number))
    titles, token = await api.titles(ada)
    assert len(titles) == 20
    assert token


async def test_a_notification_tells_what_it_is_about(api: Api) -> None:
    ada = uuid4()
    welcome = await api.add(ada, "Welcome", Kind.WELCOME)
    ready = await api.add(ada, "Ready", Kind.STORY_READY)
    answer = await api.stub.ListNotifications(ListNotificationsRequest(), metadata=api.auth(ada))
    newest, oldest = answer.notifications
    assert (newest.id, newest.type, newest.story_id) == (
        str(ready.id),
        NOTIFICATION_TYPE_STORY_READY,
        str(ready.story_id),
    )
    assert (oldest.id, oldest.type, oldest.story_id) == (str(welcome.id), NOTIFICATION_TYPE_WELCOME, "")
    assert oldest.create_time.ToDatetime(UTC) == welcome.created_at
    assert not oldest.HasField("read_time")


async def test_nobody_lists_without_a_token(api: Api) -> None:
    with raises_status(StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"):
        await api.stub.ListNotifications(ListNotificationsRequest())
