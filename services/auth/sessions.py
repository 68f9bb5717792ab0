"""Signing in with a password, staying signed in, signing out."""

from __future__ import annotations

import logging

from uuid_utils.compat import uuid7

from services.kit.caller import Caller, Origin
from services.kit.clock import Clock
from services.kit.database import Database, Transaction

from . import store
from .access_tokens import AccessTokenIssuer
from .errors import InvalidCredentials, Overloaded, RefreshInvalid, RefreshReused, SessionRevoked
from .model import (
    Device,
    Method,
    Randomness,
    Refresh,
    RefreshRules,
    RefreshToken,
    RevokeReason,
    Session,
    SignedIn,
    Tokens,
    User,
    canonical_login,
    digest,
)
from .passwords import Passwords
from .refresh_tokens import RefreshTokens, parse
from .throttle import SignInThrottle

log = logging.getLogger(__name__)

_NONCE_BYTES = 16


class Sessions:
    def __init__(
        self,
        db: Database,
        access_tokens: AccessTokenIssuer,
        refresh_tokens: RefreshTokens,
        rules: RefreshRules,
        *,
        clock: Clock,
        random: Randomness,
    ) -> None:
        self._db = db
        self._access_tokens = access_tokens
        self._refresh_tokens = refresh_tokens
        self._rules = rules
        self._clock = clock
        self._random = random

    async def open(self, tx: Transaction, user: User, device: Device, *methods: Method) -> Tokens:
        """A new session, in the transaction of what proved who the person is."""
        now = self._clock()
        session_id, nonce = uuid7(), self._random(_NONCE_BYTES)
        refresh_token = self._refresh_tokens.token(session_id, 1, nonce)
        session = Session(
            id=session_id,
            user_id=user.id,
            device=device,
            methods=methods,
            created_at=now,
            expires_at=self._rules.expires_at(now, now + self._rules.absolute),
            ends_at=now + self._rules.absolute,
            generation=1,
            nonce=nonce,
            token_digest=digest(refresh_token),
            rotated_at=now,
            repeats=0,
        )
        await store.insert_session(tx, session)
        return self._tokens(session, user)

    async def refresh(self, text: str, origin: Origin) -> Tokens:
        """The successor of a refresh token, and a new access token.

        Raises RefreshInvalid, SessionRevoked, or RefreshReused, which has ended the session unless it is only repeated too often.
        """
        token = parse(text)
        if token is None:
            raise RefreshInvalid
        # What is raised in a transaction rolls it back, and a revocation has to stay.
        async with self._db.transaction() as tx:
            outcome = await self._advance(tx, token, origin)
        match outcome:
            case (session, user):
                return self._tokens(session, user)
            case Refresh.REVOKED:
                raise SessionRevoked
            case Refresh.REUSED | Refresh.REFUSE_REPEAT:
                raise RefreshReused
            case _:
                raise RefreshInvalid

    async def log_out(self, caller: Caller) -> None:
        """Ends the caller's session; again, nothing happens."""
        async with self._db.transaction() as tx:
            await store.revoke_session(tx, caller.session_id, RevokeReason.LOGOUT, self._clock())

    async def _advance(self, tx: Transaction, token: RefreshToken, origin: Origin) -> tuple[Session, User] | Refresh:
        """The session after the refresh and its owner, or why there was none."""
        # Each round but the last was overtaken by another call on the same session.
        while True:
            now = self._clock()
            found = await store.find_session(tx, token.session_id)
            session, user = found or (None, None)
            derived = self._refresh_tokens.secret(
                token.session_id, token.generation, session.nonce if session else bytes(_NONCE_BYTES)
            )
            verdict = self._rules.judge(session, token, derived=derived, now=now)
            if session is None or user is None:
                return verdict
            match verdict:
                case Refresh.ROTATE:
                    successor = self._refresh_tokens.token(session.id, session.generation + 1, session.nonce)
                    rotated = await store.rotate_session(
                        tx,
                        session,
                        token_digest=digest(successor),
                        expires_at=self._rules.expires_at(now, session.ends_at),
                        ip=origin.ip,
                        user_agent=origin.user_agent,
                        now=now,
                    )
                    if rotated:
                        return rotated, user
                case Refresh.REPEAT:
                    if await store.count_repeat(tx, session, self._rules.repeats):
                        return session, user
                case Refresh.REUSED:
                    if await store.revoke_session(tx, session.id, RevokeReason.REFRESH_REUSED, now):
                        log.warning("a spent refresh token ended session %s", session.id)
                        return verdict
                case _:
                    return verdict

    def _tokens(self, session: Session, user: User) -> Tokens:
        access_token, access_expires_at = self._access_tokens.issue(session, user.role)
        return Tokens(
            access_token=access_token,
            access_expires_at=access_expires_at,
            refresh_token=self._refresh_tokens.token(session.id, session.generation, session.nonce),
            refresh_expires_at=session.expires_at,
        )


class PasswordSignIn:
    """Signing in by address or username and password. Takes the same time and answers the same whatever was wrong."""

    def __init__(self, db: Database, sessions: Sessions, passwords: Passwords, throttle: SignInThrottle) -> None:
        self._db = db
        self._sessions = sessions
        self._passwords = passwords
        self._throttle = throttle

    async def sign_in(self, login: str, password: str, device: Device) -> SignedIn:
        """Raises InvalidCredentials, TooManySignIns or Overloaded."""
        login = canonical_login(login)
        async with self._throttle.guess(login):
            async with self._db.transaction() as tx:
                credentials = await store.find_credentials(tx, login)
            good = await self._passwords.verify(password, credentials.password_hash if credentials else None)
        if not good or credentials is None:
            raise InvalidCredentials
        await self._throttle.reset(login)
        rehashed = await self._rehashed(password, credentials.password_hash)
        user = credentials.user
        async with self._db.transaction() as tx:
            if rehashed:
                await store.replace_password_hash(tx, user.id, old=credentials.password_hash, new=rehashed)
            # A password change ends all sessions; one opened with the old password just then must not slip past it.
            if not await store.hold_password(tx, user.id, credentials.password_changed_at):
                raise InvalidCredentials
            return SignedIn(user, await self._sessions.open(tx, user, device, Method.PASSWORD))

    async def _rehashed(self, password: str, stored: str) -> str | None:
        """The hash with today's parameters when the stored one has others; it can wait for a quieter time."""
        if not self._passwords.is_outdated(stored):
            return None
        try:
            return await self._passwords.hash(password)
        except Overloaded:
            return None


def device_of(name: str, origin: Origin) -> Device:
    """A device without a name is shown by its user agent."""
    return Device(name=name or origin.user_agent, user_agent=origin.user_agent, ip=origin.ip)
