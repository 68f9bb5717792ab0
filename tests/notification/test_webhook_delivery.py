"""Notices by webhook: signed messages, repeated until a receiver takes them, to receivers that a person may name."""

from __future__ import annotations

import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest
from sqlalchemy import select
from sqlalchemy.engine.row import RowMapping
from storymesh.events.v1 import auth_events_pb2
from storymesh.notification.v1 import webhook_service_pb2 as pb
from storymesh.notification.v1.notification_pb2 import NOTIFICATION_TYPE_STORY_FAILED, NOTIFICATION_TYPE_STORY_READY
from storymesh.notification.v1.webhook_pb2 import WEBHOOK_STATE_DISABLED, WEBHOOK_STATE_ENABLED, Webhook

from services.notification.model.deliveries import DeliveryState
from services.notification.tables import deliveries
from services.notification.tables import webhooks as webhook_table
from tests.notification.certificates import Authority
from tests.notification.conftest import MailWorld, code_issued, event, story_completed, user_deleted
from tests.notification.webhook_receivers import Receiver, WebhookApi, receiving, webhook_api
from tests.waiting import until

pytestmark = pytest.mark.slow


@pytest.fixture
def api(webhooks: WebhookApi) -> WebhookApi:
    return webhooks


async def by_webhook(world: MailWorld) -> list[RowMapping]:
    async with world.db.transaction() as tx:
        query = select(deliveries).where(deliveries.c.channel == "WEBHOOK").order_by(deliveries.c.id)
        return list((await tx.execute(query)).mappings())


async def states(world: MailWorld) -> list[tuple[str, str]]:
    return [(row["state"], row["reason"]) for row in await by_webhook(world)]


async def deferred(world: MailWorld, reason: str) -> bool:
    return (DeliveryState.QUEUED, reason) in await states(world)


async def test_a_finished_story_arrives_as_a_signed_message_without_address_or_name(
    world: MailWorld, api: WebhookApi, receiver: Receiver
) -> None:
    ada, story_id = world.accounts.add("ada@example.com", "Ada"), uuid4()
    webhook, secret = await api.register(ada, receiver.url)
    story = story_completed(ada, "The Lighthouse", story_id)
    await world.handle(story)
    (request,) = receiver.requests
    (row,) = await by_webhook(world)
    assert request.line == "POST /hook?token=t0ken HTTP/1.1"
    assert request.headers["host"] == f"localhost:{receiver.port}"
    assert request.headers["content-type"] == "application/json"
    assert abs(int(request.headers["webhook-timestamp"]) - datetime.now(UTC).timestamp()) < 60
    assert request.is_signed_with(secret)
    assert not request.is_signed_with("whsec_" + "A" * 43 + "=")
    message = request.message
    assert (message["id"], message["type"]) == (request.headers["webhook-id"], "STORY_READY")
    assert datetime.fromisoformat(message["timestamp"]).tzinfo is not None
    assert message["data"]["target"] == {"type": "STORY", "id": str(story_id)}
    assert message["data"]["title"] == "Your story is ready: The Lighthouse"
    assert message["data"]["text"]
    assert b"ada@" not in request.body
    assert b"Ada" not in request.body
    assert "traceparent" not in request.headers
    assert (row["target"], row["state"], row["event"]) == (webhook.id, DeliveryState.SENT, None)
    assert (await api.read(ada, webhook)).last_success_time.seconds > 0


async def test_each_webhook_has_its_own_delivery_and_mail_goes_on_beside(
    world: MailWorld, api: WebhookApi, receiver: Receiver
) -> None:
    ada, bob = world.accounts.add(), world.accounts.add("bob@example.com")
    for _ in range(2):
        await api.register(ada, receiver.url)
    await api.register(bob, receiver.url)
    story = story_completed(ada)
    await world.handle(story)
    await world.handle(story)
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == len(receiver.requests) == 2
    assert await states(world) == [(DeliveryState.SENT, "")] * 2
    assert len(world.mailbox.mails()) == 1


async def test_codes_and_what_only_goes_by_mail_never_go_by_webhook(
    world: MailWorld, api: WebhookApi, receiver: Receiver
) -> None:
    ada = world.accounts.add()
    await api.register(ada, receiver.url)
    stopped = event(auth_events_pb2.EmailChangeStopped(user_id=str(ada)))
    await world.handle(code_issued(to="ada@example.com"), stopped)
    assert (len(world.mailbox.mails()), receiver.requests, await by_webhook(world)) == (2, [], [])


