"""Handles the events about which people get notices."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TypeVar
from uuid import UUID

from google.protobuf.message import DecodeError, Message
from storymesh.events.v1 import auth_events_pb2, story_events_pb2

from kit.data.database import Transaction
from kit.events import erasure
from kit.events.envelope import Event, Undecodable, time_in, uuid_in
from kit.events.inbox import Handler, Inbox, Permanent, backoff_seconds
from kit.events.inbox_stream import InboxTuning
from kit.identity.sealing import Seal, Unsealable
from kit.rpc.resources import Resources
from kit.runtime.clock import Clock

from .config import NotificationWorkerSettings
from .model import Letter, NotificationType, Recipient, Template, texts
from .operations import WorkerOperations
from .peers import AccountDirectory

_TUNING = InboxTuning()

SEAL_PURPOSE = auth_events_pb2.CodeMail.DESCRIPTOR.full_name
ADDRESS_SEAL_PURPOSE = auth_events_pb2.AddressMail.DESCRIPTOR.full_name

_CODES = {
    auth_events_pb2.CODE_PURPOSE_REGISTRATION: Template.CODE,
    auth_events_pb2.CODE_PURPOSE_SIGN_IN: Template.SIGN_IN_CODE,
    auth_events_pb2.CODE_PURPOSE_PASSWORD_RESET: Template.PASSWORD_RESET_CODE,
    auth_events_pb2.CODE_PURPOSE_EMAIL_CHANGE: Template.EMAIL_CHANGE_CODE,
}

_NOTICES: Mapping[str, Callable[[], Message]] = {
    message.DESCRIPTOR.full_name: message
    for message in (
        auth_events_pb2.RegistrationRepeated,
        auth_events_pb2.UserRegistered,
        auth_events_pb2.SessionRevoked,
        auth_events_pb2.PasswordChanged,
        auth_events_pb2.PasswordDisabled,
        auth_events_pb2.EmailChanged,
        auth_events_pb2.AddressClaimed,
        auth_events_pb2.EmailChangeBegun,
        auth_events_pb2.EmailChangeStopped,
        auth_events_pb2.NewDeviceSignedIn,
        auth_events_pb2.UsernameChanged,
        story_events_pb2.StoryCompleted,
        story_events_pb2.StoryFailed,
    )
}
"""The events that are a notice to one person. Without UserDeleted: skipping it for erased people would skip the erasure itself."""

M = TypeVar("M", bound=Message)


class Worker:
    """Event handlers, idempotent: notifications and mails are recorded by event."""

    def __init__(
        self, ops: WorkerOperations, accounts: AccountDirectory, seal: Seal, clock: Clock, *, public_url: str
    ) -> None:
        self._mailing = ops.mailing
        self._notifier = ops.notifier
        self._erasing = ops.erasing
        self._accounts = accounts
        self._seal = seal
        self._clock = clock
        self._public_url = public_url.rstrip("/")

    def handlers(self) -> Mapping[str, Handler]:
        """The handlers by the full name of the event's message."""
        return {
            auth_events_pb2.CodeIssued.DESCRIPTOR.full_name: self.code_issued,
            auth_events_pb2.RegistrationRepeated.DESCRIPTOR.full_name: self.registration_repeated,
            auth_events_pb2.UserRegistered.DESCRIPTOR.full_name: self.user_registered,
            auth_events_pb2.UserDeleted.DESCRIPTOR.full_name: self.user_deleted,
            auth_events_pb2.SessionRevoked.DESCRIPTOR.full_name: self.session_revoked,
            auth_events_pb2.PasswordChanged.DESCRIPTOR.full_name: self.password_changed,
            auth_events_pb2.PasswordDisabled.DESCRIPTOR.full_name: self.password_disabled,
            auth_events_pb2.EmailChanged.DESCRIPTOR.full_name: self.email_changed,
            auth_events_pb2.AddressClaimed.DESCRIPTOR.full_name: self.address_claimed,
            auth_events_pb2.EmailChangeBegun.DESCRIPTOR.full_name: self.email_change_begun,
            auth_events_pb2.EmailChangeStopped.DESCRIPTOR.full_name: self.email_change_stopped,
            auth_events_pb2.NewDeviceSignedIn.DESCRIPTOR.full_name: self.new_device,
            auth_events_pb2.UsernameChanged.DESCRIPTOR.full_name: self.username_changed,
            auth_events_pb2.AccountDeleted.DESCRIPTOR.full_name: self.account_deleted,
            story_events_pb2.StoryCompleted.DESCRIPTOR.full_name: self.story_completed,
            story_events_pb2.StoryFailed.DESCRIPTOR.full_name: self.story_failed,
        }

    async def code_issued(self, event: Event) -> None:
        issued = event.decode(auth_events_pb2.CodeIssued)
        template = _CODES.get(issued.purpose)
        if template is None:
            raise Permanent(f"this version has no words for codes of purpose {issued.purpose}")
        left = time_in(issued, "expire_time") - self._clock()
        if left.total_seconds() <= 0:
            await self._mailing.expire(event.id, template)
            return
        mail = self._unsealed(auth_events_pb2.CodeMail, issued.sealed_mail)
        if not mail.email:
            await self._mailing.drop(event)
            return
        letter = texts.code(template, mail.first_name, mail.code, math.ceil(left.total_seconds() / 60))
        await self._mailing.send(event.id, template, Recipient(mail.email, mail.first_name), letter)

    async def registration_repeated(self, event: Event) -> None:
        user_id = uuid_in(event.decode(auth_events_pb2.RegistrationRepeated), "user_id")
        await self._tell(event, user_id, Template.REGISTRATION_REPEATED, texts.registration_repeated)

    async def user_registered(self, event: Event) -> None:
        user_id = uuid_in(event.decode(auth_events_pb2.UserRegistered), "user_id")
        await self._tell(event, user_id, Template.WELCOME, texts.welcome, kind=NotificationType.WELCOME)

    async def user_deleted(self, event: Event) -> None:
        await self._erasing.erase(uuid_in(event.decode(auth_events_pb2.UserDeleted), "user_id"))

    async def session_revoked(self, event: Event) -> None:
        """Send a notice of refresh-token reuse only: the owner caused the other endings, or gets other notices of them."""
        revoked = event.decode(auth_events_pb2.SessionRevoked)
        if revoked.reason == auth_events_pb2.SESSION_REVOKE_REASON_REFRESH_REUSED:
            user_id = uuid_in(revoked, "user_id")
            await self._tell(
                event, user_id, Template.SESSION_REVOKED, texts.refresh_reused, kind=NotificationType.SESSION_REVOKED
            )

    async def password_changed(self, event: Event) -> None:
        changed = event.decode(auth_events_pb2.PasswordChanged)
        user_id = uuid_in(changed, "user_id")

        def write(first_name: str) -> Letter:
            return texts.password_changed(first_name, reset=changed.reset)

        await self._tell(event, user_id, Template.PASSWORD_CHANGED, write, kind=NotificationType.PASSWORD_CHANGED)

    async def password_disabled(self, event: Event) -> None:
        user_id = uuid_in(event.decode(auth_events_pb2.PasswordDisabled), "user_id")
        await self._tell(
            event, user_id, Template.PASSWORD_DISABLED, texts.password_disabled, kind=NotificationType.PASSWORD_DISABLED
        )

    async def email_changed(self, event: Event) -> None:
        """Mail the old address, which comes in the event because auth does not have it any more."""
        changed = event.decode(auth_events_pb2.EmailChanged)
        user_id = uuid_in(changed, "user_id")
        mail = self._unsealed(auth_events_pb2.AddressMail, changed.sealed_mail)
        letter = texts.email_changed(mail.first_name)
        await self._notifier.notify(event, user_id, NotificationType.EMAIL_CHANGED, letter)
        recipient = Recipient(mail.email, mail.first_name, user_id)
        await self._mailing.send(event.id, Template.EMAIL_CHANGED, recipient, letter)

    async def email_change_begun(self, event: Event) -> None:
        """Mail the address that the account had when the change began, even if it has changed since."""
        begun = event.decode(auth_events_pb2.EmailChangeBegun)
        mail = self._unsealed(auth_events_pb2.EmailChangeMail, begun.sealed_mail)
        url = f"{self._public_url}/v1/account:stopEmailChange"
        letter = texts.email_change_begun(mail.first_name, url, mail.stop_token, time_in(begun, "stop_expire_time"))
        recipient = Recipient(mail.email, mail.first_name, uuid_in(begun, "user_id"))
        await self._mailing.send(event.id, Template.EMAIL_CHANGE_BEGUN, recipient, letter)

    async def email_change_stopped(self, event: Event) -> None:
        user_id = uuid_in(event.decode(auth_events_pb2.EmailChangeStopped), "user_id")
        await self._tell(event, user_id, Template.EMAIL_CHANGE_STOPPED, texts.email_change_stopped)

    async def address_claimed(self, event: Event) -> None:
        user_id = uuid_in(event.decode(auth_events_pb2.AddressClaimed), "user_id")
        await self._tell(event, user_id, Template.ADDRESS_CLAIMED, texts.address_claimed)

    async def new_device(self, event: Event) -> None:
        signed_in = event.decode(auth_events_pb2.NewDeviceSignedIn)
        device = self._unsealed(auth_events_pb2.DeviceMail, signed_in.sealed_device)

        def write(first_name: str) -> Letter:
            return texts.new_device(first_name, device.device_name, device.ip, time_in(device, "sign_in_time"))

        await self._tell(event, uuid_in(signed_in, "user_id"), Template.NEW_DEVICE, write)

    async def username_changed(self, event: Event) -> None:
        user_id = uuid_in(event.decode(auth_events_pb2.UsernameChanged), "user_id")
        await self._tell(event, user_id, Template.USERNAME_CHANGED, texts.username_changed)

    async def account_deleted(self, event: Event) -> None:
        """Mail an address that auth does not have any more. The event has no account id, so that the mail outlives the erasure."""
        sealed = event.decode(auth_events_pb2.AccountDeleted).sealed_mail
        mail = self._unsealed(auth_events_pb2.AddressMail, sealed)
        recipient = Recipient(mail.email, mail.first_name)
        await self._mailing.send(event.id, Template.ACCOUNT_DELETED, recipient, texts.account_deleted(mail.first_name))

    async def story_completed(self, event: Event) -> None:
        story = event.decode(story_events_pb2.StoryCompleted)
        owner_id, story_id = uuid_in(story, "owner_id"), uuid_in(story, "story_id")

        def write(first_name: str) -> Letter:
            return texts.story_ready(first_name, story.title, f"{self._public_url}/v1/stories/{story_id}")

        await self._tell(
            event, owner_id, Template.STORY_READY, write, kind=NotificationType.STORY_READY, story_id=story_id
        )

    async def story_failed(self, event: Event) -> None:
        story = event.decode(story_events_pb2.StoryFailed)
        owner_id, story_id = uuid_in(story, "owner_id"), uuid_in(story, "story_id")

        def write(first_name: str) -> Letter:
            return texts.story_failed(first_name, story.reason)

        await self._tell(
            event, owner_id, Template.STORY_FAILED, write, kind=NotificationType.STORY_FAILED, story_id=story_id
        )

    async def _tell(
        self,
        event: Event,
        user_id: UUID,
        template: Template,
        write: Callable[[str], Letter],
        *,
        kind: NotificationType | None = None,
        story_id: UUID | None = None,
    ) -> None:
        """Send a mail, and a notification if `kind` is given. `write` takes the first name. Does nothing for a deleted account."""
        recipient = await self._accounts.find(user_id)
        if recipient is None:
            return
        letter = write(recipient.first_name)
        if kind:
            await self._notifier.notify(event, user_id, kind, letter, story_id)
        await self._mailing.send(event.id, template, recipient, letter)

    def _unsealed(self, message: type[M], sealed: bytes) -> M:
        """Unseal a message. Raises Permanent."""
        try:
            return message.FromString(self._seal.unseal(message.DESCRIPTOR.full_name, sealed))
        except (Unsealable, DecodeError):
            raise Permanent(
                "the sealed mail cannot be opened; do auth and notification have the same seal key?"
            ) from None


