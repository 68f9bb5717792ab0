"""Watches of notifications: every change once and in order, resumed exactly or said to be lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack
from datetime import timedelta
from uuid import uuid4

import pytest
from google.rpc.error_details_pb2 import RetryInfo
from grpc import StatusCode
from grpc.aio import AioRpcError
from sqlalchemy import delete, event, text
from uuid_utils.compat import uuid7

from kit.data.database import Database
from kit.runtime.clock import system_clock
from local.harness import Servers
from services.notification.operations.pruning import Pruning
from services.notification.tables import notification_changes
from tests.identity import bearer
from tests.notification.app import App, Person, Watcher, serving
from tests.ratelimit.watch_rules import MOST, bounding_watches
from tests.statuses import detail, reason_of, violated_fields
from tests.waiting import until


async def test_a_watch_begins_with_the_count_and_tells_each_change_with_the_count_after_it(app: App) -> None:
    ada = app.person()
    await ada.told("before")
    async with ada.watching() as watcher:
        assert (await watcher.step(), watcher.unread) == ("snapshot", 1)
        await ada.told("first")
        assert (await watcher.change(), watcher.unread, watcher.titles) == ("added", 2, {"first"})
        await ada.told("second")
        assert (await watcher.change(), watcher.unread, watcher.titles) == ("added", 3, {"first", "second"})
        second, first, _ = await ada.listed()
        await ada.read(first.id)
        assert (await watcher.change(), watcher.unread) == ("read", 2)
        assert watcher.shown[first.id] == (await ada.listed())[1]
        await ada.delete(second.id)
        assert (await watcher.change(), watcher.unread, watcher.titles) == ("deleted", 1, {"first"})
        await ada.read_all()
        assert (await watcher.change(), watcher.unread) == ("all_read", 0)
        await ada.read_all()
        await ada.read(first.id)
        await ada.told("third")
        assert (await watcher.change(), watcher.titles) == ("added", {"first", "third"})


async def test_a_watch_with_the_token_of_a_list_continues_the_list(app: App) -> None:
    ada = app.person()
    await ada.told("listed")
    listed = await ada.page()
    await ada.told("after it")
    async with ada.watching(listed.resume_token) as watcher:
        assert (await watcher.step(), watcher.titles, watcher.unread) == ("added", {"after it"}, 2)


async def test_a_resumed_watch_goes_on_right_after_its_token(app: App) -> None:
    ada, tokens = app.person(), []
    async with ada.watching() as watcher:
        for number in range(5):
            await watcher.until("snapshot", "added")
            tokens.append(watcher.last.resume_token)
            await ada.told(str(number))
        await watcher.until("added")
    for number, token in enumerate(tokens):
        async with ada.watching(token) as resumed:
            for _ in range(number, 5):
                await resumed.step()
        assert resumed.seen == ["added"] * (5 - number)
        assert resumed.titles == {str(each) for each in range(number, 5)}


async def test_a_resumed_watch_with_nothing_new_says_at_once_that_it_is_open(app: App) -> None:
    ada = app.person()
    await ada.told()
    token = (await ada.page()).resume_token
    async with serving(app.db, app.database_url, heartbeat_seconds=600) as slow:
        slow.issuer.key = app.issuer.key
        there = slow.person()
        await there.told()
        async with there.watching((await there.page()).resume_token) as watcher:
            assert (await watcher.step(), watcher.unread) == ("heartbeat", 1)
    async with ada.watching(token) as watcher:
        assert (await watcher.step(), watcher.unread) == ("heartbeat", 1)


async def test_a_client_that_reads_one_message_of_each_stream_gets_every_change(app: App) -> None:
    ada = app.person()
    client = Watcher()
    for number in range(8):
        await ada.told(str(number))
        if number % 3 == 2:
            await ada.read((await ada.listed())[1].id)
        for _ in range(3):
            async with ada.watching(client.last.resume_token) as watcher:
                client.messages = watcher.messages
                await client.step()
        if number == 0:
            assert client.seen == ["snapshot", "heartbeat", "heartbeat"]
    assert client.titles == {str(each) for each in range(1, 8)}
    assert client.unread == await ada.unread()
    assert client.changes.count("read") == 2


async def test_every_watcher_of_every_replica_gets_every_change_in_the_same_order(
    app: App, migrated: Callable[[str], str]
) -> None:
    async with serving(app.db, migrated("notification")) as replica, AsyncExitStack() as stack:
        ada = app.person()
        elsewhere = replica.person()
        elsewhere.id = ada.id
        elsewhere.auth = (("authorization", f"Bearer {replica.issuer.token(ada.id)}"),)
        watchers = [
            await stack.enter_async_context(each.watching()) for each in (ada, ada, elsewhere, elsewhere) for _ in "12"
        ]
        for watcher in watchers:
            assert await watcher.step() == "snapshot"
        await asyncio.gather(*(ada.told(str(number)) for number in range(20)))
        await ada.read_all()
        for watcher in watchers:
            await watcher.until("all_read")
        assert {tuple(watcher.changes) for watcher in watchers} == {("snapshot", *["added"] * 20, "all_read")}
        assert len({tuple(watcher.shown) for watcher in watchers}) == 1
        assert watchers[0].titles == {str(number) for number in range(20)}


async def test_a_client_that_comes_back_at_random_has_the_list_of_the_server_in_the_end(app: App) -> None:
    ada, group, other = app.person(), uuid4(), uuid4()
    client = Watcher()
    async with ada.watching() as watcher:
        client.messages = watcher.messages
        await client.step()
    for number in range(30):
        match number % 6:
            case 0 | 1:
                await ada.told(str(number), about=group if number % 2 else other, grouped=True)
            case 2:
                await ada.read((await ada.listed())[0].id)
            case 3:
                await ada.told(str(number))
            case 4:
                await ada.delete((await ada.listed())[-1].id)
            case 5 if number % 4 == 1:
                await ada.read_all()
        if number % 4 == 0:
            async with ada.watching(client.last.resume_token) as watcher:
                client.messages = watcher.messages
                await client.step()
    async with ada.watching(client.last.resume_token) as watcher:
        client.messages = watcher.messages
        await client.until("heartbeat")
    assert "snapshot" not in client.seen[1:]
    listed = await ada.listed()
    assert {each.id: each for each in listed} == client.shown
    assert client.unread == await ada.unread()


async def pruned(app: App, kept: timedelta) -> None:
    pruning = Pruning(app.db, system_clock, notifications_kept=timedelta(days=1), changes_kept=kept, batch=3)
    while await pruning.prune():
        pass


async def test_a_token_older_than_what_is_kept_gets_a_snapshot_and_a_younger_one_the_changes(app: App) -> None:
    ada = app.person()
    old = (await ada.page()).resume_token
    await ada.told("pruned")
    await pruned(app, timedelta(0))
    young = (await ada.page()).resume_token
    await ada.told("kept")
    async with ada.watching(young) as watcher:
        assert (await watcher.step(), watcher.titles) == ("added", {"kept"})
    async with ada.watching(old) as watcher:
        assert (await watcher.step(), watcher.unread) == ("snapshot", 2)
        await ada.told("more")
        assert (await watcher.change(), watcher.titles) == ("added", {"more"})


@pytest.mark.parametrize("missing", [1, 2, 3])
async def test_a_change_that_is_missing_anywhere_after_the_token_is_said(app: App, missing: int) -> None:
    ada = app.person()
    token = (await ada.page()).resume_token
    for number in range(3):
        await ada.told(str(number))
    async with app.db.transaction() as tx:
        await tx.execute(delete(notification_changes).where(notification_changes.c.number == missing))
    async with ada.watching(token) as watcher:
        await watcher.until("snapshot")
        assert watcher.unread == 3
        assert len(watcher.changes) - 1 in (0, missing - 1)


async def test_a_token_of_changes_that_the_database_has_lost_gets_a_snapshot(app: App) -> None:
    """As after a restored backup."""
    ada = app.person()
    await ada.told()
    await ada.told()
    token = (await ada.page()).resume_token
    async with app.db.transaction() as tx:
        await tx.execute(text("UPDATE notification_heads SET number = 1"))
        await tx.execute(delete(notification_changes).where(notification_changes.c.number == 2))
    async with ada.watching(token) as watcher:
        assert await watcher.step() == "snapshot"


async def restore(app: App, number: int) -> None:
    """Leave everybody's changes up to this number, as a backup does that was taken then."""
    async with app.db.transaction() as tx:
        await tx.execute(text("UPDATE notification_heads SET number = :number"), {"number": number})
        await tx.execute(delete(notification_changes).where(notification_changes.c.number > number))


