"""Grouped notifications: one for many people who did the same. No notice groups yet, so these tests bring their own."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import cast
from uuid import UUID, uuid4

import pytest
from grpc import StatusCode
from sqlalchemy import func, select
from storymesh.notification.v1 import notification_pb2

from kit.events import erasure
from kit.runtime.clock import system_clock
from services.notification.model import Kind
from services.notification.model.acting import acting
from services.notification.model.deliveries import Channel
from services.notification.model.letters import Brand, Letters
from services.notification.model.notices import NOTICES, NOTICES_OF, Notice
from services.notification.model.notifications import Actor
from services.notification.operations.erasing import Erasing
from services.notification.operations.pruning import Pruning
from services.notification.tables import notification_actors, notifications
from tests.notification.app import App, Person
from tests.notification.conftest import MailWorld, story_completed
from tests.statuses import raises_status

ADA, BOB, EVE, DAN = (Actor(uuid4(), name) for name in ("Ada", "Bob", "Eve", "Dan"))


async def liked(person: Person, actor: Actor, about: UUID) -> None:
    await person.told("liked your story", about=about, actor=actor, grouped=True)


async def erase(app: App, user_id: UUID, batch: int = 1000) -> None:
    await Erasing(app.db, batch=batch).erase(user_id)


@pytest.mark.parametrize(
    ("names", "count", "english", "german"),
    [
        (["Ada"], 1, "Ada", "Ada"),
        (["Ada", "Bob"], 2, "Ada and Bob", "Ada und Bob"),
        (["Ada", "Bob", "Eve"], 3, "Ada and 2 others", "Ada und 2 andere"),
        (["Ada", "Bob", "Eve"], 13, "Ada and 12 others", "Ada und 12 andere"),
        (["\u200b", "Bob"], 2, "Somebody and Bob", "Jemand und Bob"),
        (["{}", "{0}"], 2, "{} and {0}", "{} und {0}"),
        (["x" * 41], 1, "x" * 39 + "…", "x" * 39 + "…"),
        (["see www.evil.example"], 1, "see …", "see …"),
    ],
)
def test_actors_are_named_in_the_words_of_the_language(names: list[str], count: int, english: str, german: str) -> None:
    assert [acting(names, count, language) for language in ("en", "de", "", "fr")] == [
        english,
        german,
        english,
        english,
    ]


async def test_actors_are_named_in_the_language_of_the_text_also_after_one_of_them_is_erased(app: App) -> None:
    person, story = app.person(), uuid4()
    for actor in (ADA, BOB, EVE, DAN):
        await person.told("mögen deine Geschichte", about=story, actor=actor, grouped=True, language="de")
    assert await person.titles() == ["Dan und 3 andere mögen deine Geschichte"]
    await erase(app, BOB.id)
    assert await person.titles() == ["Dan und 2 andere mögen deine Geschichte"]
    # The person reads English from now on: the whole line changes with the next occurrence, and never half of it.
    await person.told("like your story", about=story, actor=ADA, grouped=True, language="en")
    assert await person.titles() == ["Ada and 2 others like your story"]


async def test_what_many_people_do_to_one_thing_is_one_notification_with_the_latest_first(app: App) -> None:
    person, story = app.person(), uuid4()
    for actor in (ADA, BOB, EVE, DAN):
        await liked(person, actor, story)
    (shown,) = await person.listed()
    assert shown.title == "Dan and 3 others liked your story"
    assert [(each.id, each.name) for each in shown.actors] == [(str(a.id), a.name) for a in (DAN, EVE, BOB)]
    assert shown.actor_count == 4
    assert shown.update_time.ToDatetime() > shown.create_time.ToDatetime()
    assert await person.unread() == 1


async def test_whoever_does_it_again_is_counted_once_and_named_first(app: App) -> None:
    person, story = app.person(), uuid4()
    for actor in (ADA, BOB, EVE, DAN, Actor(ADA.id, "Ada Lovelace"), DAN):
        await liked(person, actor, story)
    (shown,) = await person.listed()
    assert (shown.actor_count, [each.name for each in shown.actors]) == (4, ["Dan", "Ada Lovelace", "Eve"])


async def test_another_thing_and_another_person_have_a_notification_of_their_own(app: App) -> None:
    person, other, story = app.person(), app.person(), uuid4()
    await liked(person, ADA, story)
    await liked(person, BOB, uuid4())
    await liked(other, EVE, story)
    await person.told("asked about your story", about=story, actor=DAN)
    assert await person.titles() == ["Dan asked about your story", "Bob liked your story", "Ada liked your story"]
    assert await other.titles() == ["Eve liked your story"]


async def test_what_happens_after_the_notification_was_read_or_deleted_is_a_new_one(app: App) -> None:
    person, story = app.person(), uuid4()
    await liked(person, ADA, story)
    await person.read((await person.listed())[0].id)
    await liked(person, BOB, story)
    assert await person.titles() == ["Bob liked your story", "Ada liked your story"]
    await person.delete((await person.listed())[0].id)
    await liked(person, EVE, story)
    await person.read_all()
    await liked(person, BOB, story)
    assert await person.titles() == ["Bob liked your story", "Eve liked your story", "Ada liked your story"]
    assert await person.unread() == 1


async def test_a_grouped_notification_comes_to_the_top_again_on_every_page(app: App) -> None:
    person, story = app.person(), uuid4()
    await liked(person, ADA, story)
    for number in range(3):
        await person.told(str(number))
    await liked(person, BOB, story)
    first = await person.page(2)
    second = await person.page(2, first.next_page_token)
    assert [[each.title for each in page.notifications] for page in (first, second)] == [
        ["Bob and Ada liked your story", "2"],
        ["1", "0"],
    ]
    assert second.next_page_token == ""


async def test_watchers_are_told_of_the_group_by_one_change_each_time(app: App) -> None:
    person, story = app.person(), uuid4()
    async with person.watching() as watcher:
        await watcher.step()
        await liked(person, ADA, story)
        assert (await watcher.change(), watcher.titles) == ("added", {"Ada liked your story"})
        await liked(person, BOB, story)
        assert (await watcher.change(), watcher.titles) == ("updated", {"Bob and Ada liked your story"})
        assert (watcher.unread, [*watcher.shown.values()]) == (1, await person.listed())


async def test_a_crowd_at_once_makes_one_notification_that_counts_each(app: App) -> None:
    person, story = app.person(), uuid4()
    crowd = [Actor(uuid4(), f"Person {number}") for number in range(30)]
    await asyncio.gather(*(liked(person, actor, story) for actor in crowd * 2))
    (shown,) = await person.listed()
    assert (shown.actor_count, len(shown.actors)) == (30, 3)
    assert shown.title.endswith(" and 29 others liked your story")
    assert [each["number"] for each in await app.changes(person)] == list(range(1, 61))


async def test_a_group_without_actors_only_comes_up_again(app: App) -> None:
    person, story = app.person(), uuid4()
    await person.told("was read for the first time", about=story, grouped=True)
    await person.told("was read again", about=story, grouped=True)
    (shown,) = await person.listed()
    assert (shown.title, shown.actor_count, list(shown.actors)) == ("was read again", 0, [])


async def test_an_erased_actor_disappears_from_the_notifications_of_others(app: App) -> None:
    person, story, another = app.person(), uuid4(), uuid4()
    for actor in (ADA, BOB, EVE, DAN):
        await liked(person, actor, story)
    await liked(person, DAN, another)
    await person.told("kept")
    async with person.watching((await person.page()).resume_token) as watcher:
        await erase(app, DAN.id, batch=1)
        assert {await watcher.change(), await watcher.change()} == {"updated", "deleted"}
        assert watcher.titles == {"Eve and 2 others liked your story"}
    assert await person.titles() == ["kept", "Eve and 2 others liked your story"]
    (_, shown) = await person.listed()
    assert [each.name for each in shown.actors] == ["Eve", "Bob", "Ada"]
    async with app.db.transaction() as tx:
        stored = str((await tx.execute(select(notification_actors))).all())
        stored += str((await tx.execute(select(notifications))).all())
    assert str(DAN.id) not in stored
    assert "Dan" not in stored


async def test_an_act_of_an_erased_person_that_is_told_late_is_told_to_nobody(app: App) -> None:
    person, story = app.person(), uuid4()
    await erase(app, DAN.id)
    await liked(person, DAN, story)
    assert await person.listed() == []


async def test_acts_and_their_erasure_at_once_leave_nothing_of_the_actor(app: App) -> None:
    people, story = [app.person() for _ in range(5)], uuid4()
    await asyncio.gather(
        *(liked(each, actor, story) for each in people for actor in (ADA, DAN)),
        erase(app, DAN.id, batch=2),
        *(liked(each, DAN, story) for each in people),
    )
    for each in people:
        assert await each.titles() == ["Ada liked your story"]
        numbers = [change["number"] for change in await app.changes(each)]
        assert numbers == list(range(1, len(numbers) + 1))


async def test_an_erased_person_keeps_nothing_and_their_erased_admirers_hinder_nobody(app: App) -> None:
    person, other, story = app.person(), app.person(), uuid4()
    for each in (person, other):
        await liked(each, ADA, story)
        await each.told()
    async with app.db.transaction() as tx:
        await erasure.erase(tx, person.id)
    await erase(app, ADA.id)
    await erase(app, person.id, batch=1)
    for table in ("notifications", "notification_changes", "notification_heads"):
        assert await rows(app, table) == {other.id}
    async with app.db.transaction() as tx:
        assert await tx.scalar(select(func.count()).select_from(notification_actors)) == 0


async def test_an_erased_person_whose_token_still_holds_changes_nothing(app: App) -> None:
    person = app.person()
    await person.told()
    (notification,) = await person.listed()
    async with app.db.transaction() as tx:
        await erasure.erase(tx, person.id)
    for call in (person.read, person.delete):
        with raises_status(StatusCode.NOT_FOUND, "NOTIFICATION_NOT_FOUND"):
            await call(notification.id)
    assert await person.read_all() == 0
    await erase(app, person.id)
    assert (await person.read_all(), await person.listed(), await person.unread()) == (0, [], 0)
    for table in ("notifications", "notification_changes", "notification_heads"):
        assert await rows(app, table) == set()


async def rows(app: App, table: str) -> set[UUID]:
    """The people who have rows in the table."""
    column = notifications.metadata.tables[table].c.user_id
    async with app.db.transaction() as tx:
        return set((await tx.execute(select(column))).scalars())


async def test_a_notification_is_kept_for_as_long_as_is_set_after_it_happened_last(app: App) -> None:
    person, other, story = app.person(), app.person(), uuid4()
    begun = system_clock()
    app.clock.now = begun - timedelta(days=10)
    await liked(person, ADA, story)
    for each in (person, person, other):
        await each.told("old")
    app.clock.now = begun - timedelta(days=8)
    await liked(person, BOB, story)
    app.clock.now = None
    await person.told("new")
    pruning = Pruning(
        app.db,
        lambda: begun,
        notifications_kept=timedelta(days=9),
        changes_kept=timedelta(days=30),
        batch=2,
    )
    async with person.watching() as watcher, other.watching() as others:
        await watcher.step()
        await others.step()
        while await pruning.prune():
            pass
        assert (await watcher.change(), watcher.unread) == ("expired", 2)
        assert watcher.last.expired.before_time.ToDatetime() == (begun - timedelta(days=9)).replace(tzinfo=None)
        assert (await others.change(), others.unread) == ("expired", 0)
    assert await person.titles() == ["new", "Bob and Ada liked your story"]
    assert await other.titles() == []
    assert not await pruning.prune()


async def test_an_expired_notification_of_an_erased_person_is_pruned_without_a_word(app: App) -> None:
    """A word would be written after the erasure; keeping it would let one broken erasure hold back all pruning."""
    person, other = app.person(), app.person()
    for each in (person, other):
        await each.told()
    async with app.db.transaction() as tx:
        await erasure.erase(tx, person.id)
    now = system_clock() + timedelta(days=2)
    pruning = Pruning(
        app.db, lambda: now, notifications_kept=timedelta(days=1), changes_kept=timedelta(days=9), batch=1
    )
    while await pruning.prune():
        pass
    assert await rows(app, "notifications") == set()
    assert [len(await app.changes(each)) for each in (person, other)] == [1, 2]


async def test_an_event_of_a_notice_that_groups_is_grouped_once_however_often_it_comes(
    world: MailWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the table of notices, by a row of the test: the story's id stands for an actor, and its title for the name."""
    row = Notice(
        kind=Kind.STORY_READY,
        event="StoryCompleted",
        person="owner_id",
        actor=("story_id", "title"),
        grouped=True,
        channels=frozenset({Channel.IN_APP}),
    )
    monkeypatch.setitem(cast("dict[str, tuple[Notice, ...]]", NOTICES_OF), "StoryCompleted", (row,))
    user = uuid4()
    acts = [story_completed(user, name) for name in ("Ada", "Bob", "Eve")]
    await world.handle(*acts)
    await world.handle(*acts)
    (stored,) = await world.notifications()
    assert stored["actor_count"] == 3
    assert {each["name"] for each in stored["actors"]} == {"Ada", "Bob", "Eve"}
    assert (stored["target_type"], stored["target_id"]) == ("ACCOUNT", user)
    assert [await world.steps(act, "IN_APP") for act in acts] == [["ADDED", "DEDUPLICATED"]] * 3 or [
        await world.steps(act, "IN_APP") for act in acts
    ] == [["ADDED"]] * 3


@pytest.mark.parametrize("kind", sorted(kind for kind, row in NOTICES.items() if Channel.IN_APP in row.channels))
def test_whatever_is_told_inside_the_application_has_a_short_text_and_a_name_in_the_contract(kind: str) -> None:
    facts = {"title": "The Lighthouse", "reason": "CONTENT_REFUSED", "reset": True, "description": "The lamp"}
    text = Letters(Brand(), public_url="https://stories.example").short(kind, facts, now=datetime.now(UTC))
    assert 0 < len(text.title) <= 150
    assert 0 < len(text.body) <= 300
    assert "\n" not in text.title + text.body
    assert f"NOTIFICATION_TYPE_{kind}" in notification_pb2.NotificationType.keys()  # noqa: SIM118  # not a mapping
