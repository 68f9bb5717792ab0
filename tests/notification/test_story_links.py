"""Mails about finished stories: they lead to the story's page as long as there is one."""

from __future__ import annotations

import re
from email.message import EmailMessage
from uuid import uuid4

import pytest
from sqlalchemy import select
from storymesh.events.v1 import story_events_pb2

from services.notification.tables import deliveries, delivery_steps, notifications
from tests.notification.conftest import MailWorld, event, story_completed
from tests.waiting import until

URL = re.compile(r"https?://[^\s<>\"]+")


def urls(mail: EmailMessage) -> set[str]:
    """The addresses in all parts of the mail."""
    parts = [part.get_content() for part in mail.walk() if part.get_content_maintype() == "text"]
    return {url for part in parts for url in URL.findall(part)}


async def test_a_mail_about_a_finished_story_leads_to_its_page_under_the_public_url(world: MailWorld) -> None:
    owner, story_id = world.accounts.add(), uuid4()
    await world.handle(story_completed(owner, story_id=story_id))
    mail = await world.mailbox.one()
    page = f"https://stories.example{world.stories.path(story_id)}"
    assert page in urls(mail)
    assert not [url for url in urls(mail) if "/v1/stories" in url]


async def test_a_repeated_mail_holds_the_same_link(world: MailWorld) -> None:
    owner, story_id = world.accounts.add(), uuid4()
    await world.handle(story_completed(owner, story_id=story_id), story_completed(owner, story_id=story_id))
    first, second = world.mailbox.mails()
    assert urls(first) == urls(second)


async def test_a_mail_holds_no_link_that_its_reader_has_taken_back(world: MailWorld) -> None:
    owner, story_id = world.accounts.add(), uuid4()
    world.stories.revoked.add(story_id)
    await world.handle(story_completed(owner, title="The Lighthouse", story_id=story_id))
    mail = await world.mailbox.one()
    assert mail["Subject"] == "Your story is ready: The Lighthouse"
    assert not [url for url in urls(mail) if "/s/" in url or "/v1/stories" in url]


async def test_no_mail_announces_a_story_that_was_deleted_before_it_could_go(world: MailWorld) -> None:
    owner, story_id = world.accounts.add(), uuid4()
    world.stories.deleted.add(story_id)
    completed = story_completed(owner, story_id=story_id)
    await world.handle(completed)
    assert world.mailbox.mails() == []
    row = (await world.records())[completed.id]
    assert (row["state"], row["reason"]) == ("SUPPRESSED", "STORY_GONE")


async def test_a_mail_waits_for_the_story_service_and_the_notice_inside_the_application_does_not(
    world: MailWorld,
) -> None:
    owner = world.accounts.add()
    completed = story_completed(owner)
    world.story_address, address = "127.0.0.1:1", world.story_address
    async with world.working():
        await world.send(completed)

        async def deferred() -> bool:
            return [row["reason"] for row in await world.unfinished()] == ["STORY_UNAVAILABLE"]

        await until(deferred)
        assert len(await world.notifications()) == 1
    world.story_address = address
    async with world.working():
        await world.mailbox.one()


async def test_a_notice_of_a_failed_story_asks_for_no_link(world: MailWorld) -> None:
    world.story_address = "127.0.0.1:1"
    failed = story_events_pb2.StoryFailed(
        story_id=str(uuid4()), owner_id=str(world.accounts.add()), reason="WRITER_UNAVAILABLE"
    )
    await world.handle(event(failed))
    assert "/s/" not in str(urls(await world.mailbox.one()))


async def test_the_link_is_neither_stored_nor_logged(world: MailWorld, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG")
    owner, story_id = world.accounts.add(), uuid4()
    await world.handle(story_completed(owner, story_id=story_id))
    await world.mailbox.one()
    async with world.db.transaction() as tx:
        rows = [(await tx.execute(select(table))).all() for table in (deliveries, delivery_steps, notifications)]
    assert all(rows)
    secret = world.stories.path(story_id).removeprefix("/s/")
    assert secret not in str(rows)
    assert secret not in "".join(str(record.__dict__) for record in caplog.records)
