"""The whole way of a mail whose server refuses us, is slow, or cannot write its address."""

from __future__ import annotations

import asyncio

import pytest

from services.notification.model.deliveries import DeliveryState
from tests.notification.conftest import MailWorld, code_issued, story_completed
from tests.notification.smtp_servers import MailServer, listening
from tests.waiting import until

REFUSING_US = [
    "504 5.5.2 <localhost>: Helo command rejected: need fully-qualified hostname",
    "554 5.7.1 <ada@example.com>: Relay access denied",
    "530 5.7.0 Must issue a STARTTLS command first",
    "553 5.7.1 <no-reply@mail.example>: Sender address rejected: not owned by user",
    "550 5.7.1 <client>: Client host rejected: Access denied",
]


@pytest.mark.parametrize("reply", REFUSING_US)
async def test_a_mail_that_is_refused_because_of_us_is_kept_and_sent_once_the_cause_is_mended(
    world: MailWorld, reply: str
) -> None:
    server = MailServer(recipient=reply)
    code, story = code_issued(), story_completed(world.accounts.add())
    async with listening(server):
        world.smtp_port = server.port
        async with world.working():
            await world.send(code, story)
            await until(lambda: server.attempts >= 4)

            async def both_were_refused() -> bool:
                records = await world.records()
                return {records[each.id]["reason"] for each in (code, story)} == {"SENDER_REFUSED"}

            await until(both_were_refused)
            server.recipient = "250 ok"
            await until(world.idle)
    records = await world.records()
    assert {records[each.id]["state"] for each in (code, story)} == {DeliveryState.SENT}
    assert len(server.mails) == 2


async def test_the_worker_introduces_itself_by_the_senders_domain_unless_a_setting_names_another(
    world: MailWorld,
) -> None:
    server = MailServer()
    async with listening(server):
        world.smtp_port = server.port
        await world.handle(code_issued())
    assert server.lines[0] == "EHLO mail.example"


async def test_a_code_waits_for_a_server_that_is_slow_to_take_it_and_comes_once(world: MailWorld) -> None:
    """The server needs longer for the final dot than for all other steps together."""
    world.smtp_seconds, world.smtp_final_reply_seconds = 0.3, 30.0
    answers = asyncio.Event()
    server = MailServer(held=answers)
    code = code_issued()
    async with listening(server):
        world.smtp_port = server.port
        async with world.working():
            await world.send(code)
            await until(lambda: server.mails)
            await asyncio.wait([asyncio.create_task(answers.wait())], timeout=1)
            answers.set()
            await until(world.idle)
    assert (await world.records())[code.id]["state"] == DeliveryState.SENT
    assert len(server.mails) == 1


@pytest.mark.parametrize("address", ["jürgen@example.com", "用户@example.com", "ada@bücher.example"])
async def test_an_international_address_gets_its_mail_where_the_server_offers_smtputf8(
    world: MailWorld, address: str
) -> None:
    server = MailServer()
    story, code = story_completed(world.accounts.add(address)), code_issued(to=address)
    async with listening(server):
        world.smtp_port = server.port
        await world.handle(story, code)
    records = await world.records()
    assert {records[each.id]["state"] for each in (story, code)} == {DeliveryState.SENT}
    assert any("SMTPUTF8" in line for line in server.lines) == (not address.startswith("ada"))


async def test_an_international_address_fails_for_good_and_clearly_where_the_server_does_not(world: MailWorld) -> None:
    server = MailServer(offers=("8BITMIME",))
    code = code_issued(to="jürgen@example.com")
    async with listening(server):
        world.smtp_port = server.port
        await world.handle(code)
    record = (await world.records())[code.id]
    assert (record["state"], record["reason"]) == (DeliveryState.FAILED, "SMTPUTF8_NOT_OFFERED")
    assert server.mails == []


async def test_a_code_that_may_come_late_says_that_only_the_newest_works(world: MailWorld) -> None:
    """Another code, asked for while the mail server was away, replaces it, and may arrive before it."""
    await world.handle(code_issued())
    body = (await world.mailbox.one()).get_body(("plain",))
    assert body is not None
    assert "only the newest works" in " ".join(body.get_content().split())