@pytest.mark.parametrize("told_since", [1, 2, 3])
async def test_a_token_from_before_a_restore_gets_a_snapshot_however_much_happened_since(
    app: App, told_since: int
) -> None:
    """The numbers that were lost are given again."""
    ada = app.person()
    for title in ("kept", "lost", "lost too"):
        await ada.told(title)
    token = (await ada.page()).resume_token
    await restore(app, 1)
    for number in range(told_since):
        await ada.told(str(number))
    async with ada.watching(token) as watcher:
        assert (await watcher.step(), watcher.unread) == ("snapshot", 3 + told_since)
        await ada.told("after it")
        assert (await watcher.change(), watcher.titles) == ("added", {"after it"})


async def test_a_token_from_before_a_restore_gets_a_snapshot_beside_a_watch_that_has_seen_what_happened_since(
    app: App,
) -> None:
    ada = app.person()
    for title in ("kept", "lost"):
        await ada.told(title)
    token = (await ada.page()).resume_token
    await restore(app, 1)
    async with ada.watching() as live:
        await live.step()
        for number in range(3):
            await ada.told(str(number))
            await live.change()
        async with ada.watching(token) as watcher:
            assert await watcher.step() == "snapshot"


@pytest.mark.parametrize("told_since", [0, 1, 2])
async def test_a_watch_that_outlives_a_restore_gets_a_snapshot(app: App, told_since: int) -> None:
    ada = app.person()
    async with ada.watching() as watcher:
        await watcher.step()
        for title in ("kept", "lost"):
            await ada.told(title)
            await watcher.change()
        await restore(app, 1)
        for number in range(told_since):
            await ada.told(str(number))
        await app.ops.watches.look()
        assert await watcher.change() == "snapshot"


