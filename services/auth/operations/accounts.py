"""Accounts: read, update and delete them, and grant the administrator's role."""

from __future__ import annotations

import logging
from uuid import UUID

from storymesh.events.v1 import auth_events_pb2 as events
from uuid_utils.compat import uuid7

from kit.data.database import Database
from kit.data.shared_reads import SharedRead
from kit.errors import SessionRevoked
from kit.events import outbox
from kit.identity.caller import Caller, Origin, Role

from .. import store
from ..errors import AccountNotFound, UsernameTaken
from ..model import Action, OwnProof, ProfileChange, Proven, RevokeReason, User, canonical_username
from .audit import Attempt, Audit
from .endings import Endings
from .proofs import OwnerProofs
from .sealed_mails import SealedMails
from .username_tries import UsernameTries

log = logging.getLogger(__name__)

AT_THE_SERVER = Origin("", "command line")
"""The origin of operators' commands."""


class Accounts:
    def __init__(
        self,
        db: Database,
        *,
        endings: Endings,
        owner_proofs: OwnerProofs,
        username_tries: UsernameTries,
        mails: SealedMails,
        audit: Audit,
    ) -> None:
        self._db = db
        self._found = SharedRead(db, store.users.find_all)
        self._live = SharedRead(db, endings.live_among)
        self._endings = endings
        self._owner_proofs = owner_proofs
        self._username_tries = username_tries
        self._mails = mails
        self._audit = audit

    async def own(self, caller: Caller) -> User:
        """The caller's account, if the session has not ended. Raises AccountNotFound or SessionRevoked."""
        user = await self._found.find(caller.user_id)
        if user is None:
            raise AccountNotFound
        if not await self._live.find(caller.session_id):
            raise SessionRevoked
        return user

    async def get(self, user_id: UUID) -> User:
        """Any account, for other services. Raises AccountNotFound."""
        user = await self._found.find(user_id)
        if user is None:
            raise AccountNotFound(user_id=user_id)
        return user

    async def update(self, caller: Caller, change: ProfileChange, origin: Origin) -> User:
        """Update the profile and return the account. Raises UsernameTaken, TooManyUsernameChanges or SessionRevoked."""
        if change.username:
            await self._count_username(caller, change.username, origin)
        async with self._audit.attempt(Action.ACCOUNT_UPDATE, origin, caller) as attempt, self._db.transaction() as tx:
            locked = await store.users.lock(tx, caller.user_id)
            if locked is None:
                raise SessionRevoked
            await self._endings.require_live(tx, caller)
            user = locked.user
            changed = user.changed(change.of(user.profile))
            if changed != user:
                if not await store.users.set_profile(tx, user.id, changed.profile):
                    raise UsernameTaken
                await outbox.add(tx, events.UserUpdated(user_id=str(user.id)), key=user.id)
                if changed.profile.username != user.profile.username:
                    await outbox.add(tx, events.UsernameChanged(user_id=str(user.id)), key=user.id)
                await attempt.done(tx)
        return changed

    async def _count_username(self, caller: Caller, username: str, origin: Origin) -> None:
        """Count a try of a username. The caller's own, in any letter case, is free, because it tells nothing about others."""
        async with self._db.single() as tx:
            user = await store.users.find(tx, caller.user_id)
        if user and canonical_username(user.profile.username or "") != canonical_username(username):
            await self._username_tries.count(caller.user_id, origin.ip)

    async def delete(self, caller: Caller, proof: OwnProof, origin: Origin) -> None:
        """Delete the caller's account permanently. Raises SessionRevoked, or as OwnerProofs does."""
        async with (
            self._audit.attempt(Action.ACCOUNT_DELETE, origin, caller) as attempt,
            self._owner_proofs.given(caller, proof, attempt) as proven,
        ):
            await self._erase(caller, attempt, proven)
        log.info("account %s was deleted", caller.user_id)

    async def _erase(self, caller: Caller, attempt: Attempt, proven: Proven) -> None:
        user_id = caller.user_id
        async with self._db.transaction() as tx:
            locked = await self._owner_proofs.confirm(tx, caller, proven)
            await self._endings.end_account(tx, user_id)
            await store.registrations.delete_of(tx, locked.user.profile.email)
            await store.users.delete(tx, user_id)
            await attempt.done(tx)
            await store.audit.erase_person(tx, user_id)
            # Published outbox rows of the account carry sealed addresses.
            await outbox.forget(tx, key=user_id)
            profile = locked.user.profile
            # A random key of its own, so that nothing in the event leads to the former account.
            await outbox.add(tx, self._mails.account_deleted(profile.email, profile.first_name), key=uuid7())
            await outbox.add(tx, events.UserDeleted(user_id=str(user_id)), key=user_id)


class Roles:
    """Grants and withdraws the administrator's role, by commands at the server only and never through an API."""

    def __init__(self, db: Database, endings: Endings, audit: Audit) -> None:
        self._db = db
        self._endings = endings
        self._audit = audit

    async def set(self, email: str, role: Role) -> bool:
        """Set the role. False if the account has it already. Raises AccountNotFound."""
        action = Action.ROLE_GRANT if role is Role.ADMIN else Action.ROLE_WITHDRAW
        async with self._audit.attempt(action, AT_THE_SERVER) as attempt, self._db.transaction() as tx:
            found = await store.users.find_by_email(tx, email)
            locked = found and await store.users.lock(tx, found.id)
            if not locked:
                raise AccountNotFound
            user = locked.user
            if user.role is role:
                return False
            attempt.concerns(user.id)
            await store.users.set_role(tx, user.id, role)
            if role is not Role.ADMIN:
                # Access tokens carry the role, so all sessions end.
                await self._endings.end_all(tx, user.id, RevokeReason.ROLE_CHANGED)
            await outbox.add(tx, events.UserUpdated(user_id=str(user.id)), key=user.id)
            await attempt.done(tx)
        return True
