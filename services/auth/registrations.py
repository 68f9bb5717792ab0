"""Sign-up: no account exists before the address is proven, so nobody can prepare an account for somebody else's address."""

from __future__ import annotations

import logging
from datetime import datetime, timedelta
from uuid import UUID

from google.protobuf.message import Message
from storymesh.events.v1 import auth_events_pb2 as events
from uuid_utils.compat import uuid7

from services.kit import outbox
from services.kit.caller import Origin, Role
from services.kit.clock import Clock
from services.kit.database import Database, Transaction

from . import store
from .audit import Audit
from .codes import Code, Codes
from .errors import CodeInvalid, UsernameTaken
from .model import (
    Action,
    Device,
    Method,
    Profile,
    Purpose,
    Randomness,
    Registration,
    SignedIn,
    Started,
    User,
    canonical_email,
)
from .password_policy import PasswordPolicy, normalized
from .passwords import Passwords
from .sealed_mails import SealedMails
from .sessions import Sessions

log = logging.getLogger(__name__)


class Registrations:
    """Whether an address has an account shows neither in the answers nor in the work done for them, only in the mail."""

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

    async def start(self, profile: Profile, password: str) -> Started:
        """Raises InvalidArgument, Overloaded or TooManyCodes.

        A username that is taken shows only when the address is proven: usernames sign people in, and before that anybody could
        ask for them by the thousand.
        """
        self._policy.check(normalized(password), profile)
        password_hash = await self._passwords.hash(password)
        # 122 random bits, as from uuid4.
        registration_id = UUID(bytes=self._random(16), version=4)
        # Redis first: if the transaction then fails, the code was never sent and simply ends.
        code = await self._codes.issue(registration_id, canonical_email(profile.email))
        now = self._clock()
        registration = Registration(registration_id, profile, password_hash, now, now + self._life)
        async with self._db.transaction() as tx:
            await store.registrations.insert(tx, registration)
            await self._announce(tx, registration, code)
        return Started(registration_id, code.expires_at)

    async def resend(self, registration_id: UUID) -> datetime:
        """The end of the new code. An unknown registration gets the same answer, and the same cool-down.

        Raises TooManyCodes or CodeAttemptsSpent.
        """
        now = self._clock()
        async with self._db.transaction() as tx:
            registration = await store.registrations.find(tx, registration_id, now)
        if registration is None:
            return (await self._codes.issue(registration_id, f"unknown {registration_id}")).expires_at
        code = await self._codes.issue(registration_id, canonical_email(registration.profile.email))
        async with self._db.transaction() as tx:
            if await store.registrations.extend(tx, registration_id, now + self._life):
                await self._announce(tx, registration, code)
        return code.expires_at

    async def complete(self, registration_id: UUID, digits: str, device: Device) -> SignedIn:
        """Creates the account and signs the device in.

        Raises CodeInvalid or UsernameTaken; after the latter the code is still good.
        """
        origin = Origin(device.ip, device.user_agent)
        async with self._audit.attempt(Action.REGISTRATION, origin) as attempt:
            async with self._db.transaction() as tx:
                registration = await store.registrations.find(tx, registration_id, self._clock())
            if registration is None:
                raise CodeInvalid
            email = registration.profile.email
            async with (
                self._codes.redeemed(registration_id, canonical_email(email), digits),
                self._db.transaction() as tx,
            ):
                user = User(uuid7(), registration.profile, Role.USER, self._clock())
                # Whoever comes second for the same address or username waits here for the first.
                if not await store.users.insert(tx, user, registration.password_hash):
                    raise CodeInvalid if await store.users.find_by_email(tx, email) else UsernameTaken
                await store.registrations.delete_of(tx, email)
                signed_in = await self._sessions.open(tx, user, device, Method.CODE)
                attempt.concerns(user.id)
                await attempt.done(tx, actor_id=user.id, session_id=signed_in.session_id)
                await outbox.add(tx, events.UserRegistered(user_id=str(user.id)), key=user.id)
        log.info("account %s was created", user.id)
        return signed_in

    async def _announce(self, tx: Transaction, registration: Registration, code: Code) -> None:
        """Mails the code, or tells the owner of an account that somebody tried to register their address."""
        profile = registration.profile
        # Made in either case, so that both take the same time.
        issued = self._mails.code_issued(registration.id, Purpose.REGISTRATION, code, profile.email, profile.first_name)
        owner = await store.users.find_by_email(tx, profile.email)
        event: Message = issued if owner is None else events.RegistrationRepeated(user_id=str(owner.id))
        await outbox.add(tx, event, key=owner.id if owner else registration.id)
