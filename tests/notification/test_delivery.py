"""Mail servers that refuse, hang and cut connections, and workers that crash meanwhile: which mails are sent again."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import timedelta

import aiosmtplib
import pytest
from sqlalchemy import func, text, update

from kit.events.envelope import Event
from kit.runtime import base64url
from kit.runtime.clock import system_clock
from local.harness import Servers
from services.notification.model.deliveries import UNFINISHED, DeliveryState
from services.notification.tables import deliveries
from tests.identity import MESH_KEY
from tests.notification.conftest import MailWorld, code_issued, story_completed
from tests.notification.keys import ADDRESS_KEY, SEAL_KEY, UNSUBSCRIBE_KEY
from tests.notification.smtp_servers import MailServer, listening, smtp
from tests.waiting import until

pytestmark = pytest.mark.slow


@asynccontextmanager
async def sending(world: MailWorld, server: MailServer) -> AsyncIterator[None]:
    """Run a worker that sends through the server."""
    async with listening(server):
        world.smtp_port = server.port
        async with world.working():
            yield


async def state(world: MailWorld, event: Event) -> str:
    record = (await world.records()).get(event.id)
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
async def test_a_mail_that_no_server_took_is_tried_again_until_one_does(world: MailWorld, kind: str) -> None:
    server = replace(TEMPORARY[kind])
    user = world.accounts.add()
    world.max_failures = 1
    code, story = code_issued(), story_completed(user)
    async with sending(world, server):
        await world.send(code, story)
        await until(lambda: server.attempts >= 6)
        assert await world.dead() == []
        server.greeting, server.sender, server.recipient, server.data, server.taken = MailServer().replies()
        accepted = len(server.mails)
        await until(world.idle)
    assert len(server.mails) - accepted == 2
    assert {await state(world, code), await state(world, story)} == {DeliveryState.SENT}
    assert len(await world.notifications()) == 1


async def test_without_any_mail_server_the_mail_waits_for_one(world: MailWorld) -> None:
    server = MailServer()
    async with listening(server):
        world.smtp_port = server.port
    world.max_failures = 1
    code = code_issued()
    async with world.working():
        await world.send(code)
        await until(lambda: attempts(world, code, 4))
        assert (await world.decided(), await world.dead()) == (True, [])
    assert await state(world, code) == DeliveryState.QUEUED
    async with sending(world, server):
        await until(world.idle)
    assert (len(server.mails), await state(world, code)) == (1, DeliveryState.SENT)


async def attempts(world: MailWorld, event: Event, least: int) -> bool:
    record = (await world.records()).get(event.id)
    return record is not None and record["attempts"] >= least


PERMANENT = {
    "the recipient": MailServer(recipient="550 no such mailbox"),
    "the data": MailServer(data="554 no"),
    "the mail after reading it": MailServer(taken="554 looks like spam"),
}


@pytest.mark.parametrize("kind", PERMANENT)
async def test_a_mail_that_a_server_refuses_for_good_has_failed(world: MailWorld, kind: str) -> None:
    server = replace(PERMANENT[kind])
    user = world.accounts.add()
    code, story = code_issued(), story_completed(user)
    async with sending(world, server):
        await world.send(code, story)
        await until(world.idle)
        await world.send(code, story)
        await until(world.idle)
    assert server.attempts == 2
    assert {await state(world, code), await state(world, story)} == {DeliveryState.FAILED}
    assert (await world.records())[code.id]["answer"]
    assert await world.dead() == []


async def test_a_connection_cut_after_the_final_dot_sends_a_code_again_under_the_same_id(world: MailWorld) -> None:
    server = MailServer(taken=None)
    code = code_issued()
    async with sending(world, server):
        await world.send(code)
        await until(lambda: server.mails)
        server.taken = "250 ok"
        await until(world.idle)
    assert (len(server.mails), await state(world, code)) == (2, DeliveryState.SENT)
    queued, deferred, sent = await world.steps(code)
    assert (queued, deferred.split()[:2], sent) == ("QUEUED", ["DEFERRED", "OUTCOME_UNKNOWN"], "SENT")
    ids = {line for mail in server.mails for line in mail.split(b"\r\n") if line.startswith(b"Message-ID:")}
    assert ids == {f"Message-ID: <{code.id}@mail.example>".encode()}


async def test_a_code_whose_outcome_stays_unknown_is_sent_twice_and_no_third_time(world: MailWorld) -> None:
    server = MailServer(taken=None)
    code = code_issued()
    async with sending(world, server):
        await world.send(code)
        await until(world.idle)
    assert (len(server.mails), await state(world, code)) == (2, DeliveryState.UNKNOWN)


ENDINGS = {
    "the connection is cut": MailServer(taken=None),
    "no answer comes in time": MailServer(stalls=True),
    "the answer makes no sense": MailServer(taken="what?"),
}


@pytest.mark.parametrize("kind", ENDINGS)
async def test_what_happened_to_a_storys_mail_is_unknown_and_it_is_not_sent_again(world: MailWorld, kind: str) -> None:
    server = replace(ENDINGS[kind])
    story = story_completed(world.accounts.add())
    world.smtp_seconds = 0.5
    async with sending(world, server):
        await world.send(story)
        await until(world.idle)
        await world.send(story)
        await until(world.idle)
    assert len(server.mails) == 1
    assert await state(world, story) == DeliveryState.UNKNOWN
    assert await world.dead() == []
    assert len(await world.notifications()) == 1


@pytest.mark.parametrize("kind", ["code", "story"])
async def test_after_a_crash_in_mid_sending_a_code_is_sent_again_and_a_storys_mail_is_not(
    world: MailWorld, kind: str
) -> None:
    event = code_issued() if kind == "code" else story_completed(world.accounts.add())
    silent, server = MailServer(stalls=True), MailServer()
    world.lease_seconds = 0.5
    async with listening(silent):
        world.smtp_port = silent.port
        async with world.working(cut_off=True):
            await world.send(event)
            await until(lambda: silent.mails)
    assert await state(world, event) == DeliveryState.SENDING
    async with sending(world, server):
        await until(world.idle)
    if kind == "code":
        (mail,) = server.mails
        assert f"<{event.id}@mail.example>".encode() in mail
        assert await state(world, event) == DeliveryState.SENT
    else:
        assert server.mails == []
        assert await state(world, event) == DeliveryState.UNKNOWN
    assert len(await world.notifications()) == (kind == "story")


@pytest.mark.parametrize("kind", ["code", "story"])
@pytest.mark.parametrize("verb", ["CONNECT", "EHLO", "MAIL", "RCPT"])
async def test_a_mail_that_no_server_has_seen_when_its_worker_is_stopped_is_sent_by_the_next_one(
    world: MailWorld, kind: str, verb: str
) -> None:
    event = code_issued() if kind == "code" else story_completed(world.accounts.add())
    slow, server = MailServer(hesitates_at=verb), MailServer()
    async with listening(slow):
        world.smtp_port = slow.port
        async with world.working(cut_off=True):
            await world.send(event)
            await until(lambda: slow.connections if verb == "CONNECT" else verb in slow.verbs)
    assert (slow.mails, await state(world, event)) == ([], DeliveryState.QUEUED)
    async with sending(world, server):
        await until(world.idle)
    assert len(server.mails) == 1
    assert await state(world, event) == DeliveryState.SENT
    assert len(await world.notifications()) == (kind == "story")


async def test_a_mail_that_waits_for_a_slow_server_outlives_the_sigterm_of_its_worker(
    world: MailWorld, servers: Servers, migrated: Callable[[str], str]
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
                "STORYMESH_ADDRESS_KEY": base64url.encode(ADDRESS_KEY),
                "STORYMESH_UNSUBSCRIBE_KEY": UNSUBSCRIBE_KEY,
                "STORYMESH_SMTP_PORT": str(slow.port),
                "STORYMESH_DRAIN_SECONDS": "0.1",
            },
        )
        await world.send(code)
        await until(lambda: "RCPT" in slow.verbs, 30)
        process.terminate()
        assert await asyncio.wait_for(process.wait(), 30) == 0
    record = (await world.records())[code.id]
    assert (record["state"], record["attempts"]) == (DeliveryState.QUEUED, 1)
    async with sending(world, server):
        await until(world.idle)
    assert (len(server.mails), await state(world, code)) == (1, DeliveryState.SENT)


@pytest.mark.parametrize("step", ["before the handover", "after it"])
async def test_a_worker_that_is_stopped_in_the_middle_of_a_record_finishes_it(world: MailWorld, step: str) -> None:
    """A lock in the database blocks the record there."""
    story = story_completed(world.accounts.add())
    answers = asyncio.Event()
    server = MailServer(held=answers) if step == "after it" else MailServer(hesitates_at="RCPT")
    async with listening(server):
        world.smtp_port = server.port
        async with world.working(cut_off=True):
            await world.send(story)
            await until(lambda: server.mails if step == "after it" else "RCPT" in server.verbs)
            async with world.db.transaction() as other:
                await other.execute(text("LOCK TABLE deliveries IN EXCLUSIVE MODE"))
                answers.set()
                if step == "after it":
                    await until(lambda: _someone_waits(world))
                for task in world.running:
                    task.cancel()
                await until(lambda: _someone_waits(world))
                # Longer than a record that gives up takes; one that waits stays blocked here.
                await asyncio.wait(world.running, timeout=0.2, return_when=asyncio.ALL_COMPLETED)
    assert await state(world, story) == (DeliveryState.SENT if step == "after it" else DeliveryState.QUEUED)


async def _someone_waits(world: MailWorld) -> bool:
    async with world.db.transaction() as tx:
        query = "SELECT count(*) FROM pg_locks WHERE relation = 'deliveries'::regclass AND NOT granted"
        return bool(await tx.scalar(text(query)))


@pytest.mark.parametrize("kind", ["code", "story"])
async def test_a_worker_that_lost_its_lease_does_not_undo_what_its_peer_made_of_its_mail(
    world: MailWorld, kind: str
) -> None:
    """The worker stood still while it was sending, and its peer could not know how far it was."""
    event = code_issued() if kind == "code" else story_completed(world.accounts.add())
    answers = asyncio.Event()
    world.lease_seconds = world.poll_seconds = (
        60  # neither renewed nor claimed again by the first worker during the test
    )
    async with listening(MailServer(held=answers)) as frozen, listening(MailServer()) as good:
        world.smtp_port = frozen.port
        async with world.working():
            await world.send(event)
            await until(lambda: frozen.mails)
            # Its lease ends, as it does when the worker cannot renew it.
            await lease_ends(world)
            world.smtp_port, world.poll_seconds = good.port, 0.05
            async with world.working():
                await until(lambda: settled(world, event))
                answers.set()
    record = (await world.records())[event.id]
    if kind == "code":
        assert (record["state"], record["attempts"], len(good.mails)) == (DeliveryState.SENT, 2, 1)
    else:
        assert (record["state"], record["attempts"], len(good.mails)) == (DeliveryState.UNKNOWN, 1, 0)


async def test_the_outcome_of_an_overtaken_attempt_does_not_count(world: MailWorld) -> None:
    """A worker stood still while it sent a code. Its server's answer comes while the peer is sending it again."""
    code, late, soon = code_issued(), asyncio.Event(), asyncio.Event()
    world.lease_seconds = world.poll_seconds = (
        60  # neither renewed nor claimed again by the first worker during the test
    )
    async with (
        listening(MailServer(taken="451 later", held=late)) as frozen,
        listening(MailServer(held=soon)) as good,
    ):
        world.smtp_port = frozen.port
        async with AsyncExitStack() as first, AsyncExitStack() as second:
            await first.enter_async_context(world.working())
            await world.send(code)
            await until(lambda: frozen.mails)
            await lease_ends(world)
            world.smtp_port, world.poll_seconds = good.port, 0.05
            await second.enter_async_context(world.working())
            await until(lambda: good.mails)
            late.set()
            await first.aclose()
            assert await state(world, code) == DeliveryState.SENDING
            soon.set()
            await until(world.idle)
    assert (len(frozen.mails), len(good.mails)) == (1, 1)
    assert await world.steps(code) == ["QUEUED", "DEFERRED WORKER_DIED", "SENT"]


