"""Proofs of ownership: the password of an account, or a code that was mailed to its address."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from uuid import UUID

from redis.exceptions import RedisError
from storymesh.events.v1 import auth_events_pb2 as events

from kit.data.database import Database, Transaction
from kit.errors import SessionRevoked
from kit.events import outbox
from kit.identity.caller import Caller, Origin
from kit.runtime.clock import Clock

from .. import store
from ..errors import CodeInvalid, InvalidCredentials, ReauthenticationRequired
from ..model import (
    Action,
    Challenge,
    CodeAnswer,
    Credentials,
    OwnProof,
    Proven,
    Purpose,
    Randomness,
    Started,
    User,
    canonical_email,
    canonical_login,
)
from ..model.device_tokens import DeviceTokens
from .audit import Attempt, Audit
from .codes import Code, Codes, Requester
from .endings import Endings
from .passwords import Passwords
from .sealed_mails import SealedMails
from .throttle import SignInThrottle

log = logging.getLogger(__name__)


class PasswordProofs:
    """Checks passwords: throttled, in constant time whatever is wrong, and disables one after too many failures in a row."""

    def __init__(
        self,
        db: Database,
        *,
        passwords: Passwords,
        throttle: SignInThrottle,
        audit: Audit,
        clock: Clock,
        most_failures: int,
    ) -> None:
        self._db = db
        self._passwords = passwords
        self._throttle = throttle
        self._audit = audit
        self._clock = clock
        self._most_failures = most_failures

    async def of_login(
        self, login: str, credentials: Credentials | None, password: str, origin: Origin, *, device: str | None
    ) -> Credentials:
        """Check the password of a login. `credentials` are None if the login names no account; `device` is known to the account.

        Raises InvalidCredentials, TooManySignIns or Overloaded.
        """
        bucket = f"device {device}" if device else _bucket_of(login)
        return await self._check(bucket, login, credentials, password, origin, known=device is not None)

    async def of_caller(self, caller: Caller, password: str, origin: Origin) -> Credentials:
        """Check the password of the caller's account. Raises as `of_login` does."""
        with self._passwords.admitted():
            async with self._db.single() as tx:
                credentials = await store.users.credentials_of(tx, caller.user_id)
            return await self._check(f"user {caller.user_id}", "", credentials, password, origin, known=True)

    async def forgive(self, user: User) -> None:
        """Reset the failure counters of the account's logins, after its owner gave another proof.

        Never raises: the action is committed by now, and without Redis the counters expire.
        """
        logins = [canonical_login(login) for login in (user.profile.email, user.profile.username or "") if login]
        try:
            await self._throttle.forget(_account_of(user), f"user {user.id}", *map(_bucket_of, logins))
        except (RedisError, OSError) as error:
            log.warning("failed sign-ins at account %s stay counted: %s", user.id, error)

    async def _check(
        self, bucket: str, login: str, credentials: Credentials | None, password: str, origin: Origin, *, known: bool
    ) -> Credentials:
        account = _account_of(credentials.user) if credentials else f"of nobody {login}"
        async with self._throttle.guess(bucket, account=account, ip=None if known else origin.ip) as guess:
            right = await self._passwords.verify(password, credentials.password_hash if credentials else None)
            guess.right = right and credentials is not None and _is_usable(credentials)
        if not guess.right or credentials is None:
            # Disable it once only, so that the time of later guesses does not tell that there is an account.
            if credentials and _is_usable(credentials) and guess.failures >= self._most_failures:
                await self._disable(credentials.user.id, origin)
            raise InvalidCredentials
        return credentials

    async def _disable(self, user_id: UUID, origin: Origin) -> None:
        async with (
            self._audit.attempt(Action.PASSWORD_DISABLE, origin, subject_id=user_id) as attempt,
            self._db.transaction() as tx,
        ):
            if await store.users.disable_password(tx, user_id, self._clock()):
                await outbox.add(tx, events.PasswordDisabled(user_id=str(user_id)), key=user_id)
                await attempt.done(tx)
                log.warning("the password of account %s is disabled after too many failures", user_id)


def _bucket_of(login: str) -> str:
    """The throttle's bucket of a login. A login is any text; the prefix keeps it apart from buckets of devices and people."""
    return f"login {login}"


def _account_of(user: User) -> str:
    return f"of {user.id}"


def _is_usable(credentials: Credentials) -> bool:
    return credentials.password_hash is not None and credentials.password_disabled_at is None


