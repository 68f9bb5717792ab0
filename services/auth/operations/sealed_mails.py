"""Events that carry an address or a code to the mail worker, sealed so that nothing on the way can read them."""

from __future__ import annotations

from uuid import UUID

from storymesh.events.v1 import auth_events_pb2 as events

from kit.identity.sealing import Seal

from ..model import EmailChangeStop, Purpose, Session
from .codes import Code

_PURPOSES = {
    Purpose.REGISTRATION: events.CODE_PURPOSE_REGISTRATION,
    Purpose.SIGN_IN: events.CODE_PURPOSE_SIGN_IN,
    Purpose.PASSWORD_RESET: events.CODE_PURPOSE_PASSWORD_RESET,
    Purpose.EMAIL_CHANGE: events.CODE_PURPOSE_EMAIL_CHANGE,
}

_TO_UNPROVEN_ADDRESSES = (Purpose.REGISTRATION, Purpose.EMAIL_CHANGE)

_Mail = events.CodeMail | events.AddressMail | events.EmailChangeMail | events.DeviceMail


class SealedMails:
    def __init__(self, seal: Seal) -> None:
        self._seal = seal

    def code_issued(
        self,
        challenge_id: UUID,
        purpose: Purpose,
        code: Code,
        email: str,
        first_name: str,
        *,
        reader: UUID | None = None,
    ) -> events.CodeIssued:
        """A code's event; without an address a decoy, dropped by the mail worker, so that events do not tell who has an account.

        `reader` is the account in whose language the mail is written.
        """
        name = "" if purpose in _TO_UNPROVEN_ADDRESSES else first_name
        mail = events.CodeMail(email=email, code=code.digits, first_name=name, user_id=str(reader or ""))
        event = events.CodeIssued(
            challenge_id=str(challenge_id), purpose=_PURPOSES[purpose], sealed_mail=_sealed(self._seal, mail)
        )
        event.expire_time.FromDatetime(code.expires_at)
        return event

    def address_changed(self, user_id: UUID, email: str, first_name: str) -> events.EmailChanged:
        """The notice of an address change, to the former address."""
        mail = events.AddressMail(email=email, first_name=first_name)
        return events.EmailChanged(user_id=str(user_id), sealed_mail=_sealed(self._seal, mail))

    def email_change_begun(self, stop: EmailChangeStop, token: str, first_name: str) -> events.EmailChangeBegun:
        """The notice of an email change that has begun, to the present address, with the token that stops it."""
        mail = events.EmailChangeMail(email=stop.email, first_name=first_name, stop_token=token)
        event = events.EmailChangeBegun(user_id=str(stop.user_id), sealed_mail=_sealed(self._seal, mail))
        event.stop_expire_time.FromDatetime(stop.expires_at)
        return event

    def account_deleted(self, email: str, first_name: str) -> events.AccountDeleted:
        """The notice of a deletion, with the former address, which auth cannot look up any more when the mail is sent."""
        mail = events.AddressMail(email=email, first_name=first_name)
        return events.AccountDeleted(sealed_mail=_sealed(self._seal, mail))

    def new_device(self, session: Session) -> events.NewDeviceSignedIn:
        mail = events.DeviceMail(device_name=session.device.name, ip=session.device.ip)
        mail.sign_in_time.FromDatetime(session.created_at)
        return events.NewDeviceSignedIn(user_id=str(session.user_id), sealed_device=_sealed(self._seal, mail))


def _sealed(seal: Seal, mail: _Mail) -> bytes:
    """Seal a message. Its full name is the seal's purpose, which notification opens it with."""
    return seal.seal(mail.DESCRIPTOR.full_name, mail.SerializeToString())