async def settled(world: MailWorld, event: Event) -> bool:
    return await state(world, event) not in ("", *UNFINISHED)


async def lease_ends(world: MailWorld) -> None:
    async with world.db.transaction() as tx:
        await tx.execute(update(deliveries).values(leased_until=func.now() - timedelta(seconds=1)))


async def test_a_code_that_ended_while_its_worker_died_is_not_sent_again(world: MailWorld) -> None:
    code = code_issued(life=timedelta(minutes=5))
    world.lease_seconds = 0.5
    silent, server = MailServer(stalls=True), MailServer()
    async with listening(silent):
        world.smtp_port = silent.port
        async with world.working(cut_off=True):
            await world.send(code)
            await until(lambda: silent.mails)
    world.clock = lambda: system_clock() + timedelta(minutes=6)
    async with sending(world, server):
        await until(world.idle)
    assert (server.mails, await state(world, code)) == ([], DeliveryState.EXPIRED)


async def test_a_slow_mail_server_holds_only_its_own_mails_up(world: MailWorld) -> None:
    user = world.accounts.add()
    server = MailServer(stalls=True)
    world.smtp_seconds = 1.0
    async with sending(world, server):
        stories = [story_completed(user) for _ in range(4)]
        began = asyncio.get_running_loop().time()
        await world.send(*stories)
        await until(world.idle)
    assert asyncio.get_running_loop().time() - began < 3
    assert {row["state"] for row in (await world.records()).values()} == {DeliveryState.UNKNOWN}


async def test_each_attempt_is_counted(world: MailWorld) -> None:
    server = MailServer(recipient="450 later")
    code = code_issued()
    world.max_failures = 3
    async with sending(world, server):
        await world.send(code)
        await until(lambda: attempts(world, code, 3))
        server.recipient = "250 ok"
        await until(world.idle)
    assert (await world.records())[code.id]["attempts"] == server.verbs.count("RCPT")


async def test_a_mail_server_is_left_in_order(world: MailWorld) -> None:
    server = MailServer()
    async with sending(world, server):
        await world.send(code_issued())
        await until(world.idle)
    await until(lambda: server.open == 0)
    assert server.verbs == ["EHLO", "MAIL", "RCPT", "DATA", "QUIT"]


async def test_whether_the_mail_server_answers_is_asked_politely() -> None:
    async with listening(MailServer()) as server:
        await smtp(server).check()
        assert server.verbs == ["QUIT"]
    with pytest.raises(aiosmtplib.SMTPConnectError):
        await smtp(server).check()
