"""Sign-in, with a password or with a mailed code."""

from __future__ import annotations

from kit.data.database import Database
from kit.identity.caller import Origin
from kit.identity.display_text import visible

from .. import store
from ..errors import CodeInvalid, InvalidCredentials, Overloaded
from ..model import (
    DEVICE_NAME_LENGTH,
    Action,
    CodeAnswer,
    Device,
    Purpose,
    SignedIn,
    SignInMethod,
    Started,
    canonical_login,
    name_of_agent,
)
from ..model.device_tokens import DeviceTokens
from .audit import Audit
from .passwords import Passwords
from .proofs import CodeProofs, PasswordProofs
from .sessions import Sessions


class PasswordSignIn:
    """Sign-in by address or username and password. Time and answer are the same whatever was wrong."""

    def __init__(
        self,
        db: Database,
        *,
        sessions: Sessions,
        proofs: PasswordProofs,
        passwords: Passwords,
        device_tokens: DeviceTokens,
        audit: Audit,
    ) -> None:
        self._db = db
        self._sessions = sessions
        self._proofs = proofs
        self._passwords = passwords
        self._device_tokens = device_tokens
        self._audit = audit

    async def sign_in(self, login: str, password: str, device: Device, device_token: str) -> SignedIn:
        """Sign a device in. Raises InvalidCredentials, TooManySignIns or Overloaded."""
        login = canonical_login(login)
        with self._passwords.admitted():
            return await self._sign_in(login, password, device, device_token)

    async def _sign_in(self, login: str, password: str, device: Device, device_token: str) -> SignedIn:
        origin = Origin(device.ip, device.user_agent)
        async with self._audit.attempt(Action.SIGN_IN_PASSWORD, origin) as attempt:
            async with self._db.single() as tx:
                found = await store.users.find_credentials(tx, login)
            if found:
                attempt.concerns(found.user.id)
            known = self._device_tokens.name_of(device_token, found.user.id) if found else None
            credentials = await self._proofs.of_login(login, found, password, origin, device=known)
            rehashed = await self._rehashed(password, credentials.password_hash)
            user_id = credentials.user.id
            async with self._db.transaction() as tx:
                if rehashed and credentials.password_hash:
                    await store.users.replace_password_hash(tx, user_id, old=credentials.password_hash, new=rehashed)
                # A password change or the withdrawal of a role ends all sessions. The lock and the check keep a session that is
                # being opened on the former proof from escaping it.
                user = await store.users.hold_password(tx, user_id, credentials.password_changed_at)
                if user is None:
                    raise InvalidCredentials
                signed_in = await self._sessions.open(
                    tx, user, device, SignInMethod.PASSWORD, device_token=device_token
                )
                await attempt.done(tx, actor_id=user.id, session_id=signed_in.session_id)
        return signed_in

    async def _rehashed(self, password: str, stored: str | None) -> str | None:
        """A hash with today's parameters if the stored one has others, else None. Skipped under load."""
        if stored is None or not self._passwords.is_outdated(stored):
            return None
        try:
            return await self._passwords.hash(password)
        except Overloaded:
            return None


class CodeSignIn:
    """Sign-in by a code that was mailed to the account's address."""

    def __init__(
        self,
        db: Database,
        *,
        sessions: Sessions,
        code_proofs: CodeProofs,
        password_proofs: PasswordProofs,
        audit: Audit,
    ) -> None:
        self._db = db
        self._sessions = sessions
        self._code_proofs = code_proofs
        self._password_proofs = password_proofs
        self._audit = audit

    async def start(self, email: str, origin: Origin, device_token: str) -> Started:
        """Mail a code to sign in. Raises TooManyCodes."""
        return await self._code_proofs.start(Purpose.SIGN_IN, email, origin, device_token)

    async def complete(self, answer: CodeAnswer, device: Device, device_token: str = "") -> SignedIn:
        """Sign the device in, and enable a password that was disabled after failures. Raises CodeInvalid."""
        origin = Origin(device.ip, device.user_agent)
        async with (
            self._audit.attempt(Action.SIGN_IN_CODE, origin) as attempt,
            self._code_proofs.redeemed(Purpose.SIGN_IN, answer, attempt) as challenge,
        ):
            async with self._db.transaction() as tx:
                locked = challenge.user_id and await store.users.lock(tx, challenge.user_id)
                if not locked or not challenge.proves(locked):
                    raise CodeInvalid
                user = locked.user
                await self._code_proofs.use(tx, challenge)
                await store.users.enable_password(tx, user.id)
                signed_in = await self._sessions.open(tx, user, device, SignInMethod.CODE, device_token=device_token)
                await attempt.done(tx, actor_id=user.id, session_id=signed_in.session_id)
            await self._password_proofs.forgive(user)
        return signed_in


def device_of(name: str, origin: Origin) -> Device:
    """The device with a name: the given one, else one made from its user agent, else a default."""
    shown = visible(name)[:DEVICE_NAME_LENGTH].rstrip() or name_of_agent(origin.user_agent)
    return Device(name=shown, user_agent=origin.user_agent, ip=origin.ip)
