"""Connections that are used for several mails, and how many mails go in a second."""

from __future__ import annotations

import asyncio
import itertools
from dataclasses import replace

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from local.harness import Servers
from services.notification.adapters.smtp import (
    Handover,
    MailError,
    NoConnection,
    OutcomeUnknown,
    Postponed,
    Refused,
    Smtp,
    Stage,
    TryAgain,
)
from services.notification.store.mail_rates import MailRates
from tests.notification.smtp_servers import OFFERS, MailServer, listening, smtp
from tests.waiting import until

WITHOUT_PIPELINING = tuple(offer for offer in OFFERS if offer != "PIPELINING")


async def send(client: Smtp, recipient: str = "ada@example.com") -> None:
    await client.send("no-reply@mail.example", recipient, b"Subject: hello\r\n\r\nhi\r\n", Handover())


@pytest.mark.parametrize("offers", [OFFERS, WITHOUT_PIPELINING])
async def test_mails_one_after_the_other_share_a_connection(offers: tuple[str, ...]) -> None:
    server = MailServer(offers=offers)
    async with listening(server):
        client = smtp(server)
        for _ in range(3):
            await send(client)
        client.close()
        await until(lambda: server.open == 0)
    once = ["MAIL", "RCPT", "DATA"]
    assert server.verbs == ["EHLO", *once, "RSET", *once, "RSET", *once, "QUIT"]


async def test_mails_at_a_time_have_a_connection_each() -> None:
    answers = asyncio.Event()
    server = MailServer(held=answers)
    async with listening(server):
        client = smtp(server)
        async with asyncio.TaskGroup() as group:
            for _ in range(5):
                group.create_task(send(client))
            await until(lambda: len(server.mails) == 5)
            answers.set()
        for _ in range(5):
            await send(client)
        client.close()
    assert (server.connections, len(server.mails)) == (5, 10)


async def test_a_mail_that_hangs_holds_no_other_up() -> None:
    server = MailServer(recipients={})
    hung = asyncio.Event()
    async with listening(server):
        client = smtp(server, final_reply_seconds=30)
        server.held = hung
        slow = asyncio.create_task(send(client))
        await until(lambda: server.mails)
        server.held = None
        for _ in range(3):
            await send(client)
        assert not slow.done()
        hung.set()
        await slow
        client.close()


@pytest.mark.parametrize(
    ("recipient", "error"),
    [("550 5.1.1 no such user", Refused), ("450 4.2.0 later", TryAgain), ("554 5.7.1 relay", TryAgain)],
)
@pytest.mark.parametrize("pipelines", [True, False])
async def test_a_refused_mail_leaves_its_connection_good_for_the_next(
    recipient: str, error: type[MailError], pipelines: bool
) -> None:
    server = MailServer(recipients={"eve@example.com": recipient}, offers=OFFERS if pipelines else WITHOUT_PIPELINING)
    async with listening(server):
        client = smtp(server)
        with pytest.raises(error):
            await send(client, "eve@example.com")
        await send(client)
        client.close()
    assert server.connections == len(server.mails) == 1
    assert server.verbs[:6] == ["EHLO", "MAIL", "RCPT", *["DATA"] * pipelines, "RSET", "MAIL", "RCPT"][:6]


async def test_the_commands_of_a_mail_are_one_round_trip_where_the_server_pipelines() -> None:
    server = MailServer(holds_replies=True)
    async with listening(server):
        client = smtp(server, seconds=1)
        for _ in range(3):
            await send(client)
        client.close()
    assert (server.connections, len(server.mails)) == (1, 3)


async def test_a_server_that_does_not_pipeline_gets_one_command_at_a_time() -> None:
    server = MailServer(offers=WITHOUT_PIPELINING, holds_replies=True)
    async with listening(server):
        client = smtp(server, seconds=0.3)
        with pytest.raises(NoConnection):
            await send(client)
        client.close()
    assert server.verbs == ["EHLO", "MAIL"]


async def test_a_server_that_takes_a_content_for_nobody_gets_none() -> None:
    server = MailServer(recipients={"eve@example.com": "550 5.1.1 no such user"}, takes_for_nobody=True)
    async with listening(server):
        client = smtp(server)
        with pytest.raises(Refused):
            await send(client, "eve@example.com")
        await until(lambda: server.open == 0)
        await send(client)
        client.close()
    assert (server.connections, len(server.mails)) == (2, 1)


async def test_what_a_server_says_unasked_is_taken_for_no_reply_to_the_next_mail() -> None:
    server = MailServer()
    async with listening(server):
        client = smtp(server)
        await send(client)
        (writer,) = server.writers
        writer.write(b"550 5.1.1 no such user\r\n")
        await writer.drain()
        await until(lambda: not any(connection.usable for connection in client._pool._idle))
        await send(client)
        client.close()
    assert (server.connections, len(server.mails)) == (2, 2)


@pytest.mark.parametrize(
    "server",
    [
        MailServer(recipient="421 4.3.2 shutting down"),
        MailServer(recipient="what?"),
        MailServer(recipient="354 go on"),
        MailServer(taken="421 4.3.2 shutting down"),
        MailServer(taken="what?"),
        MailServer(data="250 ok"),
        MailServer(hesitates_at="RCPT"),
        MailServer(cuts_at="DATA"),
        MailServer(stalls=True),
    ],
)
@pytest.mark.parametrize("offers", [OFFERS, WITHOUT_PIPELINING])
async def test_a_connection_that_is_in_doubt_is_not_used_again(server: MailServer, offers: tuple[str, ...]) -> None:
    server = replace(server, offers=offers)
    async with listening(server):
        client = smtp(server, seconds=0.5, final_reply_seconds=0.5)
        with pytest.raises((TryAgain, OutcomeUnknown)):
            await send(client)
        good = MailServer()
        server.recipient, server.data, server.taken, server.stalls = good.recipient, good.data, good.taken, False
        server.hesitates_at = server.cuts_at = ""
        await send(client)
        client.close()
    assert server.connections == 2


