"""Mails that wait by what their person prefers: quiet hours, throttle, digests; and preferences that change while a mail waits."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import UTC, datetime, time, timedelta
from random import Random
from typing import Any

import grpc
import pytest
from sqlalchemy import func, select

from services.notification import store
from services.notification.model.deliveries import Channel
from services.notification.model.local_time import DailyRange
from services.notification.model.notices import NOTICES
from services.notification.model.preference_changes import ChosenTiming
from services.notification.model.preferences import Timing
from services.notification.operations.digests import Digests
from services.notification.operations.facts import FactReader
from services.notification.operations.preference_gate import PreferenceGate
from services.notification.peers import StoryDirectory
from services.notification.tables import counted_mails, deliveries, digest_items, preferences
from tests.notification.conftest import SEAL, MailWorld, code_issued, story_completed, user_deleted
from tests.notification.keys import ADDRESS_KEY
from tests.notification.people import MAIL, START, STORY, People, password_changed, welcome
from tests.waiting import until


@pytest.fixture
def people(world: MailWorld) -> People:
    return People(world)


QUIET = DailyRange(time(12), time(14))
"""In Berlin that holds START, until 12:00 UTC."""


async def test_a_mail_waits_for_the_end_of_quiet_hours_and_security_does_not(people: People) -> None:
    user = people.world.accounts.add()
    await people.prefer(user, quiet_hours=QUIET, time_zone="Europe/Berlin")
    story = story_completed(user, "The Lighthouse")
    await people.tell(story, password_changed(user))
    assert people.subjects() == ["Your Storymesh password was changed"]
    assert (await people.states(user))["STORY_READY"] == [("QUEUED", "QUIET_HOURS")]
    assert len(await people.world.notifications()) == 2
    people.at(START.replace(hour=11, minute=59))
    await people.settle()
    assert len(people.subjects()) == 1
    people.at(START.replace(hour=12, minute=0))
    await people.settle()
    assert people.subjects()[1:] == ["Your story is ready: The Lighthouse"]
    assert await people.steps(story.id) == [("QUEUED", ""), ("HELD", "QUIET_HOURS"), ("SENT", "")]


async def test_what_is_turned_off_or_paused_is_suppressed_with_its_reason(people: People) -> None:
    user = people.world.accounts.add()
    await people.prefer(user, choices={STORY: Timing.OFF, ("WELCOME", Channel.IN_APP): Timing.OFF})
    story, greeting = story_completed(user), welcome(user)
    await people.tell(story, greeting, password_changed(user))
    await people.prefer(user, paused=True)
    paused = welcome(user)
    await people.tell(paused, password_changed(user))
    assert sorted(people.subjects()) == ["Welcome to Storymesh", *["Your Storymesh password was changed"] * 2]
    assert await people.steps(story.id) == [("QUEUED", ""), ("SUPPRESSED", "TURNED_OFF")]
    assert await people.steps(paused.id) == [("QUEUED", ""), ("SUPPRESSED", "PAUSED")]
    assert await people.steps(greeting.id, "IN_APP") == [("SUPPRESSED", "TURNED_OFF")]
    assert Counter(row["type"] for row in await people.world.notifications()) == {
        "STORY_READY": 1,
        "PASSWORD_CHANGED": 2,
        "WELCOME": 1,
    }


async def test_an_event_that_comes_again_is_not_decided_anew_by_preferences_that_have_changed(people: People) -> None:
    user = people.world.accounts.add()
    greeting = welcome(user)
    await people.tell(greeting)
    await people.prefer(user, choices={("WELCOME", Channel.IN_APP): Timing.OFF, ("WELCOME", MAIL): Timing.OFF})
    await people.tell(greeting)
    assert await people.steps(greeting.id, "IN_APP") == [("ADDED", ""), ("DEDUPLICATED", "")]
    assert await people.steps(greeting.id) == [("QUEUED", ""), ("SENT", ""), ("DEDUPLICATED", "")]


async def test_a_change_holds_at_once_for_mails_that_wait(people: People) -> None:
    """Each person changes something else while a mail waits for the end of quiet hours."""
    names = ("off", "paused", "later", "loud", "digest")
    users = {name: people.world.accounts.add(f"{name}@example.com") for name in names}
    for user in users.values():
        await people.prefer(user, quiet_hours=QUIET, time_zone="Europe/Berlin")
    await people.tell(*(story_completed(user) for user in users.values()))
    assert people.subjects() == []
    await people.change(users["off"], choices=(ChosenTiming("STORY_READY", MAIL, Timing.OFF),))
    await people.change(users["paused"], paused=True)
    await people.change(users["later"], quiet_hours=DailyRange(time(12), time(18)))
    await people.change(users["loud"], quiet_hours=None)
    await people.change(users["digest"], choices=(ChosenTiming("STORY_READY", MAIL, Timing.DAILY),))
    await people.settle()
    states = {name: (await people.states(user))["STORY_READY"][0] for name, user in users.items()}
    assert states == {
        "off": ("SUPPRESSED", "TURNED_OFF"),
        "paused": ("SUPPRESSED", "PAUSED"),
        "later": ("QUEUED", "QUIET_HOURS"),
        "loud": ("SENT", ""),
        "digest": ("QUEUED", "DAILY_DIGEST"),
    }
    people.at(START.replace(hour=16, minute=0))
    await people.settle()
    assert [mail["To"] for mail in people.world.mailbox.mails()] == ["loud@example.com", "later@example.com"]


async def test_more_mails_than_the_limit_wait_for_their_turn_and_security_is_not_counted(people: People) -> None:
    user, other = people.world.accounts.add(), people.world.accounts.add("bob@example.com")
    await people.prefer(user, mails_per_day=2)
    await people.tell(*(password_changed(user) for _ in range(3)))
    await people.tell(*(story_completed(user, str(number)) for number in range(5)), story_completed(other))
    assert len(people.subjects()) == 3 + 2 + 1
    assert Counter((await people.states(user))["STORY_READY"]) == {("SENT", ""): 2, ("QUEUED", "THROTTLED"): 3}
    for days, sent in ((1, 4), (2, 5)):
        people.at(START + timedelta(days=days))
        await people.settle()
        assert (await people.states(user))["STORY_READY"].count(("SENT", "")) == sent


async def test_judgements_at_the_same_moment_do_not_both_take_the_last_place_of_the_limit(people: People) -> None:
    user, db = people.world.accounts.add(), people.world.db
    await people.prefer(user, quiet_hours=QUIET, time_zone="Europe/Berlin")
    await people.tell(*(story_completed(user) for _ in range(12)))
    await people.prefer(user, mails_per_day=1)
    people.at(START + timedelta(hours=2))
    async with grpc.aio.insecure_channel(people.world.story_address) as channel:
        digests = Digests(db, FactReader(SEAL), StoryDirectory(channel), people.clock, key=ADDRESS_KEY)
        gate = PreferenceGate(db, digests, people.clock, throttles=[])
        async with db.single() as tx:
            claimed = await store.deliveries.claim(tx, [MAIL], 12, people.clock.now, timedelta(seconds=60))
        judged = await asyncio.gather(*(gate.judge(each, NOTICES[each.kind]) for each in claimed))
    assert sorted(each.goes_on for each in judged) == [False] * 11 + [True]
    assert Counter((await people.states(user))["STORY_READY"])["QUEUED", "THROTTLED"] == 11


async def test_a_daily_digest_is_one_mail_of_what_waited_and_the_notices_share_its_end(people: People) -> None:
    user = people.world.accounts.add()
    await people.prefer(user, choices={STORY: Timing.DAILY}, digest_time=time(18), time_zone="Europe/Berlin")
    stories = [story_completed(user, title) for title in ("The Lighthouse", "The Owl")]
    await people.tell(stories[0])
    people.at(START + timedelta(hours=2))
    await people.tell(stories[1], welcome(user))
    assert people.subjects() == ["Welcome to Storymesh"]
    people.at(START.replace(hour=16, minute=0))
    await people.settle()
    (digest,) = people.world.mailbox.mails()[1:]
    assert digest["Subject"] == "2 notifications from Storymesh"
    body = digest.get_body(("plain",)).get_content()  # type: ignore[union-attr]
    assert body.index("The Lighthouse") < body.index("The Owl")
    people.at(START.replace(hour=16, minute=1))
    await people.settle()
    assert (await people.states(user))["STORY_READY"] == [("SENT", "DAILY_DIGEST")] * 2
    assert await people.steps(stories[0].id) == [("QUEUED", ""), ("HELD", "DAILY_DIGEST"), ("SENT", "DAILY_DIGEST")]
    people.at(START + timedelta(days=9))
    await people.settle()
    assert len(people.subjects()) == 2


async def test_a_weekly_digest_outlives_the_days_for_which_mails_are_tried(people: People) -> None:
    user = people.world.accounts.add()
    await people.prefer(user, choices={STORY: Timing.WEEKLY}, digest_weekday=1)
    await people.tell(story_completed(user))
    people.at(datetime(2026, 7, 7, 8, tzinfo=UTC))
    await people.settle()
    assert people.subjects() == ["Your story is ready: The Lighthouse"]
    people.at(datetime(2026, 7, 7, 8, 1, tzinfo=UTC))
    await people.settle()
    assert await people.states(user) == {"STORY_READY": [("SENT", "WEEKLY_DIGEST")], "DIGEST": [("SENT", "")]}


async def test_a_digest_is_sent_without_what_is_not_wanted_any_more(people: People) -> None:
    user = people.world.accounts.add()
    await people.prefer(user, choices={STORY: Timing.DAILY, ("WELCOME", MAIL): Timing.DAILY})
    await people.tell(story_completed(user), welcome(user))
    # Not as the API does, which would judge them at once: as a change that comes in the moment of sending.
    await people.prefer(user, choices={STORY: Timing.OFF, ("WELCOME", MAIL): Timing.DAILY})
    people.at(datetime(2026, 7, 2, 8, tzinfo=UTC))
    await people.settle()
    people.at(datetime(2026, 7, 2, 8, 1, tzinfo=UTC))
    await people.settle()
    assert people.subjects() == ["Welcome to Storymesh"]
    assert await people.states(user) == {
        "STORY_READY": [("SUPPRESSED", "TURNED_OFF")],
        "WELCOME": [("SENT", "DAILY_DIGEST")],
        "DIGEST": [("SENT", "")],
    }


async def test_who_leaves_the_digest_gets_its_mails_at_once_and_no_empty_digest(people: People) -> None:
    user = people.world.accounts.add()
    await people.prefer(user, choices={STORY: Timing.DAILY})
    await people.tell(story_completed(user))
    await people.change(user, choices=(ChosenTiming("STORY_READY", MAIL, Timing.AT_ONCE),))
    await people.settle()
    assert people.subjects() == ["Your story is ready: The Lighthouse"]
    people.at(datetime(2026, 7, 2, 8, tzinfo=UTC))
    await people.settle()
    assert len(people.subjects()) == 1
    assert await people.states(user) == {"STORY_READY": [("SENT", "")], "DIGEST": [("SUPPRESSED", "DIGEST_EMPTY")]}


async def test_another_digest_time_moves_what_waits(people: People) -> None:
    user = people.world.accounts.add()
    await people.prefer(user, choices={STORY: Timing.DAILY})
    await people.tell(story_completed(user))
    await people.change(user, digest_time=time(11))
    await people.settle()
    people.at(START.replace(hour=11, minute=0))
    await people.settle()
    assert len(people.subjects()) == 1
    people.at(datetime(2026, 7, 2, 8, tzinfo=UTC))
    await people.settle()
    assert len(people.subjects()) == 1


async def test_a_digest_waits_for_the_end_of_quiet_hours_and_later_notices_for_the_next_one(people: People) -> None:
    user = people.world.accounts.add()
    quiet = DailyRange(time(7), time(9))
    await people.prefer(user, choices={STORY: Timing.DAILY}, quiet_hours=quiet)
    await people.tell(story_completed(user, "First"))
    people.at(datetime(2026, 7, 2, 8, tzinfo=UTC))
    await people.settle()
    await people.tell(story_completed(user, "Second"))
    assert people.subjects() == []
    people.at(datetime(2026, 7, 2, 9, tzinfo=UTC))
    await people.settle()
    assert people.subjects() == ["Your story is ready: First"]
    people.at(datetime(2026, 7, 3, 9, tzinfo=UTC))
    await people.settle()
    assert people.subjects()[1:] == ["Your story is ready: Second"]


async def test_notices_of_a_digest_that_cannot_be_sent_end_as_it_does(people: People) -> None:
    user = people.world.accounts.add()
    await people.prefer(user, choices={STORY: Timing.DAILY})
    await people.tell(story_completed(user))
    people.world.accounts.delete(user)
    people.at(datetime(2026, 7, 2, 8, tzinfo=UTC))
    await people.settle()
    people.at(datetime(2026, 7, 2, 8, 1, tzinfo=UTC))
    await people.settle()
    assert await people.states(user) == {
        "STORY_READY": [("SUPPRESSED", "ACCOUNT_GONE")],
        "DIGEST": [("SUPPRESSED", "ACCOUNT_GONE")],
    }


async def test_a_long_digest_tells_of_fifty_and_counts_the_rest(people: People) -> None:
    user = people.world.accounts.add()
    await people.prefer(user, choices={STORY: Timing.DAILY})
    await people.tell(*(story_completed(user, f"Story {number}") for number in range(53)))
    people.at(datetime(2026, 7, 2, 8, tzinfo=UTC))
    await people.settle()
    (digest,) = people.world.mailbox.mails()
    assert digest["Subject"] == "53 notifications from Storymesh"
    body = digest.get_body(("plain",)).get_content()  # type: ignore[union-attr]
    assert body.count("Story ") == 50
    assert "3 more" in body


async def test_codes_ask_for_no_preferences_and_are_not_held(people: People) -> None:
    await people.tell(code_issued(life=timedelta(days=400)))
    assert people.subjects() == ["Your Storymesh code"]


async def test_an_erasure_removes_what_was_preferred_counted_and_put_into_digests(people: People) -> None:
    gone, other = people.world.accounts.add(), people.world.accounts.add("bob@example.com")
    for user in (gone, other):
        await people.prefer(user, choices={STORY: Timing.DAILY})
        await people.tell(story_completed(user), welcome(user))
    await people.tell(user_deleted(gone))
    async with people.world.db.transaction() as tx:
        for table in (preferences, counted_mails, digest_items, deliveries):
            assert set((await tx.execute(select(table.c.user_id).distinct())).scalars()) == {other}, table.name
    people.at(datetime(2026, 7, 2, 8, tzinfo=UTC))
    await people.settle()
    assert [mail["To"] for mail in people.world.mailbox.mails()[2:]] == ["bob@example.com"]


async def test_what_no_throttle_looks_at_any_more_is_forgotten(people: People) -> None:
    user = people.world.accounts.add()
    for days in range(3):
        people.at(START + timedelta(days=2 * days))
        await people.tell(story_completed(user))
    async with people.world.db.transaction() as tx:
        assert await tx.scalar(select(func.count()).select_from(counted_mails)) == 1


def any_preferences(chance: Random) -> dict[str, Any]:
    timings = [Timing.OFF, Timing.AT_ONCE, Timing.DAILY, Timing.WEEKLY]
    start, end = chance.sample(range(24), 2)
    return {
        "time_zone": chance.choice(["UTC", "Europe/Berlin", "America/New_York", "Australia/Lord_Howe"]),
        "paused": chance.random() < 0.2,
        "paused_until": START + timedelta(days=chance.randrange(4)),
        "quiet_hours": DailyRange(time(start), time(end, 30)) if chance.random() < 0.7 else None,
        "digest_time": time(chance.randrange(24), 15),
        "digest_weekday": chance.randrange(7),
        "mails_per_day": chance.randrange(3),
        "choices": {
            (kind, MAIL): chance.choice(timings) for kind in ("STORY_READY", "WELCOME") if chance.random() < 0.8
        },
    }


async def test_whatever_people_prefer_and_change_each_notice_gets_one_final_decision(people: People) -> None:
    """Over the night in which Berlin's clocks go back, with changes of preferences while mails wait."""
    chance = Random(12)
    people.at(datetime(2026, 10, 24, 12, tzinfo=UTC))
    users = [people.world.accounts.add(f"{number}@example.com") for number in range(8)]
    told = []
    async with people.world.working():
        for _ in range(2):
            for user in users:
                await people.prefer(user, **any_preferences(chance))
            told += [make(user) for user in users for make in (story_completed, welcome, password_changed)]
            await people.world.send(*told[-3 * len(users) :])
            await until(people.nothing_due, seconds=60)
        while waiting := await people.world.unfinished():
            people.at(max(people.clock.now, min(row["due_at"] for row in waiting)))
            await until(people.nothing_due, seconds=60)
    final = {"SENT", "SUPPRESSED"}
    for each in told:
        steps = await people.steps(each.id)
        assert [decision for decision, _ in steps if decision in final] == [steps[-1][0]], steps
        assert steps[-1] == ("SENT", "") or steps[-1][1], steps
        if each.type.endswith("PasswordChanged"):
            assert steps == [("QUEUED", ""), ("SENT", "")]
    rows = [row for row in (await people.world.records()).values() if (row["state"], row["reason"]) == ("SENT", "")]
    assert len(people.world.mailbox.mails()) == len(rows)


async def test_mails_digests_and_notifications_speak_the_language_that_their_person_prefers(people: People) -> None:
    user, other = people.world.accounts.add(), people.world.accounts.add("bob@example.com")
    await people.prefer(user, language="de", choices={STORY: Timing.DAILY})
    await people.tell(password_changed(user), welcome(user), story_completed(user), welcome(other))
    people.at(datetime(2026, 7, 2, 8, tzinfo=UTC))
    await people.settle()
    languages = [(str(mail["To"]), str(mail["Content-Language"])) for mail in people.world.mailbox.mails()]
    assert Counter(languages) == {("ada@example.com", "de"): 3, ("bob@example.com", "en"): 1}
    titles = {row["title"] for row in await people.world.notifications() if row["user_id"] == user}
    assert not titles & {row["title"] for row in await people.world.notifications() if row["user_id"] == other}
