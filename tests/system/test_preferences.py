"""Notification preferences through the edge, and the links by which mails let people unsubscribe."""

from __future__ import annotations

from email.message import Message
from urllib.parse import urlsplit

import httpx2

from local.harness import RunningMesh
from tests.system.conftest import mails_to
from tests.system.doors import Door
from tests.system.members import Member, signed_up
from tests.waiting import until

STORIES = {"kind": "STORY_READY", "channel": "NOTIFICATION_CHANNEL_EMAIL"}
WELCOME = {"kind": "WELCOME", "channel": "NOTIFICATION_CHANNEL_EMAIL"}


async def timing(member: Member, which: dict[str, str]) -> str:
    choices = (await member.must("GetNotificationPreferences"))["preferences"]["choices"]
    (found,) = [str(each["timing"]) for each in choices if each.items() >= which.items()]
    return found.removeprefix("NOTIFICATION_TIMING_")


async def test_preferences_are_changed_field_by_field_and_refused_with_the_field(mesh: RunningMesh, door: Door) -> None:
    member, other = await signed_up(door, mesh), await signed_up(door, mesh)
    quiet = {"start": "22:00", "end": "07:00"}
    chosen = {**STORIES, "timing": "NOTIFICATION_TIMING_WEEKLY"}
    await member.must("UpdateNotificationPreferences", time_zone="Europe/Berlin", quiet_hours=quiet, choices=[chosen])
    changed = (await member.must("UpdateNotificationPreferences", language="de", digest_day="DAY_OF_WEEK_FRIDAY"))[
        "preferences"
    ]
    assert (changed["time_zone"], changed["quiet_hours"], changed["language"]) == ("Europe/Berlin", quiet, "de")
    assert await timing(member, STORIES) == "WEEKLY"
    cleared = (await member.must("UpdateNotificationPreferences", update_mask="quietHours,language"))["preferences"]
    assert ("quiet_hours" in cleared, cleared["language"], cleared["time_zone"]) == (False, "", "Europe/Berlin")
    refused = await member.call("UpdateNotificationPreferences", time_zone="Mars/Olympus", paused=True)
    assert (refused.code, refused.fields) == ("INVALID_ARGUMENT", {"time_zone"})
    assert (await member.must("GetNotificationPreferences"))["preferences"] == cleared
    assert await timing(other, STORIES) == "AT_ONCE"


async def test_one_click_in_a_mail_unsubscribes_without_signing_in(mesh: RunningMesh, both_doors: Door) -> None:
    member = await signed_up(both_doors, mesh)

    def welcomes() -> list[Message]:
        return [mail for mail in mails_to(mesh.mail_dir, member.email) if str(mail["Subject"]).startswith("Welcome")]

    (mail,) = await until(welcomes)
    assert mail["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    url = urlsplit(str(mail["List-Unsubscribe"]).strip("<>"))
    assert member.email not in url.path
    async with httpx2.AsyncClient(base_url=mesh.edge_url) as anybody:
        page = await anybody.get(url.path, params={"utm_source": "mail"})
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert '<form method="post"' in page.text
        assert await timing(member, WELCOME) == "AT_ONCE"
        # As mail programs send it (RFC 8058, 3.1), and as the page's button does.
        for form in ({"List-Unsubscribe": "One-Click"}, {}):
            done = await anybody.post(url.path, data=form)
            assert (done.status_code, done.headers["content-type"]) == (200, "text/html; charset=utf-8")
        multipart = await anybody.post(url.path, files={"List-Unsubscribe": (None, "One-Click")})
        assert multipart.status_code == 200
        broken = await anybody.get(url.path[:-1])
        assert (broken.status_code, broken.headers["content-type"]) == (404, "text/html; charset=utf-8")
        assert (await anybody.post(url.path[:-1], data={"List-Unsubscribe": "One-Click"})).status_code == 404
    assert await timing(member, WELCOME) == "OFF"
    log = mesh.layout.log("envoy").read_text()
    assert url.path.rpartition("/")[2] not in log
