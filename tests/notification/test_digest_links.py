"""Links in digests: each notice has the one that a mail of its own would have, by one call for all, and none stops the digest."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from email.message import EmailMessage
from uuid import UUID, uuid4, uuid5

import pytest
from sqlalchemy import func, select

from kit.errors import Internal, MeshError, ResourceExhausted, Unavailable, Unimplemented
from services.notification.model.preferences import Timing
from services.notification.tables import deliveries, delivery_steps, digest_items
from tests.notification.conftest import MailWorld, story_completed
from tests.notification.people import MAIL, STORY, People, welcome

DUE = datetime(2026, 7, 2, 8, tzinfo=UTC)
HREF = re.compile(r'href="([^"]+)"')


@pytest.fixture
def people(world: MailWorld) -> People:
    return People(world)


async def waiting_for_digest(people: People, *story_ids: UUID) -> UUID:
    """Somebody for whom news of these stories wait for the digest of the next morning."""
    user = people.world.accounts.add()
    await people.prefer(user, choices={STORY: Timing.DAILY, ("WELCOME", MAIL): Timing.DAILY})
    await people.tell(*(story_completed(user, f"Story {number}", each) for number, each in enumerate(story_ids)))
    return user


async def morning(people: People) -> None:
    people.at(DUE)
    await people.settle()


def text_of(mail: EmailMessage) -> str:
    body = mail.get_body(("plain",))
    assert body
    return str(body.get_content())


def hrefs(mail: EmailMessage) -> list[str]:
    """Where the HTML part leads, without the link that unsubscribes."""
    html = mail.get_body(("html",))
    assert html
    return [each for each in HREF.findall(html.get_content()) if "/v1/unsubscribe/" not in each]


def page(people: People, story_id: UUID) -> str:
    return f"https://stories.example{people.world.stories.path(story_id)}"


async def test_each_notice_has_the_link_that_a_mail_of_its_own_would_have_and_one_call_brings_all(
    people: People,
) -> None:
    first, second, revoked = uuid4(), uuid4(), uuid4()
    people.world.stories.revoked.add(revoked)
    user = await waiting_for_digest(people, first, second, revoked)
    await people.tell(welcome(user))
    await morning(people)
    (digest,) = people.world.mailbox.mails()
    assert sorted(hrefs(digest)) == sorted([page(people, first), page(people, second)])
    lines = [line.strip() for line in text_of(digest).splitlines()]
    for number, story_id in enumerate((first, second)):
        at = lines.index(f"- Your story is ready: Story {number}")
        assert lines[at + 1] == page(people, story_id)
    at = lines.index("- Your story is ready: Story 2")
    assert not lines[at + 1]
    assert people.world.stories.asked == [3]


async def test_two_notices_about_one_story_have_the_same_link(people: People) -> None:
    story_id = uuid4()
    await waiting_for_digest(people, story_id, story_id)
    await morning(people)
    (digest,) = people.world.mailbox.mails()
    assert hrefs(digest) == [page(people, story_id)] * 2
    assert people.world.stories.asked == [1]


async def test_a_story_that_is_gone_is_not_told_of_and_its_notice_says_so(people: People) -> None:
    kept, gone = uuid4(), uuid4()
    people.world.stories.deleted.add(gone)
    user = await waiting_for_digest(people, kept, gone)
    await morning(people)
    (digest,) = people.world.mailbox.mails()
    assert digest["Subject"] == "Your story is ready: Story 0"
    assert hrefs(digest) == [page(people, kept)]
    people.at(DUE + timedelta(minutes=1))
    await people.settle()
    states = await people.states(user)
    assert sorted(states["STORY_READY"]) == [("SENT", "DAILY_DIGEST"), ("SUPPRESSED", "STORY_GONE")]
    assert states["DIGEST"] == [("SENT", "")]
    async with people.world.db.transaction() as tx:
        query = select(delivery_steps.c.decision).where(delivery_steps.c.detail == "STORY_GONE")
        assert list((await tx.execute(query)).scalars()) == ["SUPPRESSED"]
        assert await tx.scalar(select(func.count()).select_from(digest_items)) == 0


async def test_a_digest_of_stories_that_are_all_gone_is_not_sent(people: People) -> None:
    gone = [uuid4() for _ in range(53)]
    people.world.stories.deleted.update(gone)
    user = await waiting_for_digest(people, *gone)
    await morning(people)
    people.at(DUE + timedelta(minutes=1))
    await people.settle()
    assert people.world.mailbox.mails() == []
    assert await people.states(user) == {
        "STORY_READY": [("SUPPRESSED", "STORY_GONE")] * 53,
        "DIGEST": [("SUPPRESSED", "DIGEST_EMPTY")],
    }
    assert people.world.stories.asked == [50, 3]


async def test_a_long_digest_costs_one_call_and_is_small_enough_to_be_shown_whole(people: People) -> None:
    """Gmail cuts off what is longer than 102 KB."""
    await waiting_for_digest(people, *(uuid4() for _ in range(53)))
    await morning(people)
    (raw,), (digest,) = people.world.mailbox.raw(), people.world.mailbox.mails()
    assert len(hrefs(digest)) == 50
    assert people.world.stories.asked == [50]
    assert len(raw) < 100_000


@pytest.mark.parametrize("error", [Internal(), Unimplemented()])
async def test_a_digest_goes_without_links_when_they_cannot_be_made(people: People, error: MeshError) -> None:
    await waiting_for_digest(people, uuid4(), uuid4())
    people.world.stories.error = error
    await morning(people)
    (digest,) = people.world.mailbox.mails()
    assert digest["Subject"] == "2 notifications from Storymesh"
    assert hrefs(digest) == []


@pytest.mark.parametrize("error", [Unavailable(), ResourceExhausted()])
async def test_a_digest_waits_for_the_story_service_as_a_mail_of_its_own_does(people: People, error: MeshError) -> None:
    story_id = uuid4()
    await waiting_for_digest(people, story_id)
    people.world.stories.error = error
    people.world.pause = lambda _attempts, _life: timedelta(minutes=1)
    await morning(people)
    assert people.world.mailbox.mails() == []
    assert "STORY_UNAVAILABLE" in [row["reason"] for row in await people.world.unfinished()]
    people.world.stories.error = None
    people.at(DUE + timedelta(minutes=2))
    await people.settle()
    (digest,) = people.world.mailbox.mails()
    assert hrefs(digest) == [page(people, story_id)]


async def test_the_links_of_a_digest_are_not_stored(people: People) -> None:
    story_id = uuid4()
    await waiting_for_digest(people, story_id)
    await morning(people)
    async with people.world.db.transaction() as tx:
        rows = [(await tx.execute(select(table))).all() for table in (deliveries, delivery_steps)]
    assert people.world.stories.path(story_id).removeprefix("/s/") not in str(rows)


async def test_who_knows_a_person_cannot_name_the_mail_of_their_digest(people: People) -> None:
    """A report of returned mail is believed about the mail that it names."""
    user = await waiting_for_digest(people, uuid4())
    await morning(people)
    (digest,) = people.world.mailbox.mails()
    assert digest["Message-ID"].partition("@")[0] != f"<{uuid5(user, DUE.isoformat())}"