def inbox(
    settings: NotificationWorkerSettings,
    resources: Resources,
    ops: WorkerOperations,
    accounts: AccountDirectory,
    *,
    backoff: Callable[[int], float] = backoff_seconds,
    tuning: InboxTuning = _TUNING,
) -> Inbox:
    """Build the inbox. `backoff` gives the pause in seconds after that many failures of an event."""
    seal = Seal(settings.seal_key.get_secret_value())
    worker = Worker(ops, accounts, seal, resources.clock, public_url=settings.public_url)
    return Inbox(
        resources.db,
        resources.redis,
        "notification",
        worker.handlers(),
        lease_seconds=settings.lease_seconds,
        concurrency=settings.mail_concurrency,
        max_failures=settings.max_failures,
        backoff=backoff,
        forgotten=forgotten,
        records_events=True,
        tuning=tuning,
    )


async def forgotten(tx: Transaction, event: Event) -> bool:
    """Whether the event is a notice to an erased person."""
    message = _NOTICES.get(event.type)
    if message is None:
        return False
    try:
        notice = event.decode(message)
        person = uuid_in(notice, "owner_id" if "owner_id" in notice.DESCRIPTOR.fields_by_name else "user_id")
    except Undecodable:
        return False
    return await erasure.is_erased(tx, person)
