"""How people prove who they are: by the password of an account, or by a code that was mailed to its address."""

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
    """Looks at passwords: throttled, in the same time whatever is wrong, and no more after too many failures in a row."""

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
        """`credentials` are those of the login, None when it names no account; `device` is that of a device known to the account.

        Raises InvalidCredentials, TooManySignIns or Overloaded.
        """
        bucket = f"device {device}" if device else _bucket_of(login)
        return await self._check(bucket, login, credentials, password, origin, known=device is not None)

    async def of_caller(self, caller: Caller, password: str, origin: Origin) -> Credentials:
        """That whoever holds the access token also knows the password. Raises as `of_login` does."""
        with self._passwords.admitted():
            async with self._db.single() as tx:
                credentials = await store.users.credentials_of(tx, caller.user_id)
            return await self._check(f"user {caller.user_id}", "", credentials, password, origin, known=True)

    async def forgive(self, user: User) -> None:
        """The owner proved who they are otherwise: whatever was counted against their logins is over.

        What they proved it for is done by then; without Redis they only wait out what was counted.
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
            # Once: whoever goes on guessing must not see, by the time it takes, that there is an account.
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
    """Named by its kind, like all the others: a login is any text, and must not be taken for a device or a person."""
    return f"login {login}"


def _account_of(user: User) -> str:
    return f"of {user.id}"


def _is_usable(credentials: Credentials) -> bool:
    return credentials.password_hash is not None and credentials.password_disabled_at is None


class CodeProofs:
    """Codes for accounts: whether an address has one shows neither in the answers nor in the work done for them."""

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
        """Mails a code to the account that has the address. Raises TooManyCodes."""
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
            # That of the moment that the code is bound to: what has changed since then voids it.
            epoch = seen.proof_epoch if seen else 0
            challenge = Challenge(challenge_id, purpose, owner_id, address, code.expires_at, epoch)
            await store.challenges.insert(tx, challenge)
            if code.is_due:
                event = self._mails.code_issued(challenge_id, purpose, code, address or "", first_name)
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
        """Mails a code to an address that an account is to have; to the owner of a taken one goes a warning instead.

        `confirm` raises, in the transaction, unless the account is still as it was when its owner proved who they are. Raises
        TooManyCodes.
        """
        user = account.user
        challenge_id, code = await self._issue(purpose, email, Requester.of(user.id), account)
        async with self._db.transaction() as tx:
            await confirm(tx)
            challenge = Challenge(challenge_id, purpose, user.id, email, code.expires_at, account.proof_epoch)
            await store.challenges.insert(tx, challenge)
            issued = self._mails.code_issued(challenge_id, purpose, code, email, user.profile.first_name)
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
        """In Redis first: if the transaction then fails, the code was never sent and simply ends."""
        # 122 random bits, as from uuid4.
        challenge_id = UUID(bytes=self._random(16), version=4)
        binding = f"{account.user.id} {account.proof_epoch}" if account else "nobody"
        code = await self._codes[purpose].issue(challenge_id, canonical_email(email), requester, binding=binding)
        return challenge_id, code

    @asynccontextmanager
    async def redeemed(self, purpose: Purpose, answer: CodeAnswer, attempt: Attempt) -> AsyncIterator[Challenge]:
        """Runs the block with the code claimed; it is void after the block, and good again when the block raises.

        Raises CodeInvalid. The block has to see, with the account locked, that the challenge still proves or holds, and to `use` it
        in its transaction. The attempt of somebody unproven concerns the account that the code was for.
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
        """Voids the challenge together with what it is used for, whatever Redis forgets. Raises CodeInvalid."""
        if not await store.challenges.use(tx, challenge.id):
            raise CodeInvalid


class OwnerProofs:
    """That the holder of an access token is the account's owner: by the password, or by a code to the account's address."""

    def __init__(self, db: Database, endings: Endings, *, passwords: PasswordProofs, codes: CodeProofs) -> None:
        self._db = db
        self._endings = endings
        self._passwords = passwords
        self._codes = codes

    @asynccontextmanager
    async def given(self, caller: Caller, proof: OwnProof, attempt: Attempt) -> AsyncIterator[Proven]:
        """Runs the block with what was proven; it has to `confirm` that in its transaction. A code counts, whatever the password.

        Raises ReauthenticationRequired, InvalidCredentials, CodeInvalid, TooManySignIns or Overloaded. A code that a failing block
        was given is good again.
        """
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
        """The account, locked until the transaction ends; a code is void after it.

        Raises SessionRevoked, or what the proof deserves when the account is not as it was proven any more.
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
