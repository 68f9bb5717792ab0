"""Mail servers that refuse, hang and break off, and workers that die in between: what is sent again, and what never."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from uuid import uuid4

import aiosmtplib
import pytest
from sqlalchemy import text

from kit.events.envelope import Event
from kit.runtime import base64url
from kit.runtime.clock import system_clock
from local.harness import Servers
from services.notification.adapters.smtp import Smtp, TryAgain
from services.notification.model import Letter, MailState, Recipient, Template
from services.notification.operations.mailing import Mailing
from tests.identity import MESH_KEY
from tests.notification.conftest import SEAL_KEY, SENDER, Told, code_issued, story_completed
from tests.notification.smtp_servers import MailServer, listening
from tests.waiting import until


def smtp(server: MailServer, seconds: float = 5.0) -> Smtp:
    return Smtp("127.0.0.1", server.port, username="", password="", start_tls=False, seconds=seconds)


@asynccontextmanager
async def sending(told: Told, server: MailServer) -> AsyncIterator[None]:
    """A worker that sends through the server."""
    async with listening(server):
        told.smtp_port = server.port
        async with told.working():
            yield


async def state(told: Told, event: Event) -> str:
    record = (await told.records()).get(event.id)
    return str(record["state"]) if record else ""


TEMPORARY = {
    "a greeting that says later": MailServer(greeting="421 too busy"),
    "a greeting that says never": MailServer(greeting="554 not from you"),
    "a sender refused for now": MailServer(sender="451 greylisted"),
    "a sender refused for good": MailServer(sender="553 sender not allowed"),
    "a recipient refused for now": MailServer(recipient="450 mailbox busy"),
    "data refused for now": MailServer(data="452 no space"),
    "the mail refused for now": MailServer(taken="451 try again"),
}


@pytest.mark.parametrize("kind", TEMPORARY)
async def test_a_mail_that_no_server_took_is_tried_again_until_one_does(told: Told, kind: str) -> None:
    server = replace(TEMPORARY[kind])
    user = told.accounts.add()
    told.max_failures = 1000
    code, story = code_issued(), story_completed(user)
    async with sending(told, server):
        await told.send(code, story)
        await until(lambda: server.connections >= 6)
        assert await told.dead() == []
        server.greeting, server.sender, server.recipient, server.data, server.taken = MailServer().replies()
        accepted = len(server.mails)
        await until(told.idle)
    assert len(server.mails) - accepted == 2
    assert {await state(told, code), await state(told, story)} == {MailState.SENT}
    assert len(await told.notifications()) == 1


async def test_without_any_mail_server_the_event_waits_for_one(told: Told) -> None:
    server = MailServer()
    async with listening(server):
        told.smtp_port = server.port
    told.max_failures = 2
    code = code_issued()
    await told.handle(code)
    assert await state(told, code) == MailState.WAITING
    (letter,) = await told.dead()
    assert letter["reason"] == "TryAgain after 2 failures"


PERMANENT = {
    "the recipient": MailServer(recipient="550 no such mailbox"),
    "the data": MailServer(data="554 no"),
    "the mail after reading it": MailServer(taken="554 looks like spam"),
}


@pytest.mark.parametrize("kind", PERMANENT)
async def test_a_mail_that_a_server_refuses_for_good_is_suppressed(told: Told, kind: str) -> None:
    server = replace(PERMANENT[kind])
    user = told.accounts.add()
    code, story = code_issued(), story_completed(user)
    async with sending(told, server):
        await told.send(code, story)
        await until(told.idle)
        await told.send(code, story)
        await until(told.idle)
    assert server.connections == 2
    assert {await state(told, code), await state(told, story)} == {MailState.REFUSED}
    assert (await told.records())[code.id]["error"]
    assert await told.dead() == []


async def test_a_connection_cut_after_the_final_dot_sends_a_code_again_under_the_same_id(told: Told) -> None:
    server = MailServer(taken=None)
    code = code_issued()
    told.max_failures = 1000
    async with sending(told, server):
        await told.send(code)
        await until(lambda: len(server.mails) >= 2)
        server.taken = "250 ok"
        await until(told.idle)
    assert await state(told, code) == MailState.SENT
    ids = {line for mail in server.mails for line in mail.split(b"\r\n") if line.startswith(b"Message-ID:")}
    assert ids == {f"Message-ID: <{code.id}@mail.example>".encode()}


ENDINGS = {
    "the connection is cut": MailServer(taken=None),
    "no answer comes in time": MailServer(stalls=True),
    "the answer makes no sense": MailServer(taken="what?"),
}


@pytest.mark.parametrize("kind", ENDINGS)
async def test_what_happened_to_a_storys_mail_is_unknown_and_it_is_not_sent_again(told: Told, kind: str) -> None:
    server = replace(ENDINGS[kind])
    story = story_completed(told.accounts.add())
    told.smtp_seconds = 0.5
    async with sending(told, server):
        await told.send(story)
        await until(told.idle)
        await told.send(story)
        await until(told.idle)
    assert len(server.mails) == 1
    assert await state(told, story) == MailState.UNKNOWN
    assert await told.dead() == []
    assert len(await told.notifications()) == 1


@pytest.mark.parametrize("kind", ["code", "story"])
async def test_after_a_crash_in_mid_sending_a_code_is_sent_again_and_a_storys_mail_is_not(
    told: Told, kind: str
) -> None:
    event = code_issued() if kind == "code" else story_completed(told.accounts.add())
    silent, server = MailServer(stalls=True), MailServer()
    async with listening(silent):
        told.smtp_port = silent.port
        async with told.working(cut_off=True):
            await told.send(event)
            await until(lambda: silent.mails)
    assert await state(told, event) == MailState.SENDING
    async with sending(told, server):
        await until(told.idle)
    if kind == "code":
        (mail,) = server.mails
        assert f"<{event.id}@mail.example>".encode() in mail
        assert await state(told, event) == MailState.SENT
    else:
        assert server.mails == []
        assert await state(told, event) == MailState.UNKNOWN
    assert len(await told.notifications()) == (kind == "story")


@pytest.mark.parametrize("kind", ["code", "story"])
@pytest.mark.parametrize("verb", ["CONNECT", "EHLO", "MAIL", "RCPT"])
async def test_a_mail_that_no_server_has_seen_when_its_worker_is_stopped_is_sent_by_the_next_one(
    told: Told, kind: str, verb: str
) -> None:
    event = code_issued() if kind == "code" else story_completed(told.accounts.add())
    slow, server = MailServer(hesitates_at=verb), MailServer()
    async with listening(slow):
        told.smtp_port = slow.port
        async with told.working(cut_off=True):
            await told.send(event)
            await until(lambda: slow.connections if verb == "CONNECT" else verb in slow.verbs)
    assert (slow.mails, await state(told, event)) == ([], MailState.WAITING)
    async with sending(told, server):
        await until(told.idle)
    assert len(server.mails) == 1
    assert await state(told, event) == MailState.SENT
    assert len(await told.notifications()) == (kind == "story")


async def test_a_mail_that_waits_for_a_slow_server_outlives_the_sigterm_of_its_worker(
    told: Told, servers: Servers, migrated: Callable[[str], str]
) -> None:
    code, slow, server = code_issued(), MailServer(hesitates_at="RCPT"), MailServer()
    async with listening(slow):
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "services.notification", "worker"),
            env={
                "STORYMESH_DATABASE_URL": migrated("notification"),
                "STORYMESH_REDIS_URL": servers.redis_url,
                "STORYMESH_LISTEN": "127.0.0.1:0",
                "STORYMESH_MESH_KEY": base64url.encode(MESH_KEY),
                "STORYMESH_SEAL_KEY": base64url.encode(SEAL_KEY),
                "STORYMESH_SMTP_PORT": str(slow.port),
                "STORYMESH_DRAIN_SECONDS": "0.1",
            },
        )
        await told.send(code)
        await until(lambda: "RCPT" in slow.verbs, 30)
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 30) == 0
    record = (await told.records())[code.id]
    assert (record["state"], record["attempts"]) == (MailState.WAITING, 1)
    async with sending(told, server):
        await until(told.idle)
    assert (len(server.mails), await state(told, code)) == (1, MailState.SENT)


async def test_a_mail_that_was_taken_is_sent_also_when_its_worker_is_stopped_at_leaving(told: Told) -> None:
    story = story_completed(told.accounts.add())
    server = MailServer(hesitates_at="QUIT")
    async with listening(server):
        told.smtp_port = server.port
        async with told.working(cut_off=True):
            await told.send(story)
            await until(lambda: "QUIT" in server.verbs)
    assert await state(told, story) == MailState.SENT


@pytest.mark.parametrize("statement", ["_begin", "_settle"])
async def test_a_worker_that_is_stopped_in_the_middle_of_a_record_finishes_it(told: Told, statement: str) -> None:
    """The database keeps it waiting there."""
    mail, recipient, letter = uuid4(), Recipient("ada@example.com", "Ada"), Letter("subject", "body")
    answers = asyncio.Event()
    async with listening(MailServer(held=answers)) as server:
        mailing = Mailing(told.db, smtp(server), system_clock, sender=SENDER)
        if statement == "_settle":
            sending = asyncio.create_task(mailing.send(mail, Template.STORY_READY, recipient, letter))
            await until(lambda: server.mails)
        async with told.db.transaction() as other:
            await other.execute(text("LOCK TABLE mails IN EXCLUSIVE MODE"))
            if statement == "_begin":
                sending = asyncio.create_task(mailing.send(mail, Template.STORY_READY, recipient, letter))
            answers.set()
            await until(lambda: _someone_waits(told))
            sending.cancel()
            # Long enough for one that gives up; one that does not would wait here for ever.
            await asyncio.wait([sending], timeout=0.2)
        with pytest.raises(asyncio.CancelledError):
            await sending
    record = (await told.records())[mail]
    assert record["state"] == (MailState.WAITING if statement == "_begin" else MailState.SENT)


async def _someone_waits(told: Told) -> bool:
    async with told.db.transaction() as tx:
        query = "SELECT count(*) FROM pg_locks WHERE relation = 'mails'::regclass AND NOT granted"
        return bool(await tx.scalar(text(query)))


async def test_a_stopped_worker_does_not_undo_what_its_peer_made_of_its_mail(told: Told) -> None:
    """It had lost the lease, and the peer could not know how far it was."""
    mail, recipient, letter = uuid4(), Recipient("ada@example.com", "Ada"), Letter("subject", "body")
    async with listening(MailServer(hesitates_at="RCPT")) as slow, listening(MailServer()) as good:
        first, second = (Mailing(told.db, smtp(server), system_clock, sender=SENDER) for server in (slow, good))
        overtaken = asyncio.create_task(first.send(mail, Template.STORY_READY, recipient, letter))
        await until(lambda: "RCPT" in slow.verbs)
        await second.send(mail, Template.STORY_READY, recipient, letter)
        overtaken.cancel()
        with pytest.raises(asyncio.CancelledError):
            await overtaken
    assert (await told.records())[mail]["state"] == MailState.UNKNOWN
    assert good.mails == []


async def test_a_code_that_ended_while_its_worker_died_is_not_sent_again(told: Told) -> None:
    code = code_issued(life=timedelta(seconds=1))
    silent, server = MailServer(stalls=True), MailServer()
    async with listening(silent):
        told.smtp_port = silent.port
        async with told.working(cut_off=True):
            await told.send(code)
            await until(lambda: silent.mails)
    await asyncio.sleep(1)
    async with sending(told, server):
        await until(told.idle)
    assert (server.mails, await state(told, code)) == ([], MailState.EXPIRED)


async def test_the_outcome_of_an_overtaken_attempt_does_not_count(told: Told) -> None:
    """A worker was frozen while it sent a code; its peer has sent it again meanwhile."""
    code = uuid4()
    answers = asyncio.Event()
    recipient, letter = Recipient("ada@example.com", "Ada"), Letter("subject", "body")
    async with listening(MailServer(taken="451 later", held=answers)) as frozen, listening(MailServer()) as good:
        first, second = (Mailing(told.db, smtp(server), system_clock, sender=SENDER) for server in (frozen, good))
        overtaken = asyncio.create_task(first.send(code, Template.CODE, recipient, letter))
        await until(lambda: frozen.mails)
        await second.send(code, Template.CODE, recipient, letter)
        answers.set()
        with pytest.raises(TryAgain):
            await overtaken
    record = (await told.records())[code]
    assert (record["state"], record["attempts"]) == (MailState.SENT, 2)


async def test_a_slow_mail_server_holds_only_its_own_mails_up(told: Told) -> None:
    user = told.accounts.add()
    server = MailServer(stalls=True)
    told.smtp_seconds = 1.0
    async with sending(told, server):
        stories = [story_completed(user) for _ in range(4)]
        began = asyncio.get_running_loop().time()
        await told.send(*stories)
        await until(told.idle)
    assert asyncio.get_running_loop().time() - began < 3
    assert {row["state"] for row in (await told.records()).values()} == {MailState.UNKNOWN}


async def test_each_attempt_is_counted(told: Told) -> None:
    server = MailServer(recipient="450 later")
    code = code_issued()
    told.max_failures = 3
    async with sending(told, server):
        await told.send(code)
        await until(told.dead)
    assert (await told.records())[code.id]["attempts"] == 3


async def test_a_mail_server_is_left_in_order(told: Told) -> None:
    server = MailServer()
    async with sending(told, server):
        await told.send(code_issued())
        await until(told.idle)
    assert server.verbs == ["EHLO", "MAIL", "RCPT", "DATA", "QUIT"]


async def test_whether_the_mail_server_answers_is_asked_politely() -> None:
    async with listening(MailServer()) as server:
        await smtp(server).check()
        assert server.verbs == ["QUIT"]
    with pytest.raises(aiosmtplib.SMTPConnectError):
        await smtp(server).check()
