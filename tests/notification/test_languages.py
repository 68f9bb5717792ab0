"""Languages and time zones: whatever a person is told is in theirs, generated over the table of notices and the languages."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast
from uuid import uuid4

import pytest
from storymesh.events.v1 import auth_events_pb2 as events

from services.notification.model import Kind
from services.notification.model.acting import worded
from services.notification.model.deliveries import Channel
from services.notification.model.letters import Brand, Letters, languages
from services.notification.model.letters.moments import Moments
from services.notification.model.letters.samples import NOW, samples
from services.notification.model.letters.writing import TEMPLATES
from services.notification.model.local_time import zone_names
from services.notification.model.notices import NOTICES, NOTICES_OF, Notice
from services.notification.model.preferences import Timing
from tests.notification.conftest import (
    ADDRESS_SEAL_PURPOSE,
    SEAL,
    SEAL_PURPOSE,
    MailWorld,
    event,
    story_completed,
)
from tests.notification.every_notice import IN_APP, KINDS, event_of
from tests.notification.people import START, STORY, People, welcome
from tests.notification.test_digest_links import text_of

LETTERS = Letters(Brand(), public_url="https://stories.example")
OTHERS = [language for language in languages() if language != "en"]


@pytest.fixture
def people(world: MailWorld) -> People:
    return People(world)


@pytest.mark.parametrize("language", OTHERS)
@pytest.mark.parametrize("sample", [each[1] for each in samples()])
def test_every_short_text_is_written_in_every_language_and_says_something_in_it(sample: str, language: str) -> None:
    kind, facts = next((kind, facts) for kind, name, facts, _ in samples() if name == sample)
    english, other = (LETTERS.short(kind, facts, now=NOW, language=each) for each in ("en", language))
    assert (english.language, other.language) == ("en", language)
    assert english.title
    assert other.title
    assert english.body
    assert other.body
    # Nothing was left untranslated.
    assert english.title != other.title
    assert english.body != other.body


def test_every_language_of_letters_has_words_for_the_actors_of_a_notification() -> None:
    assert worded() == set(languages())


@pytest.mark.parametrize("kind", sorted(NOTICES))
def test_a_short_text_that_a_language_lacks_is_wholly_in_the_default_language(kind: str, tmp_path: Path) -> None:
    templates = tmp_path / "templates"
    shutil.copytree(TEMPLATES, templates)
    (templates / "de" / f"{kind.lower()}.jinja").unlink()
    facts = next(facts for each, _, facts, _ in samples() if each == kind)
    lacking = Letters(Brand(), public_url="https://stories.example", templates=templates)
    assert lacking.short(kind, facts, now=NOW, language="de") == LETTERS.short(kind, facts, now=NOW, language="en")


@pytest.mark.parametrize("language", languages())
async def test_all_notices_inside_the_application_are_in_the_persons_language(people: People, language: str) -> None:
    user = people.world.accounts.add()
    await people.prefer(user, language=language)
    await people.tell(*(event_of(kind, user, now=START) for kind in IN_APP))
    notes = await people.world.notifications()
    assert {row["type"] for row in notes} == set(IN_APP)
    assert {row["language"] for row in notes} == {language}


@pytest.mark.parametrize("language", languages())
async def test_all_mails_to_an_account_are_in_its_owners_language_codes_included(people: People, language: str) -> None:
    user = people.world.accounts.add()
    await people.prefer(user, language=language)
    # With an account its preferences go. Whoever registers has none yet, but the event of this test names an account.
    told = [event_of(kind, user, now=START) for kind in KINDS if kind != Kind.ACCOUNT_DELETED]
    await people.tell(*told)
    mails = people.world.mailbox.mails()
    assert len(mails) == len(told)
    assert {str(mail["Content-Language"]) for mail in mails} == {language}


def code_for(reader: str, purpose: events.CodePurpose.ValueType, expire_time: datetime) -> events.CodeIssued:
    mail = events.CodeMail(email="ada@example.com", code="123456", user_id=reader)
    issued = events.CodeIssued(
        challenge_id=str(uuid4()), purpose=purpose, sealed_mail=SEAL.seal(SEAL_PURPOSE, mail.SerializeToString())
    )
    issued.expire_time.FromDatetime(expire_time)
    return issued


async def test_times_in_mails_are_those_of_the_persons_clock_with_the_zone_named_in_their_language(
    people: People,
) -> None:
    user = people.world.accounts.add()
    await people.prefer(user, language="de", time_zone="America/New_York")
    device = events.DeviceMail(device_name="Firefox")
    device.sign_in_time.FromDatetime(datetime(2026, 7, 1, 3, 5, tzinfo=UTC))
    purpose = events.DeviceMail.DESCRIPTOR.full_name
    signed_in = events.NewDeviceSignedIn(
        user_id=str(user), sealed_device=SEAL.seal(purpose, device.SerializeToString())
    )
    await people.tell(event(signed_in))
    code = code_for(str(user), events.CODE_PURPOSE_SIGN_IN, START + timedelta(minutes=10))
    await people.tell(event(code))
    device_mail, code_mail = map(text_of, people.world.mailbox.mails())
    assert "am 30. Juni 2026, 23:05 (Nordamerikanische Ostküsten-Sommerzeit) angemeldet" in device_mail
    assert "in den nächsten 10 Minuten: bis 06:40 (Nordamerikanische Ostküsten-Sommerzeit)." in code_mail


async def test_a_mail_to_an_address_that_nobody_has_proven_does_not_tell_where_the_person_lives(
    people: People,
) -> None:
    user = people.world.accounts.add()
    await people.prefer(user, language="de", time_zone="America/New_York")
    await people.tell(event(code_for(str(user), events.CODE_PURPOSE_EMAIL_CHANGE, START + timedelta(minutes=10))))
    (mail,) = people.world.mailbox.mails()
    assert "bis 10:40 (UTC)." in text_of(mail)


@pytest.mark.parametrize("reader", ["", "x", "01a22a71-6117-736c-a959-a93cc718312e"])
async def test_a_code_for_nobody_who_has_preferences_goes_out_in_utc(people: People, reader: str) -> None:
    await people.tell(event(code_for(reader, events.CODE_PURPOSE_SIGN_IN, START + timedelta(minutes=10))))
    (mail,) = people.world.mailbox.mails()
    assert "for the next 10 minutes: until 10:40 (UTC)." in text_of(mail)
    assert {row["user_id"] for row in (await people.world.records()).values()} == {None}


@pytest.mark.parametrize("zone", ["Mars/Olympus", "", "US/Pacific-New", "../../etc/passwd", "localtime"])
async def test_a_zone_that_is_unknown_by_now_is_utc_and_the_mail_says_so(people: People, zone: str) -> None:
    user = people.world.accounts.add()
    await people.prefer(user, time_zone=zone)
    await people.tell(event(code_for(str(user), events.CODE_PURPOSE_SIGN_IN, START + timedelta(minutes=10))))
    (mail,) = people.world.mailbox.mails()
    assert "until 10:40 (UTC)." in text_of(mail)


@pytest.mark.parametrize(
    ("zone", "language", "time", "expected"),
    [
        ("Europe/Berlin", "en", "2026-10-25T00:30", "25 October 2026, 02:30 (Central European Summer Time)"),
        ("Europe/Berlin", "en", "2026-10-25T01:30", "25 October 2026, 02:30 (Central European Standard Time)"),
        ("Europe/Berlin", "de", "2026-03-29T01:00", "29. März 2026, 03:00 (Mitteleuropäische Sommerzeit)"),
        ("Asia/Kolkata", "en", "2026-12-31T18:30", "1 January 2027, 00:00 (India Standard Time)"),
        ("Etc/GMT+5", "de", "2026-01-01T04:00", "31. Dezember 2025, 23:00 (GMT-05:00)"),
        ("UTC", "de", "2026-01-01T04:00", "1. Januar 2026, 04:00 (UTC)"),
        ("UTC", "xx", "2026-01-01T04:00", "1 January 2026, 04:00 (UTC)"),
    ],
)
def test_a_moment_is_written_as_the_zones_clocks_show_it(zone: str, language: str, time: str, expected: str) -> None:
    at = datetime.fromisoformat(time).replace(tzinfo=UTC)
    assert Moments(zone, language, NOW).moment(at) == expected


def test_a_time_of_another_day_of_the_reader_comes_with_the_day() -> None:
    late = datetime(2026, 7, 1, 21, 55, tzinfo=UTC)
    after = late + timedelta(minutes=10)
    assert Moments("Europe/Berlin", "en", late).clock(after) == "2 July 2026, 00:05 (Central European Summer Time)"
    assert Moments("UTC", "en", late).clock(after) == "22:05 (UTC)"


@pytest.mark.parametrize("language", languages())
def test_every_zone_that_people_may_choose_has_a_name(language: str) -> None:
    for zone in zone_names():
        name = Moments(zone, language, NOW).clock(NOW).partition("(")[2]
        assert name.endswith(")"), zone
        assert len(name) > 3, zone


async def test_a_mail_and_a_digest_name_who_did_it_in_the_persons_language(
    people: People, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a row of the test: the story's id stands for an actor, and its title for the name."""
    row = Notice(
        kind=Kind.STORY_READY,
        event="StoryCompleted",
        person="owner_id",
        actor=("story_id", "title"),
        grouped=True,
        channels=frozenset({Channel.IN_APP, Channel.EMAIL}),
    )
    monkeypatch.setitem(cast("dict[str, tuple[Notice, ...]]", NOTICES_OF), "StoryCompleted", (row,))
    at_once, daily = people.world.accounts.add("bob@example.com"), people.world.accounts.add()
    await people.prefer(at_once, language="de")
    await people.prefer(daily, language="de", choices={STORY: Timing.DAILY, ("WELCOME", Channel.EMAIL): Timing.DAILY})
    await people.tell(story_completed(at_once, "Ada"))
    assert people.subjects() == ["Ada Deine Geschichte ist fertig: Ada"]
    for name in ("Bob", "Eve", "Dan"):
        await people.tell(story_completed(daily, name))
    await people.tell(welcome(daily))
    people.at(datetime(2026, 7, 2, 8, tzinfo=UTC))
    await people.settle()
    digest = text_of(people.world.mailbox.mails()[1])
    assert "- Dan und 2 andere Deine Geschichte ist fertig: Dan" in digest
    assert digest.count("\n- ") == 2


async def test_an_event_without_a_reader_from_the_version_before_is_mailed_as_it_was(people: People) -> None:
    mail = events.AddressMail(email="ada@example.com", first_name="Ada")
    deleted = events.AccountDeleted(sealed_mail=SEAL.seal(ADDRESS_SEAL_PURPOSE, mail.SerializeToString()))
    await people.tell(event(deleted))
    assert people.subjects() == ["Your Storymesh account was deleted"]
