"""Sessions, one per device: opening, refreshing, listing and ending them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from uuid import UUID

from uuid_utils.compat import uuid7

from kit.data.database import Database, Transaction
from kit.data.paging import Page, Pages
from kit.errors import SessionRevoked
from kit.events import outbox
from kit.identity.caller import Caller, Origin
from kit.runtime.clock import Clock

from .. import store
from ..errors import RefreshInvalid, RefreshReused, SessionNotFound, TooManyRefreshes
from ..model import (
    Action,
    Device,
    Randomness,
    RefreshToken,
    RevokeReason,
    Session,
    SignedIn,
    SignInMethod,
    Tokens,
    User,
    digest,
)
from ..model.device_tokens import DeviceTokens
from ..model.refresh_rules import Refresh, RefreshRules
from ..model.refresh_tokens import RefreshTokens, parse
from .access_tokens import AccessTokenIssuer
from .audit import Audit
from .endings import Endings
from .sealed_mails import SealedMails
from .throttle import network_of

log = logging.getLogger(__name__)

_NONCE_BYTES = 16


class Sessions:
    def __init__(
        self,
        db: Database,
        *,
        access_tokens: AccessTokenIssuer,
        refresh_tokens: RefreshTokens,
        device_tokens: DeviceTokens,
        rules: RefreshRules,
        most: int,
        endings: Endings,
        mails: SealedMails,
        audit: Audit,
        pages: Pages,
        clock: Clock,
        random: Randomness,
    ) -> None:
        self._db = db
        self._access_tokens = access_tokens
        self._refresh_tokens = refresh_tokens
        self._device_tokens = device_tokens
        self._rules = rules
        self._most = most
        self._endings = endings
        self._mails = mails
        self._audit = audit
        self._pages = pages
        self._clock = clock
        self._random = random

    async def open(
        self,
        tx: Transaction,
        user: User,
        device: Device,
        method: SignInMethod,
        *,
        device_token: str = "",
        registering: bool = False,
    ) -> SignedIn:
        """Open a session in the transaction of the authentication, which holds the account's lock.

        A known device keeps its device token. For an unknown one the owner is notified, because it may be a thief's; not at
        registration.
        """
        now = self._clock()
        session_id, nonce = uuid7(), self._random(_NONCE_BYTES)
        refresh_token = self._refresh_tokens.new(session_id, 1, nonce)
        session = Session(
            id=session_id,
            user_id=user.id,
            device=device,
            methods=(method,),
            created_at=now,
            last_used_at=now,
            expires_at=self._rules.expires_at(now, now + self._rules.absolute),
            ends_at=now + self._rules.absolute,
            generation=1,
            nonce=nonce,
            token_digest=digest(refresh_token),
            rotated_at=now,
            repeats=0,
        )
        known = device_token and self._device_tokens.name_of(device_token, user.id)
        unknown = not (known or registering)
        inserted = await store.sessions.insert(tx, session, most=self._most, with_addresses=unknown)
        session = inserted.session
        await self._endings.surplus_ended(tx, user.id, inserted.surplus)
        if unknown and not _is_familiar(device, inserted.addresses):
            await outbox.add(tx, self._mails.new_device(session), key=user.id)
        return SignedIn(
            session.id,
            user,
            self._tokens(session, user, refresh_token),
            device_token if known else self._device_tokens.make(user.id),
        )

    async def refresh(self, text: str, origin: Origin) -> Tokens:
        """Exchange a refresh token for its successor and a new access token.

        Raises RefreshInvalid, SessionRevoked, TooManyRefreshes or RefreshReused. The last has ended the session, unless the token
        was only repeated too often.
        """
        token = parse(text)
        if token is None:
            raise RefreshInvalid
        # Raise outside the transaction, because an error inside would roll the revocation back.
        async with self._db.transaction() as tx:
            outcome = await self._advance(tx, token, origin)
        match outcome:
            case (session, user):
                return self._tokens(session, user, self._refresh_tokens.newest_of(session))
            case Refresh.REVOKED:
                raise SessionRevoked
            case Refresh.REUSED | Refresh.REFUSE_REPEAT:
                raise RefreshReused
            case _:
                raise RefreshInvalid

    async def list(self, caller: Caller, page_size: int, page_token: str) -> Page[Session]:
        """The caller's live sessions, newest first. Raises InvalidArgument for a foreign page token."""
        query = f"sessions:{caller.user_id}"
        request = self._pages.request(query, page_size, page_token)
        async with self._db.transaction() as tx:
            rows = await store.sessions.page(tx, caller.user_id, request, self._clock())
        return self._pages.page(query, request.size, rows)

    async def revoke(self, caller: Caller, session_id: UUID, origin: Origin) -> None:
        """End one of the caller's sessions; idempotent. Raises SessionNotFound, also for another person's session."""
        async with self._audit.attempt(Action.SESSION_REVOKE, origin, caller) as attempt, self._db.transaction() as tx:
            if not await store.sessions.belongs_to(tx, session_id, caller.user_id):
                raise SessionNotFound
            await self._endings.require_live(tx, caller)
            if await self._endings.end(tx, caller.user_id, session_id, RevokeReason.REVOKED):
                await attempt.done(tx, session_id=session_id)

    async def revoke_others(self, caller: Caller, origin: Origin) -> int:
        """End all the caller's sessions except the present one, and return how many there were."""
        async with (
            self._audit.attempt(Action.SESSIONS_REVOKE_OTHERS, origin, caller) as attempt,
            self._db.transaction() as tx,
        ):
            await store.users.lock(tx, caller.user_id)
            await self._endings.require_live(tx, caller)
            ended = await self._endings.end_all(tx, caller.user_id, RevokeReason.REVOKED, but=caller.session_id)
            await attempt.done(tx)
        return ended

    async def log_out(self, caller: Caller, origin: Origin) -> None:
        """End the caller's session; idempotent."""
        async with self._audit.attempt(Action.LOGOUT, origin, caller) as attempt, self._db.transaction() as tx:
            if await self._endings.end(tx, caller.user_id, caller.session_id, RevokeReason.LOGOUT):
                await attempt.done(tx)

    async def _advance(self, tx: Transaction, token: RefreshToken, origin: Origin) -> tuple[Session, User] | Refresh:
        """The session after the refresh with its owner, or why it was refused."""
        # Repeat while another call on the same session wins the compare and swap.
        while True:
            now = self._clock()
            found = await store.sessions.find(tx, token.session_id)
            session, user = found or (None, None)
            ours = self._refresh_tokens.made(token, session.nonce if session else bytes(_NONCE_BYTES))
            verdict = self._rules.judge(session, token, ours=ours, now=now)
            if session is None or user is None:
                return verdict
            match verdict:
                case Refresh.ROTATE:
                    successor = self._refresh_tokens.new(session.id, session.generation + 1, session.nonce)
                    rotated = await store.sessions.rotate(
                        tx,
                        session,
                        token_digest=digest(successor),
                        expires_at=self._rules.expires_at(now, session.ends_at),
                        refreshed_until=self._rules.refreshed_until(session, now),
                        ip=origin.ip,
                        user_agent=origin.user_agent,
                        now=now,
                    )
                    if rotated:
                        return rotated, user
                case Refresh.REPEAT:
                    if self._rules.is_late(session, now):
                        session = self._rules.repeated_late(session)
                        log.info("a retry of session %s came late", session.id)
                    if await store.sessions.count_repeat(tx, session, self._rules.repeats):
                        return session, user
                case Refresh.REUSED:
                    if await self._endings.end(tx, user.id, session.id, RevokeReason.REFRESH_REUSED):
                        log.warning("a spent refresh token ended session %s", session.id)
                        await self._audit.reuse(tx, session, origin)
                        return verdict
                case Refresh.WAIT:
                    raise TooManyRefreshes(retry_after=self._rules.wait(session, now))
                case _:
                    return verdict

    def _tokens(self, session: Session, user: User, refresh_token: str) -> Tokens:
        access_token, access_expires_at = self._access_tokens.issue(session, user.role)
        return Tokens(
            access_token=access_token,
            access_expires_at=access_expires_at,
            refresh_token=refresh_token,
            refresh_expires_at=session.expires_at,
        )


def _is_familiar(device: Device, addresses: Sequence[str]) -> bool:
    """Whether the account had a session of the same agent, name and network: many clients do not store device tokens."""
    return network_of(device.ip) in map(network_of, addresses)
