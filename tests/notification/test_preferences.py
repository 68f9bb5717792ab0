"""Preferences through the service's door: each person's own, changed field by field, and gone with the person."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any
from uuid import uuid4

import pytest
from grpc import StatusCode
from sqlalchemy import func, select
from storymesh.notification.v1 import preference_service_pb2 as pb

from kit.data.database import Database
from services.notification.operations.erasing import Erasing
from services.notification.tables import preferences
from tests.conftest import empty
from tests.identity import bearer
from tests.notification.preference_api import (
    DAILY,
    OFF,
    UNTOUCHED,
    Api,
    choice,
    serving_preferences,
    settings_of,
    timings,
)
from tests.statuses import raises_status

if TYPE_CHECKING:
    pass


@pytest.fixture
async def api(database_of: Callable[[str], Database], migrated: Callable[[str], str]) -> AsyncIterator[Api]:
    db = database_of("notification")
    await empty(db)
    async with serving_preferences(db, migrated("notification")) as api:
        yield api


async def test_who_has_chosen_nothing_reads_the_defaults(api: Api) -> None:
    found = await api.read(uuid4())
    assert settings_of(found) == UNTOUCHED
    assert timings(found) == {"EMAIL": "AT_ONCE", "IN_APP": "AT_ONCE", "WEBHOOK": "AT_ONCE"}
    assert {"de", "en"} <= set(found["languages"])
    assert {each["chosen"] for each in found["choices"]} == {False}


async def test_security_is_listed_and_cannot_be_changed(api: Api) -> None:
    ada = uuid4()
    fixed = {each["kind"] for each in (await api.read(ada))["choices"] if not each["changeable"]}
    assert {"PASSWORD_CHANGED", "CODE"} <= fixed
    assert not fixed & {"STORY_READY", "WELCOME"}
    for kind in fixed:
        assert await api.refused(ada, choices=[choice(OFF, kind)]) == [("choices[0].kind", "KIND_NOT_CHANGEABLE")]


async def test_a_change_touches_what_is_given_and_nobody_elses_preferences(api: Api) -> None:
    ada, bob = uuid4(), uuid4()
    quiet = {"start": "22:00", "end": "07:00"}
    await api.change(ada, time_zone="Europe/Berlin", quiet_hours=quiet)
    await api.change(ada, language="de", digest_time="18:30", digest_day="DAY_OF_WEEK_SUNDAY", mails_per_day=5)
    changed = await api.change(ada, choices=[choice(DAILY)])
    assert changed == await api.read(ada)
    assert settings_of(changed) == UNTOUCHED | {
        "time_zone": "Europe/Berlin",
        "quiet_hours": quiet,
        "language": "de",
        "digest_time": "18:30",
        "digest_day": "DAY_OF_WEEK_SUNDAY",
        "mails_per_day": 5,
    }
    assert timings(changed) == {"EMAIL": "DAILY", "IN_APP": "AT_ONCE", "WEBHOOK": "AT_ONCE"}
    assert [each["kind"] for each in changed["choices"] if each["chosen"]] == ["STORY_READY"]
    assert settings_of(await api.read(bob)) == UNTOUCHED


async def test_a_field_that_the_mask_names_and_nobody_gives_goes_back_to_its_default(api: Api) -> None:
    ada = uuid4()
    given: dict[str, Any] = {
        "language": "de",
        "time_zone": "Europe/Berlin",
        "paused": True,
        "pause_end_time": "2030-01-01T00:00:00Z",
        "quiet_hours": {"start": "22:00", "end": "07:00"},
        "digest_time": "18:30",
        "digest_day": "DAY_OF_WEEK_SUNDAY",
        "mails_per_day": 5,
        "choices": [choice(OFF)],
    }
    await api.change(ada, **given)
    mask = ",".join(given).replace("_e", "E").replace("_z", "Z").replace("_t", "T").replace("_h", "H")
    mask = mask.replace("_d", "D").replace("_p", "P").replace("mailsPer_day", "mailsPerDay")
    back = await api.change(ada, update_mask=mask)
    assert settings_of(back) == UNTOUCHED
    assert timings(back)["EMAIL"] == "AT_ONCE"


async def test_a_field_outside_of_the_mask_does_not_change(api: Api) -> None:
    ada = uuid4()
    changed = await api.change(ada, language="de", mails_per_day=5, update_mask="mailsPerDay")
    assert (changed["language"], changed["mails_per_day"]) == ("", 5)


async def test_choices_are_changed_one_by_one_and_taken_back(api: Api) -> None:
    ada = uuid4()
    await api.change(ada, choices=[choice(DAILY), choice(OFF, "WELCOME")])
    changed = await api.change(ada, choices=[choice(OFF, channel="IN_APP"), choice()])
    assert timings(changed) == {"EMAIL": "AT_ONCE", "IN_APP": "OFF", "WEBHOOK": "AT_ONCE"}
    assert timings(changed, "WELCOME") == {"EMAIL": "OFF", "IN_APP": "AT_ONCE", "WEBHOOK": "AT_ONCE"}


async def test_two_devices_that_choose_at_once_do_not_undo_each_others_choices(api: Api) -> None:
    ada = uuid4()
    kinds = [(kind, channel) for kind in ("STORY_READY", "WELCOME") for channel in ("EMAIL", "IN_APP", "WEBHOOK")]
    await asyncio.gather(*(api.change(ada, choices=[choice(OFF, *each)]) for each in kinds))
    found = await api.read(ada)
    assert [timings(found, kind)[channel] for kind, channel in kinds] == ["OFF"] * len(kinds)


async def test_a_new_pause_does_not_inherit_the_end_of_a_former_one(api: Api) -> None:
    ada = uuid4()
    paused = await api.change(ada, paused=True, pause_end_time="2030-01-01T00:00:00Z")
    assert paused["pause_end_time"] == "2030-01-01T00:00:00Z"
    later = await api.change(ada, pause_end_time="2031-01-01T00:00:00Z")
    assert (later["paused"], later["pause_end_time"]) == (True, "2031-01-01T00:00:00Z")
    assert "pause_end_time" not in await api.change(ada, paused=True)
    ended = await api.change(ada, paused=False)
    assert (ended["paused"], "pause_end_time" in ended) == (False, False)


@pytest.mark.parametrize(
    ("fields", "violations"),
    [
        ({"language": "tlh"}, [("language", "LANGUAGE_UNSUPPORTED")]),
        ({"time_zone": "Europe/Atlantis"}, [("time_zone", "TIME_ZONE_UNKNOWN")]),
        ({"time_zone": "europe/berlin"}, [("time_zone", "TIME_ZONE_UNKNOWN")]),
        ({"time_zone": "../../etc/localtime"}, [("time_zone", "TIME_ZONE_UNKNOWN")]),
        ({"time_zone": "localtime"}, [("time_zone", "TIME_ZONE_UNKNOWN")]),
        ({"time_zone": ""}, [("time_zone", "STRING_MIN_LEN")]),
        ({"quiet_hours": {"start": "24:00", "end": "07:00"}}, [("quiet_hours.start", "STRING_PATTERN")]),
        ({"quiet_hours": {"start": "22:00"}}, [("quiet_hours.end", "STRING_PATTERN")]),
        ({"quiet_hours": {"start": "22:00", "end": "22:00"}}, [("quiet_hours", "QUIET_HOURS_DIFFER")]),
        ({"digest_time": "8:00"}, [("digest_time", "STRING_PATTERN")]),
        ({"digest_day": 8}, [("digest_day", "ENUM_DEFINED_ONLY")]),
        ({"mails_per_day": -1}, [("mails_per_day", "INT32_GTE_LTE")]),
        ({"mails_per_day": 1001}, [("mails_per_day", "INT32_GTE_LTE")]),
        ({"pause_end_time": "2030-01-01T00:00:00Z"}, [("pause_end_time", "PAUSE_INCOMPLETE")]),
        ({"paused": False, "pause_end_time": "2030-01-01T00:00:00Z"}, [("pause_end_time", "PAUSE_INCOMPLETE")]),
        ({"choices": [choice(OFF, "NO_SUCH_KIND")]}, [("choices[0]", "KIND_UNKNOWN")]),
        ({"choices": [choice(OFF), choice(DAILY)]}, [("choices[0]", "CHOSEN_TWICE"), ("choices[1]", "CHOSEN_TWICE")]),
        ({"choices": [choice(DAILY, channel="IN_APP")]}, [("choices[0].timing", "TIMING_NOT_OFFERED")]),
        ({"choices": [choice(OFF, channel="UNSPECIFIED")]}, [("choices[0].channel", "ENUM_NOT_IN")]),
        ({"choices": [choice(OFF, "lower")]}, [("choices[0].kind", "STRING_PATTERN")]),
        ({"choices": [choice(OFF)] * 201}, [("choices", "REPEATED_MAX_ITEMS")]),
        ({"choices": [choice(OFF, "NO_SUCH_KIND")] * 200}, [(f"choices[{n}]", "KIND_UNKNOWN") for n in range(20)]),
        ({"update_mask": "userId,language"}, [("update_mask", "FIELD_UNKNOWN")]),
        ({"update_mask": "choices.kind"}, [("update_mask", "FIELD_UNKNOWN")]),
    ],
)
async def test_what_makes_no_sense_is_refused_whole_with_the_field(
    api: Api, fields: dict[str, Any], violations: list[tuple[str, str]]
) -> None:
    ada = uuid4()
    assert await api.refused(ada, **{"language": "de", **fields}) == violations
    assert settings_of(await api.read(ada)) == UNTOUCHED


async def test_a_time_that_no_calendar_has_is_refused(api: Api) -> None:
    request = pb.UpdateNotificationPreferencesRequest(paused=True)
    request.pause_end_time.seconds = 10**15
    with raises_status(StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"):
        await api.stub.UpdateNotificationPreferences(request, metadata=bearer(api.issuer.token(uuid4())))


async def test_nobody_reads_or_changes_preferences_without_a_token(api: Api) -> None:
    with raises_status(StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"):
        await api.stub.GetNotificationPreferences(pb.GetNotificationPreferencesRequest())
    with raises_status(StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"):
        await api.stub.UpdateNotificationPreferences(pb.UpdateNotificationPreferencesRequest())


async def test_preferences_go_with_the_person_and_do_not_come_back(api: Api) -> None:
    ada, bob = uuid4(), uuid4()
    for user in (ada, bob):
        await api.change(user, language="de")
    await Erasing(api.db).erase(ada)
    with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
        await api.change(ada, language="de")
    async with api.db.transaction() as tx:
        assert await tx.scalar(select(func.count()).select_from(preferences)) == 1
    assert (await api.read(bob))["language"] == "de"
