"""Email changes: moving an account to another address, once its owner has proven to have it."""

from __future__ import annotations

from dataclasses import replace

from storymesh.events.v1 import auth_events_pb2 as events

from kit.data.database import Database, Transaction
from kit.errors import InvalidArgument, SessionRevoked, Violation
from kit.events import outbox
from kit.identity.caller import Caller, Origin

from .. import store
from ..errors import CodeInvalid, EmailTaken
from ..model import Action, CodeAnswer, OwnProof, Proven, Purpose, Started, User, canonical_email
from .audit import Audit
from .email_stops import EmailStops
from .endings import Endings
from .proofs import CodeProofs, OwnerProofs
from .sealed_mails import SealedMails


class EmailChanges:
    def __init__(
        self,
        db: Database,
        *,
        owner_proofs: OwnerProofs,
        code_proofs: CodeProofs,
        mails: SealedMails,
        stops: EmailStops,
        endings: Endings,
        audit: Audit,
    ) -> None:
        self._db = db
        self._owner_proofs = owner_proofs
        self._code_proofs = code_proofs
        self._mails = mails
        self._stops = stops
        self._endings = endings
        self._audit = audit

    async def start(self, caller: Caller, new_email: str, proof: OwnProof, origin: Origin) -> Started:
        """Mail a code to the new address. If that has an account, warn its owner instead, with the same answer to the caller.

        Mails a token that stops the change to the account's present address.

        Raises SessionRevoked, InvalidArgument, TooManyCodes, or as OwnerProofs does.
        """
        async with (
            self._audit.attempt(Action.EMAIL_CHANGE_START, origin, caller) as attempt,
            self._owner_proofs.given(caller, proof, attempt) as proven,
        ):
            if canonical_email(new_email) == canonical_email(proven.account.user.profile.email):
                raise InvalidArgument([Violation("new_email", "is the account's address already", "EMAIL_UNCHANGED")])
            async with self._db.single() as tx:
                await self._endings.require_live(tx, caller)
            return await self._code_proofs.start_for(
                proven.account,
                Purpose.EMAIL_CHANGE,
                new_email,
                attempt,
                confirm=lambda tx: self._begin(tx, caller, proven),
            )

    async def _begin(self, tx: Transaction, caller: Caller, proven: Proven) -> None:
        account = await self._owner_proofs.confirm(tx, caller, proven)
        await self._stops.offer(tx, account.user)

    async def complete(self, caller: Caller, answer: CodeAnswer, origin: Origin) -> User:
        """Move the account, notify the old address and return the account. Raises CodeInvalid, EmailTaken or SessionRevoked."""
        async with (
            self._audit.attempt(Action.EMAIL_CHANGE, origin, caller) as attempt,
            self._code_proofs.redeemed(Purpose.EMAIL_CHANGE, answer, attempt) as challenge,
        ):
            if challenge.user_id != caller.user_id or challenge.email is None:
                raise CodeInvalid
            async with self._db.transaction() as tx:
                locked = await store.users.lock(tx, caller.user_id)
                if locked is None:
                    raise SessionRevoked
                await self._endings.require_live(tx, caller)
                if not challenge.holds(locked):
                    raise CodeInvalid
                await self._code_proofs.use(tx, challenge)
                user, old = locked.user, locked.user.profile
                changed = user.changed(replace(old, email=challenge.email))
                if not await store.users.set_profile(tx, user.id, changed.profile):
                    raise EmailTaken
                await store.registrations.delete_of(tx, challenge.email)
                await outbox.add(tx, events.UserUpdated(user_id=str(user.id)), key=user.id)
                await outbox.add(tx, self._mails.address_changed(user.id, old.email, old.first_name), key=user.id)
                await attempt.done(tx)
        return changed
