"""One-click unsubscription (RFC 8058): links in mails that ask nobody to sign in, name no address, and stop what they say."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
from google.api.httpbody_pb2 import HttpBody
from grpc import StatusCode
from storymesh.notification.v1 import preference_service_pb2 as pb

from kit.data.database import Database
from services.notification.model.deliveries import Channel
from services.notification.model.preferences import Timing
from services.notification.model.unsubscribing import Subscription, UnsubscribeLinks
from services.notification.operations.erasing import Erasing
from tests.notification.conftest import MailWorld, code_issued, email_changed, story_completed
from tests.notification.keys import UNSUBSCRIBE_KEY
from tests.notification.people import STORY, People, password_changed, welcome
from tests.notification.preference_api import Api, serving_preferences, timings
from tests.statuses import raises_status

if TYPE_CHECKING:
    from email.message import EmailMessage

ONE_CLICK = HttpBody(content_type="application/x-www-form-urlencoded", data=b"List-Unsubscribe=One-Click")
BASE = "https://stories.example/v1/unsubscribe/"


@pytest.fixture
def people(world: MailWorld) -> People:
    return People(world)


@pytest.fixture
async def api(
    database_of: Callable[[str], Database], migrated: Callable[[str], str], people: People
) -> AsyncIterator[Api]:
    async with serving_preferences(database_of("notification"), migrated("notification"), clock=people.clock) as api:
        yield api


def link_of(mail: EmailMessage) -> str:
    assert mail["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    url = str(mail["List-Unsubscribe"])
    assert url.startswith(f"<{BASE}")
    return url.removeprefix(f"<{BASE}").removesuffix(">")


async def question(api: Api, token: str) -> str:
    """The page, as somebody without a token gets it."""
    answer = await api.stub.GetUnsubscribePage(pb.GetUnsubscribePageRequest(token=token))
    assert answer.page.content_type == "text/html; charset=utf-8"
    return answer.page.data.decode()


async def unsubscribe(api: Api, token: str, form: HttpBody = ONE_CLICK) -> str:
    answer = await api.stub.Unsubscribe(pb.UnsubscribeRequest(token=token, form=form))
    return answer.page.data.decode()


async def test_the_link_of_a_mail_stops_mails_of_its_kind_alone(people: People, api: Api) -> None:
    user, other = people.world.accounts.add(), people.world.accounts.add("bob@example.com")
    await people.tell(story_completed(user))
    token = link_of(people.world.mailbox.mails()[0])
    asked = await question(api, token)
    assert '<form method="post"' in asked
    assert timings(await api.read(user))["EMAIL"] == "AT_ONCE"
    done = [await unsubscribe(api, token) for _ in range(2)]
    assert done[0] == done[1]
    assert timings(await api.read(user)) == {"EMAIL": "OFF", "IN_APP": "AT_ONCE", "WEBHOOK": "AT_ONCE"}
    assert await question(api, token) == asked
    await people.tell(story_completed(user), story_completed(other), welcome(user), password_changed(user))
    told = sorted((str(mail["To"]), str(mail["Subject"])) for mail in people.world.mailbox.mails()[1:])
    assert told == [
        ("ada@example.com", "Welcome to Storymesh"),
        ("ada@example.com", "Your Storymesh password was changed"),
        ("bob@example.com", "Your story is ready: The Lighthouse"),
    ]


@pytest.mark.parametrize(
    "form",
    [
        HttpBody(),
        HttpBody(
            content_type="multipart/form-data; boundary=x", data=b"--x\r\n\r\nList-Unsubscribe=One-Click\r\n--x--"
        ),
    ],
)
async def test_whatever_the_form_is_the_link_counts(people: People, api: Api, form: HttpBody) -> None:
    user = people.world.accounts.add()
    await people.tell(welcome(user))
    await unsubscribe(api, link_of(people.world.mailbox.mails()[0]), form)
    assert timings(await api.read(user), "WELCOME")["EMAIL"] == "OFF"


async def test_a_link_names_no_address_and_does_not_end(people: People, api: Api) -> None:
    user = people.world.accounts.add("lovelace@example.com")
    await people.tell(story_completed(user))
    token = link_of(people.world.mailbox.mails()[0])
    assert b"lovelace" not in base64.urlsafe_b64decode(token + "==")
    people.at(datetime(2036, 7, 1, tzinfo=UTC))
    await unsubscribe(api, token)
    assert timings(await api.read(user))["EMAIL"] == "OFF"


async def test_mails_about_security_and_codes_have_no_link(people: People, api: Api) -> None:
    user = people.world.accounts.add()
    await people.tell(password_changed(user), email_changed(user), code_issued())
    mails = people.world.mailbox.mails()
    assert len(mails) == 3
    assert [mail["List-Unsubscribe"] or mail["List-Unsubscribe-Post"] for mail in mails] == [None] * 3
    links = UnsubscribeLinks([base64.urlsafe_b64decode(UNSUBSCRIBE_KEY)])
    forced = links.path(Subscription(user, "PASSWORD_CHANGED")).rpartition("/")[2]
    await unsubscribe(api, forced)
    await people.tell(password_changed(user))
    assert len(people.world.mailbox.mails()) == 4


async def test_a_link_that_is_not_whole_is_refused_and_changes_nothing(people: People, api: Api) -> None:
    user = people.world.accounts.add()
    await people.tell(story_completed(user))
    token = link_of(people.world.mailbox.mails()[0])
    stranger = UnsubscribeLinks([b"x" * 32]).path(Subscription(user, "STORY_READY")).rpartition("/")[2]
    altered = base64.urlsafe_b64decode(token + "==").replace(str(user).encode(), str(uuid4()).encode())
    for bad in (
        token[:-1],
        ("B" if token[0] == "A" else "A") + token[1:],
        stranger,
        base64.urlsafe_b64encode(altered).decode().rstrip("="),
        "x",
        "\N{SNOWMAN}",
    ):
        for call in (question, unsubscribe):
            with raises_status(StatusCode.NOT_FOUND, "UNSUBSCRIBE_LINK_INVALID"):
                await call(api, bad)
    assert timings(await api.read(user))["EMAIL"] == "AT_ONCE"


async def test_a_new_key_before_the_former_one_keeps_links_that_were_sent(people: People, api: Api) -> None:
    former, new = b"f" * 32, b"n" * 32
    subscription = Subscription(UUID(int=1), "STORY_READY")
    token = UnsubscribeLinks([former]).path(subscription).rpartition("/")[2]
    assert UnsubscribeLinks([new, former]).open(token) == subscription
    assert UnsubscribeLinks([new]).open(token) is None
    assert UnsubscribeLinks([new, former]).path(subscription) == UnsubscribeLinks([new]).path(subscription)


async def test_the_link_of_a_digest_stops_what_is_in_digests(people: People, api: Api) -> None:
    user = people.world.accounts.add()
    choices = {STORY: Timing.DAILY, ("WELCOME", Channel.EMAIL): Timing.AT_ONCE}
    await people.prefer(user, choices=choices)
    await people.tell(story_completed(user))
    people.at(datetime(2026, 7, 2, 8, tzinfo=UTC))
    await people.settle()
    await unsubscribe(api, link_of(people.world.mailbox.mails()[0]))
    found = await api.read(user)
    assert (timings(found)["EMAIL"], timings(found, "WELCOME")["EMAIL"]) == ("OFF", "AT_ONCE")


async def test_what_waits_is_suppressed_when_its_person_unsubscribes(people: People, api: Api) -> None:
    user = people.world.accounts.add()
    await people.tell(story_completed(user, "First"))
    await people.prefer(user, mails_per_day=1)
    await people.tell(story_completed(user, "Second"))
    assert (await people.states(user))["STORY_READY"] == [("SENT", ""), ("QUEUED", "THROTTLED")]
    await unsubscribe(api, link_of(people.world.mailbox.mails()[0]))
    await people.settle()
    assert (await people.states(user))["STORY_READY"][1] == ("SUPPRESSED", "TURNED_OFF")


async def test_whoever_was_erased_is_told_the_same_and_leaves_nothing(people: People, api: Api) -> None:
    user, other = people.world.accounts.add(), people.world.accounts.add("bob@example.com")
    await people.tell(story_completed(user), story_completed(other))
    mails = {str(mail["To"]): link_of(mail) for mail in people.world.mailbox.mails()}
    await Erasing(people.world.db).erase(user)
    assert await question(api, mails["ada@example.com"]) == await question(api, mails["bob@example.com"])
    assert await unsubscribe(api, mails["ada@example.com"]) == await unsubscribe(api, mails["bob@example.com"])
    assert timings(await api.read(user))["EMAIL"] == "AT_ONCE"


async def test_the_pages_speak_the_persons_language(people: People, api: Api) -> None:
    user = people.world.accounts.add()
    await people.tell(story_completed(user))
    token = link_of(people.world.mailbox.mails()[0])
    await api.change(user, language="de")
    assert "Abbestellen" in await question(api, token)
    assert 'lang="de"' in await unsubscribe(api, token)