async def test_a_webhook_gets_the_kinds_alone_that_it_was_registered_for(
    world: MailWorld, api: WebhookApi, receiver: Receiver
) -> None:
    ada = world.accounts.add()
    failed, _ = await api.register(ada, receiver.url, NOTIFICATION_TYPE_STORY_FAILED)
    ready, _ = await api.register(ada, receiver.url, NOTIFICATION_TYPE_STORY_READY)
    await world.handle(story_completed(ada))
    rows = {row["target"]: (row["state"], row["reason"]) for row in await by_webhook(world)}
    assert rows == {
        failed.id: (DeliveryState.SUPPRESSED, "KIND_NOT_WANTED"),
        ready.id: (DeliveryState.SENT, ""),
    }
    assert len(receiver.requests) == 1


PASSING = {
    "an error": ("503 no", "STATUS_NOT_SUCCESS"),
    "a refusal": ("400 no", "STATUS_NOT_SUCCESS"),
    "a redirect": ("307 elsewhere\nlocation: https://localhost:1/", "REDIRECTED"),
    "a cut connection": ("", "CONNECTION_FAILED"),
    "nonsense": ("0 what", "CONNECTION_FAILED"),
    "silence": ("hang", "TIMED_OUT"),
}


@pytest.mark.parametrize("kind", PASSING)
async def test_after_any_failure_the_same_message_is_sent_again_until_it_is_taken(
    world: MailWorld, authority: Authority, kind: str
) -> None:
    world.webhook_seconds = 0.5
    answer, reason = PASSING[kind]
    ada = world.accounts.add()
    async with webhook_api(world) as api, receiving(Receiver(authority.server("localhost"))) as receiver:
        receiver.answers = [answer, answer, "204 taken"]
        webhook, secret = await api.register(ada, receiver.url)
        story = story_completed(ada)
        await world.handle(story)
        assert len(receiver.requests) == 3
        assert len({request.headers["webhook-id"] for request in receiver.requests}) == 1
        assert all(request.is_signed_with(secret) for request in receiver.requests)
        assert await states(world) == [(DeliveryState.SENT, "")]
        queued, deferred, sent = await world.steps(story, "WEBHOOK")
        assert (queued, deferred.split()[:2], sent) == ("QUEUED", ["DEFERRED", reason], "SENT")
        now = await api.read(ada, webhook)
        assert (now.last_failure_reason, now.state) == (reason, WEBHOOK_STATE_ENABLED)
        assert not now.HasField("failing_since_time")


async def test_a_receiver_that_is_gone_disables_its_webhook_at_once_and_its_owner_enables_it_again(
    world: MailWorld, api: WebhookApi, receiver: Receiver
) -> None:
    ada = world.accounts.add()
    webhook, _ = await api.register(ada, receiver.url)
    receiver.answers = ["410 gone", "200 OK"]
    await world.handle(story_completed(ada))
    disabled = await api.read(ada, webhook)
    assert (disabled.state, disabled.disable_reason) == (WEBHOOK_STATE_DISABLED, "GONE")
    await world.handle(story_completed(ada))
    assert len(receiver.requests) == 1
    enabled = await api.update(ada, webhook, enabled=True)
    assert (enabled.state, enabled.disable_reason) == (WEBHOOK_STATE_ENABLED, "")
    await world.handle(story_completed(ada))
    assert await states(world) == [
        (DeliveryState.FAILED, "GONE"),
        (DeliveryState.SUPPRESSED, "WEBHOOK_DISABLED"),
        (DeliveryState.SENT, ""),
    ]


async def test_days_of_failures_in_a_row_disable_a_webhook_and_its_state_says_so(
    world: MailWorld, api: WebhookApi, receiver: Receiver
) -> None:
    ada = world.accounts.add()
    webhook, _ = await api.register(ada, receiver.url)
    receiver.answers = ["500 no"]
    passed = timedelta()
    world.clock = lambda: datetime.now(UTC) + passed
    async with world.working():
        await world.send(story_completed(ada))
        await until(lambda: len(receiver.requests) >= 10)
        failing = await api.read(ada, webhook)
        assert (failing.state, failing.last_status_code) == (WEBHOOK_STATE_ENABLED, 500)
        assert failing.HasField("failing_since_time")
        passed = timedelta(days=3, minutes=1)
        await until(world.idle)
    disabled = await api.read(ada, webhook)
    assert (disabled.state, disabled.disable_reason) == (WEBHOOK_STATE_DISABLED, "FAILING")
    assert await states(world) == [(DeliveryState.SUPPRESSED, "WEBHOOK_DISABLED")]


