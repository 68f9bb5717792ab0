"""Receivers, names and texts that want harm: each ends as a failure with a reason, in time, and nothing of ours gets out."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from storymesh.notification.v1 import webhook_service_pb2 as pb

from services.notification.adapters.lookups import Lookups, LookupsBusy
from services.notification.adapters.webhooks import ReceiverFailed, WebhookSender
from services.notification.model.webhook_urls import WebhookRules
from tests.notification.certificates import Authority
from tests.notification.conftest import MailWorld, story_completed
from tests.notification.webhook_receivers import Receiver, WebhookApi, receiving
from tests.waiting import until

RULES = WebhookRules(frozenset({443}), local=True)
SECONDS = 0.5
Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def saying(first: bytes, again: bytes = b"", pause: float = 0.0) -> Answer:
    """Answers with the first bytes after the request, and then with the others over and over."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(first)
        while again:
            writer.write(again)
            await writer.drain()
            await asyncio.sleep(pause)
        await reader.read()

    return answer


async def garbled(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A TLS record that nobody can open."""
    await reader.readuntil(b"\r\n\r\n")
    writer.transport._ssl_protocol._transport.write(b"\x17\x03\x03\x00\x10" + b"g" * 16)  # type: ignore[attr-defined]
    await reader.read()


async def aborting(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.transport.abort()


OK = b"HTTP/1.1 200 OK\r\n"
HOSTILE: dict[str, tuple[Answer, str]] = {
    "a status line without end": (saying(b"HTTP/1.1 200 ", b"x" * 65536), "CONNECTION_FAILED"),
    "headers without end": (saying(OK, b"x: y\r\n" * 1000), "CONNECTION_FAILED"),
    "one header without end": (saying(OK + b"x: ", b"x" * 65536), "CONNECTION_FAILED"),
    "interim answers without end": (saying(b"", b"HTTP/1.1 100 Continue\r\n\r\n" * 100), "CONNECTION_FAILED"),
    "hints without end": (saying(b"", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" * 100), "CONNECTION_FAILED"),
    "a status line byte by byte": (saying(b"H", b"T", 0.02), "TIMED_OUT"),
    "headers byte by byte": (saying(OK, b"x", 0.02), "TIMED_OUT"),
    "interim answers one by one": (saying(b"", b"HTTP/1.1 100 Continue\r\n\r\n", 0.02), "TIMED_OUT"),
    "silence": (saying(b""), "TIMED_OUT"),
    "a body without end": (saying(OK + b"\r\n", b"x" * 65536), ""),
    "a body byte by byte": (saying(OK + b"content-length: 1000\r\n\r\n", b"x", 0.02), ""),
    "a connection that stays open": (saying(OK + b"content-length: 0\r\n\r\n"), ""),
    "another protocol": (
        saying(b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n"),
        "CONNECTION_FAILED",
    ),
    "a status out of range": (saying(b"HTTP/1.1 1000 no\r\n\r\n"), "CONNECTION_FAILED"),
    "no status": (saying(b"<html>\r\n\r\n"), "CONNECTION_FAILED"),
    "two lengths": (saying(OK + b"content-length: 5\r\ncontent-length: 6\r\n\r\n"), "CONNECTION_FAILED"),
    "a length below nothing": (saying(OK + b"content-length: -5\r\n\r\n"), "CONNECTION_FAILED"),
    "a null in a header": (saying(OK + b"x: \0\r\n\r\n"), "CONNECTION_FAILED"),
    "a pause of ages": (saying(b"HTTP/1.1 429 no\r\nretry-after: 99999999999999\r\n\r\n"), "STATUS_NOT_SUCCESS 429"),
    "a broken record": (garbled, "CONNECTION_FAILED"),
    "a reset": (aborting, "CONNECTION_FAILED"),
}


@pytest.fixture(scope="module")
def of_test(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.new(tmp_path_factory.mktemp("authority"))


@asynccontextmanager
async def answering(answer: Answer, tls: ssl.SSLContext | None) -> AsyncIterator[int]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError, ssl.SSLError):
            await answer(reader, writer)
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def outcome(authority: Authority, port: int) -> str:
    """The reason and the status of a failed message; empty if it was taken. Ends long before the receiver would let it."""
    sender = WebhookSender(RULES, ca_file=authority.file, connect_seconds=SECONDS, seconds=SECONDS)
    try:
        async with asyncio.timeout(30):
            await sender.send(RULES.read(f"https://localhost:{port}/"), {}, b"{}", owner=None)
    except ReceiverFailed as failed:
        return f"{failed} asks for ages" if (failed.seconds or 0) > 3600 else str(failed)
    return ""


@pytest.mark.parametrize("what", HOSTILE)
async def test_whatever_a_receiver_answers_ends_in_time_with_a_reason(of_test: Authority, what: str) -> None:
    answer, reason = HOSTILE[what]
    async with answering(answer, of_test.server("localhost")) as port:
        assert await outcome(of_test, port) == reason


async def test_a_handshake_that_never_goes_on_ends_in_time(of_test: Authority) -> None:
    async def mute(reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        while await reader.read(1000):
            pass

    async with answering(mute, None) as port:
        assert await outcome(of_test, port) == "TIMED_OUT"


@pytest.mark.parametrize("status", [300, 301, 302, 303, 305, 307, 308])
async def test_no_redirect_is_followed(of_test: Authority, status: int) -> None:
    async with receiving(Receiver(None)) as inside:
        location = f"location: http://127.0.0.1:{inside.port}/\r\n\r\n".encode()
        redirect = saying(f"HTTP/1.1 {status} there\r\ncontent-length: 0\r\n".encode() + location)
        async with answering(redirect, of_test.server("localhost")) as port:
            assert await outcome(of_test, port) == f"REDIRECTED {status}"
        assert inside.connections == 0


# Names whose servers never answer.


class SlowNames:
    """Names that end in slow.example are not answered until the end, once `silent` is set; all others at once."""

    def __init__(self, real: Any) -> None:
        self.silent = threading.Event()
        self.end = threading.Event()
        self.asked = 0
        self._real = real

    def getaddrinfo(self, host: Any, port: Any, *rest: Any, **named: Any) -> Any:
        if str(host).rstrip(".").endswith("slow.example"):
            self.asked += 1
            if self.silent.is_set():
                self.end.wait(60)
            host = "127.0.0.1"
        return self._real(host, port, *rest, **named)


@pytest.fixture
def slow_names(monkeypatch: pytest.MonkeyPatch) -> Iterator[SlowNames]:
    names = SlowNames(socket.getaddrinfo)
    monkeypatch.setattr(socket, "getaddrinfo", names.getaddrinfo)
    yield names
    names.end.set()


async def test_names_of_one_owner_occupy_few_threads_however_long_they_take(slow_names: SlowNames) -> None:
    slow_names.silent.set()
    found = Lookups(threads=4, of_one_owner=2)
    waiting = [asyncio.create_task(found.addresses(f"{n}.slow.example", 443, "eve")) for n in range(20)]
    await until(lambda: slow_names.asked == 2)
    for task in waiting:
        task.cancel()
    await asyncio.wait(waiting)
    # Nobody waits any more, and the threads are still busy.
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await found.addresses("21.slow.example", 443, "eve")
    assert slow_names.asked == 2
    assert [str(each) for each in await found.addresses("127.0.0.1", 443, "ada")] == ["127.0.0.1"]


async def test_while_all_threads_are_busy_a_lookup_says_so_at_once(slow_names: SlowNames) -> None:
    slow_names.silent.set()
    found = Lookups(threads=2, of_one_owner=1)
    waiting = [asyncio.create_task(found.addresses("a.slow.example", 443, owner)) for owner in ("eve", "mallory")]
    await until(lambda: slow_names.asked == 2)
    for _ in range(3):
        with pytest.raises(LookupsBusy):
            await found.addresses("127.0.0.1", 443, "ada")
    slow_names.end.set()
    await asyncio.wait(waiting)
    assert await found.addresses("127.0.0.1", 443, "ada")


@pytest.mark.slow
async def test_a_receiver_is_not_blamed_for_the_names_of_others(
    world: MailWorld, webhooks: WebhookApi, receiver: Receiver, slow_names: SlowNames
) -> None:
    world.concurrency = 64
    strangers = [uuid4() for _ in range(16)]
    for stranger in strangers:
        for number in range(2):
            await webhooks.register(stranger, f"https://{number}.slow.example:{receiver.port}/")
    ada = world.accounts.add()
    webhook, _ = await webhooks.register(ada, receiver.url)
    slow_names.silent.set()
    asked = slow_names.asked
    async with world.working(cut_off=True):
        await world.send(*(story_completed(stranger) for stranger in strangers))
        await until(lambda: slow_names.asked - asked == 32)
        await world.send(story_completed(ada))
        (message,) = await until(lambda: busy(webhooks, ada, webhook))
        slow_names.end.set()
    assert not (await webhooks.read(ada, webhook)).HasField("last_failure_time")
    assert message.attempts == 1


async def busy(webhooks: WebhookApi, user: Any, webhook: Any) -> list[Any]:
    return [each for each in await webhooks.messages(user, webhook) if each.reason == "LOOKUPS_BUSY"]


# Texts.

TEXTS = [
    'x\r\nwebhook-id: evil\r\n\r\n{"type": "TEST"}',
    "\u2028\u2029\x85\x0b\x0c\x1b[31m",
    '", "user_id": "somebody", "x": "',
    "\\u0000\\",
    "\U0001f600" * 40,
    "<script>alert(1)</script>",
]


@pytest.mark.slow
@pytest.mark.parametrize("text", TEXTS)
async def test_no_title_and_no_description_changes_the_headers_or_the_form_of_a_message(
    world: MailWorld, webhooks: WebhookApi, receiver: Receiver, text: str
) -> None:
    ada = world.accounts.add("ada@example.com", text.replace("\r", " ").replace("\n", " ")[:40])
    _, secret = await webhooks.register(ada, receiver.url)
    await world.handle(story_completed(ada, text, excerpt=text))
    (request,) = receiver.requests
    names = {"host", "content-type", "user-agent", "webhook-id", "webhook-timestamp", "webhook-signature"}
    assert request.headers.keys() == names | {"connection", "content-length"}
    assert request.message.keys() == {"id", "type", "timestamp", "data"}
    assert request.message["data"].keys() == {"title", "text", "target"}
    assert request.is_signed_with(secret)


@pytest.mark.slow
async def test_neither_the_secret_nor_the_urls_token_is_logged_even_when_everything_is(
    world: MailWorld, webhooks: WebhookApi, receiver: Receiver, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    ada = world.accounts.add()
    webhook, secret = await webhooks.register(ada, receiver.url)
    receiver.answers = ["500 no", "200 OK"]
    await world.handle(story_completed(ada, "A Title of Mine"))
    await webhooks.stub.TestWebhook(pb.TestWebhookRequest(webhook_id=webhook.id), metadata=webhooks.auth(ada))
    logged = caplog.text + "".join(str(record.__dict__) for record in caplog.records)
    signatures = [request.headers["webhook-signature"].removeprefix("v1,") for request in receiver.requests]
    assert len(signatures) == 3
    for hidden in (*signatures, secret, secret.removeprefix("whsec_"), "t0ken", "A Title of Mine"):
        assert hidden not in logged
