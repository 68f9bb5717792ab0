"""Registrations: no account exists before the address is proven, so nobody can prepare one for another person's address."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

from storymesh.events.v1 import auth_events_pb2 as events
from uuid_utils.compat import uuid7

from kit.data.database import Database, Transaction
from kit.events import outbox
from kit.identity.caller import Origin, Role
from kit.runtime.clock import Clock

from .. import store
from ..errors import CodeInvalid, TooManyUsernames, UsernameTaken
from ..model import (
    Action,
    Device,
    Profile,
    Purpose,
    Randomness,
    Registration,
    SignedIn,
    SignInMethod,
    Started,
    User,
    canonical_email,
    canonical_username,
)
from ..model.password_policy import PasswordPolicy, normalized
from .audit import Attempt, Audit
from .codes import Code, Codes, Requester
from .passwords import Passwords
from .sealed_mails import SealedMails
from .sessions import Sessions

log = logging.getLogger(__name__)

_MOST_REFUSED = 5
"""Taken usernames that one registration may try: enough to find a free one, too few to list those of others."""


class Registrations:
    """Registers people. Only the mail tells whether an address has an account; answers and the work for them do not."""

    def __init__(
        self,
        db: Database,
        *,
        codes: Codes,
        passwords: Passwords,
        policy: PasswordPolicy,
        sessions: Sessions,
        mails: SealedMails,
        audit: Audit,
        clock: Clock,
        random: Randomness,
        life: timedelta,
    ) -> None:
        self._db = db
        self._codes = codes
        self._passwords = passwords
        self._policy = policy
        self._sessions = sessions
        self._mails = mails
        self._audit = audit
        self._clock = clock
        self._random = random
        self._life = life

    async def start(self, profile: Profile, password: str | None, origin: Origin) -> Started:
        """Begin a registration and mail its code. Without a password the account will sign in by codes.

        A taken username is reported only at completion, when the address is proven, because anyone could otherwise list usernames.
        Raises InvalidArgument, Overloaded or TooManyCodes.
        """
        password_hash = None
        if password is not None:
            self._policy.check(normalized(password), profile)
            password_hash = await self._passwords.hash(password)
        # Random bits of a version 4 UUID: 122.
        registration_id = UUID(bytes=self._random(16), version=4)
        # Issue the code in Redis before the transaction: if that fails, the code was never mailed and expires.
        code = await self._codes.issue(registration_id, canonical_email(profile.email), Requester.at(origin.ip))
        now = self._clock()
        registration = Registration(registration_id, profile, password_hash, now, now + self._life)
        async with self._db.transaction() as tx:
            await store.registrations.insert(tx, registration)
            if code.is_due:
                await self._announce(tx, registration, code)
        return Started(registration_id, code.expires_at)

    async def resend(self, registration_id: UUID, origin: Origin) -> datetime:
        """Mail another code, and return the expiry of the live one. Unknown registrations get the same answer and the same budget.

        Raises TooManyCodes or CodeAttemptsSpent.
        """
        now = self._clock()
        async with self._db.transaction() as tx:
            registration = await store.registrations.find(tx, registration_id, now)
        requester = Requester.at(origin.ip)
        if registration is None:
            return (await self._codes.renew(registration_id, f"unknown {registration_id}", requester)).expires_at
        code = await self._codes.renew(registration_id, canonical_email(registration.profile.email), requester)
        async with self._db.transaction() as tx:
            if code.is_due and await store.registrations.extend(tx, registration_id, now + self._life):
                await self._announce(tx, registration, code)
        return code.expires_at

    async def complete(
        self, registration_id: UUID, digits: str, device: Device, username: str | None = None
    ) -> SignedIn:
        """Create the account and sign the device in.

        `username` replaces the one of the registration's start; empty means none. Raises CodeInvalid, UsernameTaken or
        TooManyUsernames; after the latter two the code is still valid.
        """
        origin = Origin(device.ip, device.user_agent)
        async with self._audit.attempt(Action.REGISTRATION, origin) as attempt:
            async with self._db.transaction() as tx:
                registration = await store.registrations.find(tx, registration_id, self._clock())
            if registration is None:
                raise CodeInvalid
            async with self._codes.redeemed(registration_id, canonical_email(registration.profile.email), digits):
                name = registration.profile.username if username is None else username or None
                try:
                    return await self._create(registration_id, name, device, attempt)
                except UsernameTaken:
                    await self._note_refused(registration_id, name)
                    raise

    async def _create(self, registration_id: UUID, username: str | None, device: Device, attempt: Attempt) -> SignedIn:
        async with self._db.transaction() as tx:
            # Read it again under the claim: expiry and tried usernames are in the database only.
            registration = await store.registrations.find(tx, registration_id, self._clock())
            if registration is None:
                raise CodeInvalid
            _require_tries(registration.usernames_refused, username)
            profile, password_hash = replace(registration.profile, username=username), registration.password_hash
            user = User(uuid7(), profile, Role.USER, self._clock(), has_password=password_hash is not None)
            # The insert blocks here while another transaction inserts the same address or username.
            if not await store.users.insert(tx, user, password_hash):
                raise CodeInvalid if await store.users.find_by_email(tx, profile.email) else UsernameTaken
            await store.registrations.delete_of(tx, profile.email)
            signed_in = await self._sessions.open(tx, user, device, SignInMethod.CODE, registering=True)
            attempt.concerns(user.id)
            await attempt.done(tx, actor_id=user.id, session_id=signed_in.session_id)
            await outbox.add(tx, events.UserRegistered(user_id=str(user.id)), key=user.id)
        log.info("account %s was created", user.id)
        return signed_in

    async def _note_refused(self, registration_id: UUID, username: str | None) -> None:
        if username:
            async with self._db.single() as tx:
                await store.registrations.note_refused_username(tx, registration_id, canonical_username(username))

    async def _announce(self, tx: Transaction, registration: Registration, code: Code) -> None:
        """Mail the code, or tell the owner of an account that somebody tried to register their address."""
        profile = registration.profile
        # Build the event in either case, so that both take the same time.
        issued = self._mails.code_issued(registration.id, Purpose.REGISTRATION, code, profile.email, profile.first_name)
        owner = await store.users.find_by_email(tx, profile.email)
        if owner is None:
            await outbox.add(tx, issued, key=registration.id)
        else:
            await outbox.add(tx, events.RegistrationRepeated(user_id=str(owner.id)), key=owner.id)


def _require_tries(refused: Sequence[str], username: str | None) -> None:
    if username and canonical_username(username) not in refused and len(refused) >= _MOST_REFUSED:
        raise TooManyUsernames