async def test_a_busy_receiver_is_asked_again_after_the_pause_that_it_names(
    world: MailWorld, api: WebhookApi, receiver: Receiver
) -> None:
    ada = world.accounts.add()
    await api.register(ada, receiver.url)
    receiver.answers = ["429 later\nretry-after: 120"]
    async with world.working():
        await world.send(story_completed(ada))
        await until(lambda: deferred(world, "STATUS_NOT_SUCCESS"))
    (row,) = await by_webhook(world)
    assert timedelta(seconds=100) < row["due_at"] - datetime.now(UTC) <= timedelta(seconds=120)
    assert row["answer"] == "429"


async def test_the_body_of_an_answer_is_not_read(world: MailWorld, api: WebhookApi, receiver: Receiver) -> None:
    ada = world.accounts.add()
    await api.register(ada, receiver.url)
    receiver.endless = True
    await world.handle(story_completed(ada))
    assert await states(world) == [(DeliveryState.SENT, "")]


async def test_receivers_that_hang_hold_no_mail_back(world: MailWorld, api: WebhookApi, receiver: Receiver) -> None:
    ada = world.accounts.add()
    await api.register(ada, receiver.url)
    receiver.answers = ["hang"]
    world.slow_seconds = 60
    async with world.working(cut_off=True):
        await world.send(*(story_completed(ada) for _ in range(8)))
        await until(lambda: len(receiver.requests) == 4)
        await until(lambda: len(world.mailbox.mails()) == 8)
        await world.send(code_issued())
        await until(lambda: len(world.mailbox.mails()) == 9)


async def test_a_message_whose_worker_died_is_sent_again_under_the_same_id(
    world: MailWorld, api: WebhookApi, receiver: Receiver
) -> None:
    ada = world.accounts.add()
    await api.register(ada, receiver.url)
    receiver.answers = ["hang", "200 OK"]
    world.lease_seconds = 0.3
    async with world.working(cut_off=True):
        await world.send(story_completed(ada))
        await until(lambda: receiver.requests)
    async with world.working():
        await until(world.idle)
    assert await states(world) == [(DeliveryState.SENT, "")]
    assert len({request.headers["webhook-id"] for request in receiver.requests}) == 1


async def test_during_a_rotation_messages_are_signed_with_both_secrets_and_after_it_with_the_new_one(
    world: MailWorld, api: WebhookApi, receiver: Receiver
) -> None:
    ada = world.accounts.add()
    webhook, former = await api.register(ada, receiver.url)
    rotate = pb.RotateWebhookSecretRequest(webhook_id=webhook.id)
    rotated = await api.stub.RotateWebhookSecret(rotate, metadata=api.auth(ada))
    assert rotated.secret != former
    await world.handle(story_completed(ada))
    world.clock = lambda: datetime.now(UTC) + timedelta(days=1, minutes=1)
    await world.handle(story_completed(ada))
    rotate.end_former_secret = True
    newest = (await api.stub.RotateWebhookSecret(rotate, metadata=api.auth(ada))).secret
    await world.handle(story_completed(ada))
    signed = [
        [request.is_signed_with(each) for each in (former, rotated.secret, newest)] for request in receiver.requests
    ]
    assert signed == [[True, True, False], [False, True, False], [False, False, True]]


async def test_a_deleted_webhook_gets_nothing_that_still_waits(
    world: MailWorld, api: WebhookApi, receiver: Receiver
) -> None:
    ada = world.accounts.add()
    webhook, _ = await api.register(ada, receiver.url)
    receiver.answers = ["500 no"]
    async with world.working():
        await world.send(story_completed(ada))
        await until(lambda: deferred(world, "STATUS_NOT_SUCCESS"))
        await api.stub.DeleteWebhook(pb.DeleteWebhookRequest(webhook_id=webhook.id), metadata=api.auth(ada))
        await until(world.idle)
    assert await states(world) == [(DeliveryState.SUPPRESSED, "WEBHOOK_DELETED")]


async def test_erasure_removes_webhooks_and_their_deliveries(
    world: MailWorld, api: WebhookApi, receiver: Receiver
) -> None:
    ada, bob = world.accounts.add(), world.accounts.add("bob@example.com")
    for user in (ada, bob):
        await api.register(user, receiver.url)
        await world.handle(story_completed(user))
    world.accounts.delete(ada)
    await world.handle(user_deleted(ada))
    async with world.db.transaction() as tx:
        assert list(await tx.scalars(select(webhook_table.c.user_id))) == [bob]
    assert [row["user_id"] for row in await by_webhook(world)] == [bob]


