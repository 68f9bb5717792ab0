"""Takes the events that people are told of."""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC
from uuid import UUID

from google.protobuf.message import DecodeError
from storymesh.events.v1 import auth_events_pb2, story_events_pb2

from services.kit.clock import Clock
from services.kit.events import Event
from services.kit.inbox import Handler, Permanent
from services.kit.sealing import Seal, Unsealable

from . import texts
from .mailing import Mailing
from .model import NotificationType, Recipient, Template
from .notifications import Notifier
from .peers import Accounts

SEAL_PURPOSE = auth_events_pb2.CodeMail.DESCRIPTOR.full_name


class Worker:
    """Repeats are harmless: notifications are recorded by event, and so are mails."""

    def __init__(
        self, mailing: Mailing, notifier: Notifier, accounts: Accounts, seal: Seal, clock: Clock, *, public_url: str
    ) -> None:
        self._mailing = mailing
        self._notifier = notifier
        self._accounts = accounts
        self._seal = seal
        self._clock = clock
        self._public_url = public_url.rstrip("/")

    def handlers(self) -> Mapping[str, Handler]:
        """By the full name of the event's message."""
        return {
            auth_events_pb2.CodeIssued.DESCRIPTOR.full_name: self.code_issued,
            auth_events_pb2.RegistrationRepeated.DESCRIPTOR.full_name: self.registration_repeated,
            auth_events_pb2.UserRegistered.DESCRIPTOR.full_name: self.user_registered,
            story_events_pb2.StoryCompleted.DESCRIPTOR.full_name: self.story_completed,
            story_events_pb2.StoryFailed.DESCRIPTOR.full_name: self.story_failed,
        }

    async def code_issued(self, event: Event) -> None:
        issued = event.decode(auth_events_pb2.CodeIssued)
        left = issued.expire_time.ToDatetime(UTC) - self._clock()
        if left.total_seconds() <= 0:
            await self._mailing.expire(event.id, Template.CODE)
            return
        try:
            mail = auth_events_pb2.CodeMail.FromString(self._seal.unseal(SEAL_PURPOSE, issued.sealed_mail))
        except (Unsealable, DecodeError):
            raise Permanent(
                "the sealed mail cannot be opened; do auth and notification have the same seal key?"
            ) from None
        letter = texts.code(mail.first_name, mail.code, math.ceil(left.total_seconds() / 60))
        await self._mailing.send(event.id, Template.CODE, Recipient(mail.email, mail.first_name), letter)

    async def registration_repeated(self, event: Event) -> None:
        user_id = UUID(event.decode(auth_events_pb2.RegistrationRepeated).user_id)
        recipient = await self._accounts.find(user_id)
        if recipient:
            letter = texts.registration_repeated(recipient.first_name)
            await self._mailing.send(event.id, Template.REGISTRATION_REPEATED, recipient, letter)

    async def user_registered(self, event: Event) -> None:
        user_id = UUID(event.decode(auth_events_pb2.UserRegistered).user_id)
        recipient = await self._accounts.find(user_id)
        if recipient:
            letter = texts.welcome(recipient.first_name)
            await self._notifier.notify(event, user_id, NotificationType.WELCOME, letter)
            await self._mailing.send(event.id, Template.WELCOME, recipient, letter)

    async def story_completed(self, event: Event) -> None:
        story = event.decode(story_events_pb2.StoryCompleted)
        owner_id, story_id = UUID(story.owner_id), UUID(story.story_id)
        recipient = await self._accounts.find(owner_id)
        if recipient:
            letter = texts.story_ready(recipient.first_name, story.title, f"{self._public_url}/v1/stories/{story_id}")
            await self._notifier.notify(event, owner_id, NotificationType.STORY_READY, letter, story_id)
            await self._mailing.send(event.id, Template.STORY_READY, recipient, letter)

    async def story_failed(self, event: Event) -> None:
        story = event.decode(story_events_pb2.StoryFailed)
        owner_id, story_id = UUID(story.owner_id), UUID(story.story_id)
        recipient = await self._accounts.find(owner_id)
        if recipient:
            letter = texts.story_failed(recipient.first_name, story.reason)
            await self._notifier.notify(event, owner_id, NotificationType.STORY_FAILED, letter, story_id)
            await self._mailing.send(event.id, Template.STORY_FAILED, recipient, letter)