class CodeProofs:
    """Codes for accounts. Neither the answers nor the work done for them tell whether an address has an account."""

    def __init__(
        self,
        db: Database,
        *,
        codes: Mapping[Purpose, Codes],
        device_tokens: DeviceTokens,
        mails: SealedMails,
        clock: Clock,
        random: Randomness,
    ) -> None:
        self._db = db
        self._codes = codes
        self._device_tokens = device_tokens
        self._mails = mails
        self._clock = clock
        self._random = random

    async def start(self, purpose: Purpose, email: str, origin: Origin, device_token: str) -> Started:
        """Mail a code to the account that has the address. Raises TooManyCodes."""
        async with self._db.single() as tx:
            seen = await store.users.find_credentials(tx, canonical_email(email))
        device = self._device_tokens.name_of(device_token, seen.user.id) if seen else None
        requester = Requester.on(device) if device else Requester.at(origin.ip)
        challenge_id, code = await self._issue(purpose, email, requester, seen)
        async with self._db.transaction() as tx:
            account = await store.users.keep_by_email(tx, email)
            owner_id, address, first_name = None, None, ""
            if account and seen and account.user.id == seen.user.id:
                owner_id, profile = account.user.id, account.user.profile
                address, first_name = profile.email, profile.first_name
            # The epoch to which the code is bound, so that changes of the account since then void it.
            epoch = seen.proof_epoch if seen else 0
            challenge = Challenge(challenge_id, purpose, owner_id, address, code.expires_at, epoch)
            await store.challenges.insert(tx, challenge)
            if code.is_due:
                event = self._mails.code_issued(challenge_id, purpose, code, address or "", first_name, reader=owner_id)
                await outbox.add(tx, event, key=owner_id or challenge_id)
        return Started(challenge_id, code.expires_at)

    async def start_for(
        self,
        account: Credentials,
        purpose: Purpose,
        email: str,
        attempt: Attempt,
        *,
        confirm: Callable[[Transaction], Awaitable[object]],
    ) -> Started:
        """Mail a code to an address that an account shall get. If the address is taken, warn its owner instead.

        `confirm` runs in the transaction and raises if the account has changed since its owner proved who they are. Raises
        TooManyCodes.
        """
        user = account.user
        challenge_id, code = await self._issue(purpose, email, Requester.of(user.id), account)
        async with self._db.transaction() as tx:
            await confirm(tx)
            challenge = Challenge(challenge_id, purpose, user.id, email, code.expires_at, account.proof_epoch)
            await store.challenges.insert(tx, challenge)
            issued = self._mails.code_issued(
                challenge_id, purpose, code, email, user.profile.first_name, reader=user.id
            )
            owner = await store.users.find_by_email(tx, email)
            if code.is_due and owner is None:
                await outbox.add(tx, issued, key=user.id)
            elif code.is_due and owner:
                await outbox.add(tx, events.AddressClaimed(user_id=str(owner.id)), key=owner.id)
            await attempt.done(tx)
        return Started(challenge_id, code.expires_at)

    async def _issue(
        self, purpose: Purpose, email: str, requester: Requester, account: Credentials | None
    ) -> tuple[UUID, Code]:
        """Issue the code in Redis before the transaction: if that fails, the code was never mailed and expires."""
        # Random bits of a version 4 UUID: 122.
        challenge_id = UUID(bytes=self._random(16), version=4)
        binding = f"{account.user.id} {account.proof_epoch}" if account else "nobody"
        code = await self._codes[purpose].issue(challenge_id, canonical_email(email), requester, binding=binding)
        return challenge_id, code

    @asynccontextmanager
    async def redeemed(self, purpose: Purpose, answer: CodeAnswer, attempt: Attempt) -> AsyncIterator[Challenge]:
        """Run the block with the code claimed; void it after the block, and release it when the block raises.

        Raises CodeInvalid. With the account locked, the block must check that the challenge still proves or holds, and call `use`
        in its transaction. An unauthenticated attempt is recorded for the account that the code was for.
        """
        async with self._db.transaction() as tx:
            challenge = await store.challenges.find(tx, answer.challenge_id, purpose, self._clock())
        if challenge and challenge.user_id and attempt.entry.actor_id is None:
            attempt.concerns(challenge.user_id)
        address = canonical_email(challenge.email) if challenge and challenge.email else f"nobody {answer.challenge_id}"
        async with self._codes[purpose].redeemed(answer.challenge_id, address, answer.digits):
            if challenge is None:
                raise CodeInvalid
            yield challenge

    async def use(self, tx: Transaction, challenge: Challenge) -> None:
        """Use up the challenge in the transaction of the action, independent of Redis. Raises CodeInvalid if it was used."""
        if not await store.challenges.use(tx, challenge.id):
            raise CodeInvalid


class OwnerProofs:
    """Proves that the holder of an access token owns the account, by its password or by a code to its address."""

    def __init__(self, db: Database, endings: Endings, *, passwords: PasswordProofs, codes: CodeProofs) -> None:
        self._db = db
        self._endings = endings
        self._passwords = passwords
        self._codes = codes

    @asynccontextmanager
    async def given(self, caller: Caller, proof: OwnProof, attempt: Attempt) -> AsyncIterator[Proven]:
        """Run the block with the verified proof, which it must `confirm` in its transaction. A code takes precedence."""
        if proof.code:
            async with self._codes.redeemed(Purpose.SIGN_IN, proof.code, attempt) as challenge:
                async with self._db.single() as tx:
                    account = await store.users.credentials_of(tx, caller.user_id)
                if account is None or not challenge.proves(account):
                    raise CodeInvalid
                yield Proven(account, challenge)
        elif proof.password:
            yield Proven(await self._passwords.of_caller(caller, proof.password, attempt.entry.origin), None)
        else:
            raise ReauthenticationRequired

    async def confirm(self, tx: Transaction, caller: Caller, proven: Proven) -> Credentials:
        """Lock the account until the transaction ends, check that the proof still holds, and use up its code.

        Raises SessionRevoked, or InvalidCredentials or CodeInvalid if the account has changed since the proof.
        """
        locked = await store.users.lock(tx, caller.user_id)
        if locked is None:
            raise SessionRevoked
        await self._endings.require_live(tx, caller)
        if proven.challenge:
            if not proven.challenge.proves(locked):
                raise CodeInvalid
            await self._codes.use(tx, proven.challenge)
        elif proven.account.proof_epoch != locked.proof_epoch:
            raise InvalidCredentials
        return locked
