"""What a mail server's replies mean: the recipient, us, or the moment. Each is given by a real server at the step."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import replace

import pytest

from services.notification.adapters.refusals import RefusedBecauseOfUs
from services.notification.adapters.smtp import (
    ContentRefused,
    Handover,
    MailError,
    NeedsOperator,
    NoConnection,
    NotInternational,
    OutcomeUnknown,
    Refused,
    Smtp,
    Stage,
    TryAgain,
)
from tests.notification.smtp_servers import MailServer, listening, smtp
from tests.waiting import until

SENDER, RECIPIENT = "no-reply@mail.example", "ada@example.com"
MAIL = b"Subject: hello\r\n\r\n.a line that begins with a dot\r\n"


async def send(client: Smtp, recipient: str = RECIPIENT, mail: bytes = MAIL) -> Stage:
    """Send a mail and return the stage that it reached."""
    handover = Handover()
    await client.send(SENDER, recipient, mail, handover)
    return handover.stage


async def outcome(server: MailServer, recipient: str = RECIPIENT, **options: float) -> tuple[type[MailError], str]:
    """The error that one mail ends with, and its answer."""
    async with listening(server):
        client, handover = smtp(server, **options), Handover()
        with pytest.raises(MailError) as raised:
            await client.send(SENDER, recipient, MAIL, handover)
        client.close()
    assert (handover.stage is Stage.HANDED_OVER) == isinstance(raised.value, OutcomeUnknown)
    assert "example.com" not in str(raised.value), "a server's text quotes the address"
    return type(raised.value), raised.value.answer


AT_RECIPIENT = [
    ("550 5.1.1 <ada@example.com>: no such user", Refused, "550 5.1.1"),
    (
        "550-5.1.1 The account does not exist.\r\n550-5.1.1 Look for typos\r\n550 5.1.1 in example.com",
        Refused,
        "550 5.1.1",
    ),
    ("550 #5.1.1 no such user", Refused, "550 5.1.1"),
    ("550 5.1.2 no such domain", Refused, "550 5.1.2"),
    ("501 5.1.3 bad address syntax", Refused, "501 5.1.3"),
    ("551 5.1.6 moved", Refused, "551 5.1.6"),
    ("550 5.1.10 null MX", Refused, "550 5.1.10"),
    ("556 5.1.10 null MX", Refused, "556 5.1.10"),
    ("550 5.2.1 disabled", Refused, "550 5.2.1"),
    ("552 5.2.2 full", Refused, "552 5.2.2"),
    ("550 5.2.0 wrong with the mailbox", Refused, "550 5.2.0"),
    ("550 no such mailbox", Refused, "550"),
    ("550 Unrouteable address", Refused, "550"),
    ("550 User ada not listed in the directory", Refused, "550"),
    ("553 mailbox name not allowed", Refused, "553"),
    ("556 no mail here", Refused, "556"),
    ("504 5.5.2 <localhost>: Helo command rejected: need fully-qualified hostname", NeedsOperator, "504 5.5.2"),
    ("554 5.7.1 <ada@example.com>: Relay access denied", NeedsOperator, "554 5.7.1"),
    ("530 5.7.0 Must issue a STARTTLS command first", NeedsOperator, "530 5.7.0"),
    ("553 5.7.1 <no-reply@mail.example>: Sender address rejected: not logged in", NeedsOperator, "553 5.7.1"),
    ("550 5.7.1 <client[192.0.2.1]>: Client host rejected", NeedsOperator, "550 5.7.1"),
    ("550 5.7.23 SPF", NeedsOperator, "550 5.7.23"),
    ("550 5.1.7 sender's address", NeedsOperator, "550 5.1.7"),
    ("550 5.1.8 sender's domain", NeedsOperator, "550 5.1.8"),
    ("550 5.1.0 rejected", NeedsOperator, "550 5.1.0"),
    ("550 5.1.11 unheard of", NeedsOperator, "550 5.1.11"),
    ("550 5.4.1 access denied", NeedsOperator, "550 5.4.1"),
    ("552 5.3.4 too big", NeedsOperator, "552 5.3.4"),
    ("503 5.5.1 sequence", NeedsOperator, "503 5.5.1"),
    ("550 relay not permitted", NeedsOperator, "550"),
    ("550 Sender verify failed", NeedsOperator, "550"),
    ("550 authentication required", NeedsOperator, "550"),
    ("550 rejected because 192.0.2.1 is in a black list", NeedsOperator, "550"),
    ("550 Administrative prohibition", NeedsOperator, "550"),
    ("550 TLS is required", NeedsOperator, "550"),
    ("530 log in", NeedsOperator, "530"),
    ("500 what?", NeedsOperator, "500"),
    ("450 4.2.0 greylisted", TryAgain, "450 4.2.0"),
    ("450 4.7.1 Helo command rejected: Host not found", TryAgain, "450 4.7.1"),
    ("452 4.2.2 full", TryAgain, "452 4.2.2"),
    ("421 4.3.2 shutting down", TryAgain, "421 4.3.2"),
    ("451 later", TryAgain, "451"),
    ("299 well", None, ""),
    ("251 forwarded", None, ""),
    ("354 go on", TryAgain, "354"),
]


@pytest.mark.parametrize(("reply", "error", "answer"), AT_RECIPIENT, ids=[reply[:24] for reply, *_ in AT_RECIPIENT])
async def test_a_reply_to_the_recipient_means_whom_its_enhanced_code_names(
    reply: str, error: type[MailError] | None, answer: str
) -> None:
    server = MailServer(recipient=reply)
    if error is None:
        async with listening(server):
            client = smtp(server)
            assert await send(client) is Stage.TAKEN
            client.close()
    else:
        assert await outcome(server) == (error, answer)


BEFORE_THE_RECIPIENT = {
    "the greeting": MailServer(greeting="554 5.7.1 not from you"),
    "EHLO and HELO": MailServer(hello="550", helo="550 5.7.1 not from you"),
    "the sender, as if it were the recipient": MailServer(sender="550 5.1.1 no such user"),
    "the sender": MailServer(sender="553 5.1.8 no such domain"),
}


@pytest.mark.parametrize("step", BEFORE_THE_RECIPIENT)
async def test_a_refusal_before_the_recipient_is_named_means_us(step: str) -> None:
    assert (await outcome(replace(BEFORE_THE_RECIPIENT[step])))[0] is NeedsOperator


AT_CONTENT = [
    ("550 5.1.1 no such user after all", Refused),
    ("552 5.2.2 full", Refused),
    ("550 5.7.26 unauthenticated", NeedsOperator),
    ("554 5.7.1 looks like spam", NeedsOperator),
    ("554 5.6.0 malformed", NeedsOperator),
    ("552 5.3.4 too big", NeedsOperator),
    ("554 looks like spam", ContentRefused),
    ("550 no relay for you", NeedsOperator),
    ("503 sequence", NeedsOperator),
    ("451 4.3.0 later", TryAgain),
    ("421 4.3.2 shutting down", TryAgain),
]


@pytest.mark.parametrize("step", ["data", "taken"])
@pytest.mark.parametrize(("reply", "error"), AT_CONTENT, ids=[reply for reply, _ in AT_CONTENT])
async def test_a_refusal_of_the_content_means_whom_its_enhanced_code_names(
    step: str, reply: str, error: type[MailError]
) -> None:
    server = MailServer(data=reply) if step == "data" else MailServer(taken=reply)
    assert (await outcome(server))[0] is error


STEPS_BEFORE_THE_CONTENT = ["CONNECT", "EHLO", "MAIL", "RCPT", "DATA"]


@pytest.mark.parametrize("step", STEPS_BEFORE_THE_CONTENT)
@pytest.mark.parametrize("kind", ["hesitates_at", "cuts_at"])
async def test_a_server_that_hangs_or_cuts_before_the_content_has_taken_nothing(step: str, kind: str) -> None:
    server = MailServer(hesitates_at=step) if kind == "hesitates_at" else MailServer(cuts_at=step)
    assert (await outcome(server, seconds=0.3, final_reply_seconds=30))[0] is NoConnection


AFTER_THE_CONTENT = {
    "hangs": MailServer(stalls=True),
    "hangs up": MailServer(taken=None),
    "makes no sense": MailServer(taken="what?"),
    "wants more": MailServer(taken="354 go on"),
    "reads nothing of it": MailServer(reads_no_content=True),
}


@pytest.mark.parametrize("kind", AFTER_THE_CONTENT)
async def test_nobody_knows_what_became_of_a_mail_whose_end_was_sent_and_not_answered(kind: str) -> None:
    assert (await outcome(replace(AFTER_THE_CONTENT[kind]), final_reply_seconds=0.3))[0] is OutcomeUnknown


async def test_a_mail_whose_end_never_left_this_process_was_not_taken() -> None:
    """The server reads nothing, and the mail is larger than what the kernel holds for it."""
    server = MailServer(reads_no_content=True)
    async with listening(server):
        client, handover = smtp(server, final_reply_seconds=0.5), Handover()
        with pytest.raises(NoConnection):
            await client.send(SENDER, RECIPIENT, b"Subject: long\r\n\r\n" + 20_000_000 * b"x", handover)
        assert handover.stage is Stage.UNSEEN
        client.close()


async def test_the_reply_to_the_final_dot_is_awaited_longer_than_any_other() -> None:
    answers = asyncio.Event()
    server = MailServer(held=answers)
    async with listening(server):
        client = smtp(server, seconds=0.2, final_reply_seconds=30)
        sending = asyncio.create_task(send(client))
        await until(lambda: server.mails)
        await asyncio.wait([sending], timeout=0.5)
        assert not sending.done()
        answers.set()
        assert await sending is Stage.TAKEN
        client.close()
    assert len(server.mails) == 1


async def test_a_server_that_knows_no_ehlo_gets_helo() -> None:
    server = MailServer(hello="502")
    async with listening(server):
        client = smtp(server)
        assert await send(client) is Stage.TAKEN
        client.close()
    assert server.verbs[:3] == ["EHLO", "HELO", "MAIL"]


@pytest.mark.parametrize(
    "offers", [(), ("PIPELINING",), ("8BITMIME", "PIPELINING", "SMTPUTF8"), ("SIZE 10", "X-UNHEARD-OF a b")]
)
async def test_a_plain_mail_needs_nothing_that_a_server_may_offer(offers: tuple[str, ...]) -> None:
    server = MailServer(offers=offers)
    async with listening(server):
        client = smtp(server)
        assert await send(client) is Stage.TAKEN
        client.close()
    assert server.mails == [b"Subject: hello\r\n\r\n..a line that begins with a dot\r\n.\r\n"]
    assert f"MAIL FROM:<{SENDER}>" in server.lines


async def test_the_worker_introduces_itself_by_its_name() -> None:
    server = MailServer()
    async with listening(server):
        client = smtp(server, ehlo_name="mesh.example.org")
        await send(client)
        client.close()
    assert server.lines[0] == "EHLO mesh.example.org"


INTERNATIONAL = "jürgen@example.com"


async def test_an_international_address_goes_to_a_server_that_offers_smtputf8() -> None:
    server = MailServer()
    async with listening(server):
        client = smtp(server)
        assert await send(client, INTERNATIONAL, f"To: {INTERNATIONAL}\r\n\r\nhi\r\n".encode()) is Stage.TAKEN
        client.close()
    assert f"MAIL FROM:<{SENDER}> BODY=8BITMIME SMTPUTF8" in server.lines
    assert f"RCPT TO:<{INTERNATIONAL}>" in server.lines
    assert INTERNATIONAL.encode() in server.mails[0]


@pytest.mark.parametrize(
    "server",
    [
        MailServer(offers=("8BITMIME",)),
        MailServer(hello="502"),
        MailServer(recipient="553 5.6.7 not here"),
        MailServer(taken="550 5.6.9 cannot be delivered"),
    ],
    ids=["not offered", "no extensions at all", "not for this recipient", "not further on"],
)
async def test_an_international_address_is_refused_for_good_where_smtputf8_is_not_offered(server: MailServer) -> None:
    error, _ = await outcome(replace(server), INTERNATIONAL)
    assert (error, error.reason) == (NotInternational, "SMTPUTF8_NOT_OFFERED")


async def test_a_domain_in_another_script_needs_no_smtputf8() -> None:
    server = MailServer(offers=())
    async with listening(server):
        client = smtp(server)
        assert await send(client, "ada@bücher.example") is Stage.TAKEN
        client.close()
    assert "RCPT TO:<ada@xn--bcher-kva.example>" in server.lines


async def test_eight_bits_do_not_go_to_a_server_that_does_not_offer_them() -> None:
    server = MailServer(offers=("SMTPUTF8",))
    async with listening(server):
        client = smtp(server)
        with pytest.raises(ContentRefused):
            await send(client, mail="Subject: hi\r\n\r\nJürgen\r\n".encode())
        assert await send(client) is Stage.TAKEN, "the connection is good for the next mail"
        client.close()
    assert len(server.mails) == server.connections == 1


@pytest.mark.parametrize(
    "address",
    [
        "ada@example.com> SIZE=1",
        "ada@example.com>\r\nRCPT TO:<eve@example.com",
        "a b@example.com",
        "ada",
        "@example.com",
        "a@b@c",
        "\udcff@example.com",
        "a\0@example.com",
    ],
)
async def test_an_address_that_smtp_cannot_write_is_refused_and_not_sent(address: str) -> None:
    server = MailServer()
    async with listening(server):
        client = smtp(server)
        with pytest.raises(Refused):
            await send(client, address)
        client.close()
    assert not any(line.startswith("RCPT") for line in server.lines)


async def test_health_and_log_say_that_the_server_refuses_us_until_it_takes_a_mail(
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = MailServer(recipient="554 5.7.1 <ada@example.com>: Relay access denied")
    async with listening(server):
        client = smtp(server)
        await client.check()
        with caplog.at_level(logging.INFO, "services.notification"):
            for _ in range(3):
                with pytest.raises(NeedsOperator):
                    await send(client)
            with pytest.raises(RefusedBecauseOfUs, match=r"554 5\.7\.1"):
                await client.check()
            server.recipient = "250 ok"
            await send(client)
            await client.check()
        client.close()
    said = [record.message for record in caplog.records if record.name.startswith("services.notification")]
    # A line a minute, however many mails meet the answer.
    assert said == [
        "mail servers refuse us, not the recipients, who are kept waiting; since the last such line: 1, the last one: 554 5.7.1"
    ]


async def test_a_refused_recipient_says_nothing_against_us() -> None:
    server = MailServer(recipient="550 5.1.1 no such user")
    async with listening(server):
        client = smtp(server)
        with pytest.raises(Refused):
            await send(client)
        await client.check()
        client.close()