INSERT_OF_THE_FORMER_VERSION = text("""
    INSERT INTO notifications (id, user_id, type, title, body, story_id, created_at, read_at)
    VALUES (:id, :user, 'WELCOME', :title, 'A letter.', NULL, now(), NULL)
""")


async def told_by_the_former_version(ada: Person, title: str) -> None:
    async with ada.app.db.transaction() as tx:
        await tx.execute(INSERT_OF_THE_FORMER_VERSION, {"id": uuid7(), "user": ada.id, "title": title})


async def test_what_the_former_version_tells_meanwhile_is_watched_too(app: App) -> None:
    ada = app.person()
    token = (await ada.page()).resume_token
    async with ada.watching() as watcher:
        await watcher.step()
        await told_by_the_former_version(ada, "by the former version")
        assert (await watcher.change(), watcher.unread, watcher.titles) == ("added", 1, {"by the former version"})
        await ada.told("by this one")
        assert (await watcher.change(), watcher.unread) == ("added", 2)
    async with ada.watching(token) as resumed:
        assert [await resumed.step(), await resumed.step()] == ["added", "added"]
    assert resumed.shown == watcher.shown


async def test_both_versions_number_what_they_tell_at_once_without_a_gap(app: App) -> None:
    ada = app.person()
    tell = (ada.told, lambda title: told_by_the_former_version(ada, title))
    await asyncio.gather(*(tell[number % 2](str(number)) for number in range(40)))
    changes = await app.changes(ada)
    assert [each["number"] for each in changes] == list(range(1, 41))
    assert sorted(each["unread"] for each in changes) == list(range(1, 41))
    assert len({each["notification_id"] for each in changes}) == 40


