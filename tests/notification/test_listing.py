"""The list of notifications: each person's own, page by page, and what changes it."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from uuid import UUID, uuid4

import grpc
import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError
from sqlalchemy import insert, select
from storymesh.notification.v1.notification_pb2 import (
    NOTIFICATION_TYPE_STORY_READY,
    NOTIFICATION_TYPE_WELCOME,
    TARGET_TYPE_ACCOUNT,
    TARGET_TYPE_STORY,
)
from storymesh.notification.v1.notification_service_pb2 import ListNotificationsRequest
from uuid_utils.compat import uuid7

from services.notification.model import Kind
from services.notification.model.notifications import ShortText
from services.notification.tables import notifications
from tests.notification.app import App
from tests.statuses import raises_status, violated_fields


async def test_the_newest_comes_first_and_pages_follow_without_gap_or_repeat(app: App) -> None:
    ada = app.person()
    for number in range(5):
        await ada.told(str(number))
    pages, token = [], ""
    for _ in range(3):
        page = await ada.page(2, token)
        pages.append([each.title for each in page.notifications])
        token = page.next_page_token
        await ada.told("meanwhile")
    assert pages == [["4", "3"], ["2", "1"], ["0"]]
    assert token == ""


async def test_nobody_sees_anothers_notifications(app: App) -> None:
    ada, bob = app.person(), app.person()
    await ada.told("for Ada")
    await bob.told("for Bob")
    assert await ada.titles() == ["for Ada"]
    assert await app.person().titles() == []
    assert (await ada.unread(), await app.person().unread()) == (1, 0)


async def test_a_page_token_works_for_nobody_else_and_with_no_other_filter(app: App) -> None:
    ada, bob = app.person(), app.person()
    for title in "abc":
        await ada.told(title)
    token = (await ada.page(1)).next_page_token
    for asked in (
        bob.page(1, token),
        ada.page(1, "made-up"),
        ada.page(1, token[:-2]),
        ada.page(1, token, unread=True),
        ada.page(1, token, kind=NOTIFICATION_TYPE_STORY_READY),
    ):
        with pytest.raises(AioRpcError) as raised:
            await asked
        assert raised.value.code() is StatusCode.INVALID_ARGUMENT
        assert violated_fields(raised.value) == ["page_token"]


@pytest.mark.parametrize("size", [-1, 101])
async def test_a_page_size_out_of_bounds_is_refused(app: App, size: int) -> None:
    with pytest.raises(AioRpcError) as raised:
        await app.person().page(size)
    assert violated_fields(raised.value) == ["page_size"]


async def test_without_a_size_twenty_come(app: App) -> None:
    ada = app.person()
    for number in range(21):
        await ada.told(str(number))
    page = await ada.page()
    assert len(page.notifications) == 20
    assert page.next_page_token


async def test_a_notification_tells_what_it_is_about(app: App) -> None:
    ada, story = app.person(), uuid4()
    before = datetime.now(UTC)
    await ada.told("Ready", "It has been written.", about=story)
    (ready,) = await ada.listed()
    assert (ready.title, ready.body, ready.type) == ("Ready", "It has been written.", NOTIFICATION_TYPE_STORY_READY)
    assert (ready.target.type, ready.target.id, ready.story_id) == (TARGET_TYPE_STORY, str(story), str(story))
    assert ready.create_time == ready.update_time
    assert before <= ready.create_time.ToDatetime(UTC) <= datetime.now(UTC)
    assert not ready.HasField("read_time")
    assert (list(ready.actors), ready.actor_count) == ([], 0)


@pytest.mark.parametrize("length", [300, 301, 5000])
async def test_a_notification_holds_a_short_text_not_a_letter(app: App, length: int) -> None:
    ada = app.person()
    await ada.told("Ready", "x" * length)
    (shown,) = await ada.listed()
    async with app.db.transaction() as tx:
        stored = await tx.scalar(select(notifications.c.body))
    assert shown.body == stored == ("x" * 300 if length == 300 else "x" * 299 + "…")


async def former(app: App, user_id: UUID, story_id: UUID | None) -> None:
    """Insert a notification as the former version does, which goes on to run beside a migrated database."""
    async with app.db.transaction() as tx:
        await tx.execute(
            insert(notifications).values(
                id=uuid7(),
                user_id=user_id,
                type="STORY_READY" if story_id else "WELCOME",
                title="A title",
                body="Hello Ada,\n\nYour account is ready.\n\nAsk for a story.\n\nStorymesh\n",
                story_id=story_id,
                created_at=datetime.now(UTC),
            )
        )


async def test_notifications_of_the_former_version_are_shown_with_a_short_text_and_a_target(app: App) -> None:
    ada, story = app.person(), uuid4()
    await former(app, ada.id, None)
    await former(app, ada.id, story)
    ready, welcome = await ada.listed()
    assert (welcome.body, welcome.target.type, welcome.target.id) == (
        "Your account is ready.",
        TARGET_TYPE_ACCOUNT,
        str(ada.id),
    )
    assert (ready.body, ready.target.type, ready.target.id, ready.story_id) == (
        "Your account is ready.",
        TARGET_TYPE_STORY,
        str(story),
        str(story),
    )
    assert await ada.unread() == 2
    assert (await ada.read(ready.id)).unread_count == 1


async def test_the_filters_leave_out_what_is_read_and_what_is_of_another_type(app: App) -> None:
    ada = app.person()
    await ada.told("hello", kind=Kind.WELCOME)
    for number in range(3):
        await ada.told(str(number))
    await ada.read((await ada.listed())[0].id)
    unread = await ada.page(unread=True)
    assert [each.title for each in unread.notifications] == ["1", "0", "hello"]
    welcome = await ada.page(kind=NOTIFICATION_TYPE_WELCOME)
    assert [each.title for each in welcome.notifications] == ["hello"]
    first = await ada.page(1, unread=True, kind=NOTIFICATION_TYPE_STORY_READY)
    second = await ada.page(1, first.next_page_token, unread=True, kind=NOTIFICATION_TYPE_STORY_READY)
    assert [each.title for page in (first, second) for each in page.notifications] == ["1", "0"]
    assert second.next_page_token == ""
    assert {page.unread_count for page in (unread, welcome, first, second)} == {3}


async def test_reading_takes_one_from_the_count_once(app: App) -> None:
    ada = app.person()
    await ada.told("a")
    await ada.told("b")
    newest, _ = await ada.listed()
    read = await ada.read(newest.id)
    assert read.notification.HasField("read_time")
    assert (read.unread_count, await ada.unread()) == (1, 1)
    again = await ada.read(newest.id)
    assert again == read
    assert (await ada.listed())[0] == read.notification


async def test_all_are_read_at_once_and_what_comes_later_is_not(app: App) -> None:
    ada, bob = app.person(), app.person()
    for each in (ada, ada, ada, bob):
        await each.told()
    assert await ada.read_all() == 3
    assert await ada.read_all() == 0
    await ada.told()
    assert (await ada.unread(), await bob.unread()) == (1, 1)


async def test_a_deleted_notification_is_gone_and_counts_no_more(app: App) -> None:
    ada = app.person()
    await ada.told("kept")
    await ada.told("gone")
    gone, _ = await ada.listed()
    assert await ada.delete(gone.id) == 1
    assert await ada.titles() == ["kept"]
    for again in (ada.delete, ada.read):
        with raises_status(StatusCode.NOT_FOUND, "NOTIFICATION_NOT_FOUND"):
            await again(gone.id)


async def test_anothers_notification_looks_like_one_that_does_not_exist(app: App) -> None:
    ada, bob = app.person(), app.person()
    await ada.told()
    (notification,) = await ada.listed()
    for notification_id in (notification.id, str(uuid7())):
        for call in (bob.delete, bob.read):
            with raises_status(StatusCode.NOT_FOUND, "NOTIFICATION_NOT_FOUND"):
                await call(notification_id)
    assert await ada.listed() == [notification]
    assert await app.changes(bob) == []


async def test_whatever_happens_at_once_the_count_is_that_of_the_list_and_the_numbers_have_no_gap(app: App) -> None:
    ada = app.person()
    for _ in range(6):
        await ada.told()
    ids = [each.id for each in await ada.listed()]
    await asyncio.gather(
        *(ada.told() for _ in range(6)),
        *(ada.read(each) for each in ids[:4]),
        ada.read_all(),
        *(ada.read(each) for each in ids[:4]),
        *(ada.delete(each) for each in ids[4:]),
        return_exceptions=True,
    )
    changes = await app.changes(ada)
    assert [each["number"] for each in changes] == list(range(1, len(changes) + 1))
    unread = sum(not each.HasField("read_time") for each in await ada.listed())
    assert changes[-1]["unread"] == await ada.unread() == unread


async def test_nobody_is_served_without_a_token(app: App) -> None:
    with raises_status(StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"):
        await app.stub.ListNotifications(ListNotificationsRequest())


@pytest.mark.parametrize("notification_id", ["", "x", "1"])
async def test_an_id_that_is_none_is_refused_by_its_field(app: App, notification_id: str) -> None:
    ada = app.person()
    for call in (ada.read, ada.delete):
        with pytest.raises(grpc.aio.AioRpcError) as raised:
            await call(notification_id)
        assert violated_fields(raised.value) == ["notification_id"]


def test_a_text_of_exactly_the_bound_is_not_cut() -> None:
    assert ShortText("t", "é" * 300).cut().body == "é" * 300
