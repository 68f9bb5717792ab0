"""Stops of email changes: a token, mailed to the former address, moves the account back to it.

A thief who took the account over can move it, because they hold what proves the owner. They do not hold the former mailbox: for
some days its token overrides, without a sign-in, all changes that came after.
"""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import timedelta

from storymesh.events.v1 import auth_events_pb2 as events
from uuid_utils.compat import uuid7

from kit.data.database import Database, Transaction
from kit.events import outbox
from kit.identity.caller import Origin
from kit.runtime import base64url
from kit.runtime.clock import Clock

from .. import store
from ..errors import EmailTaken, StopTokenInvalid
from ..model import Action, EmailChangeStop, Randomness, RevokeReason, User, canonical_email, digest
from .audit import Audit
from .endings import Endings
from .sealed_mails import SealedMails

log = logging.getLogger(__name__)

_PREFIX = "sms1_"
"""The number is the version of the format; the prefix lets secret scanners recognise a leaked token."""

_TOKEN_BYTES = 32

_MAILED_EVERY = timedelta(minutes=10)
"""At most one mail per address in this time, so that repeated requests flood no mailbox. One token stops all later changes."""


class EmailStops:
    """Offers and executes stops. `life` is how long a token is valid."""

    def __init__(
        self,
        db: Database,
        *,
        mails: SealedMails,
        endings: Endings,
        audit: Audit,
        clock: Clock,
        random: Randomness,
        life: timedelta,
    ) -> None:
        self._db = db
        self._mails = mails
        self._endings = endings
        self._audit = audit
        self._clock = clock
        self._random = random
        self._life = life

    async def offer(self, tx: Transaction, user: User) -> None:
        """Mail a token to the account's present address, in the transaction that begins the change and holds the account's lock.

        Mailed also when the new address has an account, because otherwise the mail would tell whether it has one.
        """
        now, profile = self._clock(), user.profile
        if await store.email_stops.mailed_since(tx, user.id, profile.email, now - _MAILED_EVERY):
            return
        token = _PREFIX + base64url.encode(self._random(_TOKEN_BYTES))
        stop = EmailChangeStop(uuid7(), user.id, profile.email, digest(token), now, now + self._life)
        await store.email_stops.insert(tx, stop)
        await outbox.add(tx, self._mails.email_change_begun(stop, token, profile.first_name), key=user.id)

    async def stop(self, token: str, origin: Origin) -> None:
        """Move the account back to the address to which the token was mailed. Raises StopTokenInvalid or EmailTaken.

        Ends all sessions and removes the password, because a thief who began the change may have either.
        """
        async with self._db.single() as tx:
            stop = await store.email_stops.find(tx, digest(token), self._clock())
        if stop is None:
            raise StopTokenInvalid
        async with (
            self._audit.attempt(Action.EMAIL_CHANGE_STOP, origin, subject_id=stop.user_id) as attempt,
            self._db.transaction() as tx,
        ):
            locked = await store.users.lock(tx, stop.user_id)
            if locked is None or not await store.email_stops.use(tx, stop):
                raise StopTokenInvalid
            await self._bring_back(tx, locked.user, stop.email)
            await store.users.remove_password(tx, stop.user_id, self._clock())
            await self._endings.end_all(tx, stop.user_id, RevokeReason.EMAIL_CHANGE_STOPPED)
            await outbox.add(tx, events.EmailChangeStopped(user_id=str(stop.user_id)), key=stop.user_id)
            await attempt.done(tx, actor_id=stop.user_id)
        log.warning("a change of the address of account %s was stopped", stop.user_id)

    async def _bring_back(self, tx: Transaction, user: User, email: str) -> None:
        lost = user.profile
        if canonical_email(lost.email) == canonical_email(email):
            return
        if not await store.users.set_profile(tx, user.id, replace(lost, email=email)):
            raise EmailTaken
        await store.registrations.delete_of(tx, email)
        await outbox.add(tx, events.UserUpdated(user_id=str(user.id)), key=user.id)
        await outbox.add(tx, self._mails.address_changed(user.id, lost.email, lost.first_name), key=user.id)