async def test_more_changes_than_memory_and_a_page_hold_are_resumed_without_a_gap(app: App) -> None:
    ada = app.person()
    token = (await ada.page()).resume_token
    async with ada.watching() as live:
        await live.step()
        for number in range(230):
            await ada.told(str(number))
        while len(live.shown) < 230:
            await live.step()
    async with ada.watching(token) as watcher:
        while len(watcher.shown) < 230:
            assert await watcher.step() == "added"
    titles = [str(number) for number in range(230)]
    assert [each.title for each in watcher.shown.values()] == [each.title for each in live.shown.values()] == titles


async def test_what_was_deleted_since_is_not_added_first(app: App) -> None:
    ada = app.person()
    token = (await ada.page()).resume_token
    await ada.told("gone")
    (gone,) = await ada.listed()
    await ada.delete(gone.id)
    async with ada.watching(token) as watcher:
        assert (await watcher.step(), watcher.last.deleted.notification_id) == ("deleted", gone.id)


async def test_a_resume_token_of_another_person_or_list_is_refused(app: App) -> None:
    ada, bob = app.person(), app.person()
    for _ in range(2):
        await ada.told()
    page = await ada.page(1)
    for caller, token in (
        (bob, page.resume_token),
        (ada, page.next_page_token),
        (ada, page.resume_token[:-2] + "AA"),
        (ada, "x"),
    ):
        with pytest.raises(AioRpcError) as raised:
            async with caller.watching(token) as watcher:
                await watcher.step()
        assert (raised.value.code(), violated_fields(raised.value)) == (StatusCode.INVALID_ARGUMENT, ["resume_token"])


async def test_silence_is_filled_with_heartbeats_that_resume(app: App) -> None:
    ada = app.person()
    async with ada.watching() as watcher:
        await watcher.until("heartbeat")
        await watcher.until("heartbeat")
    await ada.told("later")
    async with ada.watching(watcher.last.resume_token) as watcher:
        assert (await watcher.step(), watcher.titles) == ("added", {"later"})


async def test_a_leaving_server_tells_its_watchers_to_come_back_and_nothing_is_lost(app: App) -> None:
    ada = app.person()
    async with ada.watching() as watcher:
        await watcher.step()
        app.server.stopping.set()
        farewell = await watcher.until("reconnect")
        assert 0.5 <= farewell.reconnect.after.ToTimedelta().total_seconds() <= 1.5
    await ada.told("meanwhile")
    async with serving(app.db, app.database_url) as replica:
        there = replica.person()
        there.id = ada.id
        there.auth = (("authorization", f"Bearer {replica.issuer.token(ada.id)}"),)
        async with there.watching(farewell.resume_token) as watcher:
            assert (await watcher.step(), watcher.titles) == ("added", {"meanwhile"})


async def test_a_person_has_only_so_many_watches_open_at_all_replicas_together(app: App, servers: Servers) -> None:
    async with (
        bounding_watches(servers) as limiter,
        serving(app.db, app.database_url, ratelimit_target=limiter) as one,
        serving(app.db, app.database_url, ratelimit_target=limiter) as other,
        AsyncExitStack() as stack,
    ):
        ada = one.person()
        elsewhere = Person(other, ada.id, bearer(other.issuer.token(ada.id)))

        async def opens(number: int) -> bool:
            watcher = await stack.enter_async_context((ada, elsewhere)[number % 2].watching())
            try:
                return await watcher.step() == "snapshot"
            except AioRpcError as refused:
                return reason_of(refused) != "TOO_MANY_WATCHES"

        assert sum(await asyncio.gather(*map(opens, range(10)))) == MOST