@pytest.mark.parametrize("kind", ["hangs up meanwhile", "refuses RSET", "closes at RSET", "hangs at RSET", "restarts"])
@pytest.mark.parametrize("offers", [OFFERS, WITHOUT_PIPELINING])
async def test_a_connection_that_the_server_has_given_up_is_replaced_without_a_failed_mail(
    kind: str, offers: tuple[str, ...]
) -> None:
    server = MailServer(offers=offers)
    async with listening(server):
        client = smtp(server, seconds=0.5)
        await send(client)
        match kind:
            case "hangs up meanwhile":
                await server.hang_up()
            case "refuses RSET":
                server.reset = "421 4.4.2 too long idle"
            case "closes at RSET":
                server.cuts_at = "RSET"
            case "hangs at RSET":
                server.hesitates_at = "RSET"
        if kind != "restarts":
            await send(client)
            client.close()
            assert (server.connections, len(server.mails)) == (2, 2)
            return
        await server.hang_up()
    with pytest.raises(NoConnection):
        await send(client)
    client.close()


async def test_an_idle_connection_is_left_in_order() -> None:
    server = MailServer()
    async with listening(server):
        client = smtp(server, idle_seconds=0.05)
        await send(client)
        await until(lambda: server.open == 0)
        await send(client)
        client.close()
    assert server.connections == 2
    assert server.verbs[:5] == ["EHLO", "MAIL", "RCPT", "DATA", "QUIT"]


async def test_a_connection_is_left_after_its_share_of_mails() -> None:
    server = MailServer()
    async with listening(server):
        client = smtp(server, mails_per_connection=2)
        for _ in range(5):
            await send(client)
        client.close()
    assert server.connections == 3


async def test_a_cancelled_mail_closes_its_connection_and_says_how_far_it_came() -> None:
    server, handover = MailServer(stalls=True), Handover()
    async with listening(server):
        client = smtp(server, final_reply_seconds=30)
        sending = asyncio.create_task(client.send("a@b.example", "ada@example.com", b"\r\n", handover))
        await until(lambda: server.mails)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending
        await until(lambda: server.open == 0)
        client.close()
    assert handover.stage is Stage.HANDED_OVER


def rates(redis: Redis, *, every: float = 0.0, domain: float = 0.0) -> MailRates:
    return MailRates(redis, mails_per_second=every, domain_mails_per_second=domain)


async def test_mails_of_one_second_go_at_once_and_the_rest_in_turn(redis: Redis) -> None:
    # By two workers, which share the rate.
    first, second = rates(redis, every=4), rates(redis, every=4)
    waits = [await (first, second)[number % 2].seconds_until_turn("example.com") for number in range(12)]
    assert waits[:4] == [0.0] * 4
    # Each of the others gets a turn of its own, a quarter of a second after the one before; Redis's clock runs meanwhile.
    gaps = [later - sooner for sooner, later in itertools.pairwise(waits[4:])]
    assert all(0 < gap <= 0.25 for gap in gaps)
    assert waits[-1] <= 2.0


async def test_the_services_own_user_of_redis_may_count(servers: Servers, redis: Redis) -> None:
    async with Redis.from_url(servers.service_redis_url("notification")) as own:
        both = rates(own, every=0.01, domain=0.01)
        assert await both.seconds_until_turn("example.com") == 0
        assert await both.seconds_until_turn("example.com") > 0


async def test_a_domain_over_its_rate_holds_no_other_domain_up(redis: Redis) -> None:
    both = rates(redis, every=1000, domain=1)
    assert await both.seconds_until_turn("example.com") == 0
    assert await both.seconds_until_turn("example.com") > 0
    assert await both.seconds_until_turn("example.org") == 0


async def test_a_slow_rate_lets_one_mail_go_and_the_next_an_interval_later(redis: Redis) -> None:
    slow = rates(redis, every=0.01)
    assert await slow.seconds_until_turn("example.com") == 0
    assert 99 < await slow.seconds_until_turn("example.com") <= 100


async def test_a_mail_over_the_rate_is_put_off_without_asking_the_server(redis: Redis) -> None:
    server = MailServer()
    async with listening(server):
        client = smtp(server, rates=rates(redis, domain=0.01))
        await send(client, "ada@Example.COM")
        with pytest.raises(Postponed) as raised:
            await send(client, "bob@example.com")
        client.close()
    assert 99 < raised.value.seconds <= 100
    assert len(server.mails) == 1


async def test_a_turn_that_comes_soon_is_waited_for(redis: Redis) -> None:
    server = MailServer()
    async with listening(server):
        client = smtp(server, rates=rates(redis, every=20))
        for _ in range(22):
            await send(client)
        client.close()
    assert len(server.mails) == 22


async def test_without_redis_mails_go_at_any_rate() -> None:
    away = Redis(port=1, retry=Retry(NoBackoff(), 0))
    assert await rates(away, every=0.01).seconds_until_turn("example.com") == 0
    assert await rates(away, every=0.01).seconds_until_turn("example.com") == 0
    await away.aclose()