async def test_a_test_is_sent_at_once_and_tells_what_came_of_it(
    world: MailWorld, api: WebhookApi, receiver: Receiver
) -> None:
    ada = world.accounts.add()
    webhook, secret = await api.register(ada, receiver.url)
    receiver.answers = ["200 OK", "404 no", "hang"]
    request = pb.TestWebhookRequest(webhook_id=webhook.id)
    answers = [await api.stub.TestWebhook(request, metadata=api.auth(ada)) for _ in range(2)]
    told = [(each.delivered, each.failure_reason, each.status_code) for each in answers]
    assert told == [(True, "", 200), (False, "STATUS_NOT_SUCCESS", 404)]
    assert receiver.requests[0].is_signed_with(secret)
    assert receiver.requests[0].message["type"] == "TEST"
    assert not (await api.read(ada, webhook)).HasField("last_failure_time")


# Which receivers are connected to.


class Names:
    """What names stand for, instead of the DNS: each lookup of a name gets the next of its answers, and the last over and over."""

    def __init__(self, **answers: list[list[str]]) -> None:
        self.answers = {name.replace("_", "."): given for name, given in answers.items()}
        self.lookups = 0
        self._real = socket.getaddrinfo

    def getaddrinfo(self, host: Any, port: Any, *rest: Any, **named: Any) -> Any:
        answers = self.answers.get(str(host).rstrip("."))
        if answers is None:
            return self._real(host, port, *rest, **named)
        self.lookups += 1
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        return [found for each in addresses for found in self._real(each, port, *rest, **named)]


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> Names:
    made = Names()
    monkeypatch.setattr(socket, "getaddrinfo", made.getaddrinfo)
    return made


async def try_out(api: WebhookApi, user: UUID, webhook: Webhook) -> tuple[bool, str]:
    answer = await api.stub.TestWebhook(pb.TestWebhookRequest(webhook_id=webhook.id), metadata=api.auth(user))
    return answer.delivered, answer.failure_reason


async def test_the_address_that_was_checked_is_connected_to_and_the_name_is_looked_up_once(
    world: MailWorld, authority: Authority, api: WebhookApi, names: Names
) -> None:
    ada = world.accounts.add()
    async with receiving(Receiver(authority.server("hooks.example.com"))) as receiver:
        # The second answer of a lookup would be one that is refused.
        names.answers["hooks.example.com"] = [["127.0.0.1"], ["127.0.0.1"], ["10.0.0.1"]]
        webhook, _ = await api.register(ada, f"https://hooks.example.com:{receiver.port}/")
        assert names.lookups == 1
        assert await try_out(api, ada, webhook) == (True, "")
        assert names.lookups == 2
        assert receiver.requests[0].headers["host"] == f"hooks.example.com:{receiver.port}"
        # By now the name stands for a private address.
        assert await try_out(api, ada, webhook) == (False, "ADDRESS_REFUSED")
        assert receiver.connections == 1


@pytest.mark.parametrize(
    "addresses",
    [["10.1.2.3"], ["127.0.0.1", "192.168.0.1"], ["169.254.169.254"], ["::ffff:127.0.0.1"], ["fd00:ec2::254"]],
    ids=str,
)
async def test_a_name_with_a_private_address_is_connected_to_at_no_message(
    world: MailWorld, authority: Authority, api: WebhookApi, names: Names, addresses: list[str]
) -> None:
    ada = world.accounts.add()
    async with receiving(Receiver(authority.server("hooks.example.com"))) as receiver:
        names.answers["hooks.example.com"] = [["127.0.0.1"], addresses]
        webhook, _ = await api.register(ada, f"https://hooks.example.com:{receiver.port}/")
        async with world.working():
            await world.send(story_completed(ada))
            await until(lambda: deferred(world, "ADDRESS_REFUSED"))
        assert (await api.read(ada, webhook)).last_failure_reason == "ADDRESS_REFUSED"
        assert receiver.connections == 0


async def test_a_certificate_for_another_name_or_of_another_authority_is_refused(
    world: MailWorld, authority: Authority, api: WebhookApi, tmp_path: Path
) -> None:
    ada = world.accounts.add()
    (tmp_path / "other").mkdir()
    stranger = Authority.new(tmp_path / "other", "stranger")
    for tls in (
        authority.server("hooks.example.com"),
        stranger.server("localhost"),
        authority.server("localhost", ended=True),
    ):
        async with receiving(Receiver(tls)) as receiver:
            webhook, _ = await api.register(ada, receiver.url)
            assert await try_out(api, ada, webhook) == (False, "TLS_FAILED")
            assert receiver.requests == []


async def test_no_proxy_of_the_environment_is_asked(
    world: MailWorld, api: WebhookApi, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    ada = world.accounts.add()
    webhook, _ = await api.register(ada, receiver.url)
    assert await try_out(api, ada, webhook) == (True, "")