async def test_whoever_has_too_many_watches_open_is_told_when_to_try_again(app: App) -> None:
    async with (
        serving(app.db, app.database_url, watches=3, watches_per_person=2) as limited,
        AsyncExitStack() as stack,
    ):
        ada, bob, eve = limited.person(), limited.person(), limited.person()
        for each in (ada, ada, bob):
            assert await (await stack.enter_async_context(each.watching())).step() == "snapshot"
        for refused in (ada, eve):
            with pytest.raises(AioRpcError) as raised:
                async with refused.watching() as watcher:
                    await watcher.step()
            assert (raised.value.code(), reason_of(raised.value)) == (
                StatusCode.RESOURCE_EXHAUSTED,
                "TOO_MANY_WATCHES",
            )
            assert detail(raised.value, RetryInfo)
        await stack.aclose()

        async def admitted() -> bool:
            try:
                async with ada.watching() as watcher:
                    return await watcher.step() == "snapshot"
            except AioRpcError:
                return False

        await until(admitted)


async def test_a_hundred_watchers_of_a_person_cost_one_query_for_each_change(
    app: App, migrated: Callable[[str], str]
) -> None:
    served = Database(migrated("notification"), pool=4)
    statements: list[str] = []
    async with (
        serving(served, migrated("notification"), watches_per_person=100, heartbeat_seconds=600) as quiet,
        AsyncExitStack() as stack,
    ):
        ada = quiet.person()
        teller = app.person()
        teller.id = ada.id
        watchers = [await stack.enter_async_context(ada.watching()) for _ in range(100)]
        for watcher in watchers:
            await watcher.step()
        engine = served._engine.sync_engine
        event.listen(engine, "before_cursor_execute", lambda _c, _cur, sql, *_: statements.append(sql))
        for number in range(5):
            await teller.told(str(number))
            for watcher in watchers:
                await watcher.step()
        assert {tuple(watcher.seen) for watcher in watchers} == {("snapshot", *["added"] * 5)}
        # The comparison of numbers, which comes every few seconds, reads no changes.
        assert len([sql for sql in statements if "notification_changes" in sql]) == 5
    await served.close()


async def test_a_watch_survives_the_loss_of_its_connections_to_the_database(
    app: App, migrated: Callable[[str], str]
) -> None:
    ada = app.person()
    async with ada.watching() as watcher:
        await watcher.step()
        cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database()"
        async with app.db.transaction() as tx:
            await tx.execute(text(f"{cut} AND pid <> pg_backend_pid()"))

        async def told() -> bool:
            try:
                await ada.told("after the loss")
            except Exception:
                return False
            return True

        await until(told)
        assert (await watcher.change(), watcher.titles) == ("added", {"after the loss"})


async def changed_without_a_message(app: App, person: Person) -> None:
    """Record the person's first change as if Postgres's message of it were lost."""
    async with app.db.transaction() as tx:
        await tx.execute(
            text(
                "WITH head AS (INSERT INTO notification_heads VALUES (:user, 1) RETURNING number) "
                "INSERT INTO notification_changes (user_id, number, change, unread, occurred_at) "
                "SELECT :user, number, 'ALL_READ', 0, now() FROM head"
            ),
            {"user": person.id},
        )


async def test_a_message_of_postgres_that_was_lost_only_delays_the_change(app: App) -> None:
    ada = app.person()
    async with ada.watching() as watcher:
        await watcher.step()
        await changed_without_a_message(app, ada)
        await app.ops.watches.look()
        assert await watcher.change() == "all_read"


async def test_a_token_that_is_ahead_of_this_replica_is_continued_without_a_snapshot(app: App) -> None:
    ada = app.person()
    async with ada.watching() as behind:
        await behind.step()
        await changed_without_a_message(app, ada)
        async with ada.watching((await ada.page()).resume_token) as watcher:
            assert await watcher.step() == "heartbeat"
