"""Password changes and resets, with the password or a mailed code as proof."""

from __future__ import annotations

from uuid import UUID

from storymesh.events.v1 import auth_events_pb2 as events

from kit.data.database import Database, Transaction
from kit.errors import InvalidArgument, Violation
from kit.events import outbox
from kit.identity.caller import Caller, Origin
from kit.runtime.clock import Clock

from .. import store
from ..errors import CodeInvalid
from ..model import Action, CodeAnswer, OwnProof, Purpose, RevokeReason, Started
from ..model.password_policy import PasswordPolicy, normalized
from .audit import Audit
from .endings import Endings
from .passwords import Passwords
from .proofs import CodeProofs, OwnerProofs, PasswordProofs

FIELD = "new_password"


class PasswordChanges:
    def __init__(
        self,
        db: Database,
        *,
        policy: PasswordPolicy,
        passwords: Passwords,
        owner_proofs: OwnerProofs,
        password_proofs: PasswordProofs,
        code_proofs: CodeProofs,
        endings: Endings,
        audit: Audit,
        clock: Clock,
    ) -> None:
        self._db = db
        self._policy = policy
        self._passwords = passwords
        self._owner_proofs = owner_proofs
        self._password_proofs = password_proofs
        self._code_proofs = code_proofs
        self._endings = endings
        self._audit = audit
        self._clock = clock

    async def change(self, caller: Caller, proof: OwnProof, new: str, origin: Origin) -> None:
        """Replace the password and end all other sessions.

        Raises InvalidArgument, SessionRevoked, Overloaded, or as OwnerProofs does.
        """
        async with (
            self._audit.attempt(Action.PASSWORD_CHANGE, origin, caller) as attempt,
            self._owner_proofs.given(caller, proof, attempt) as proven,
        ):
            self._policy.check(normalized(new), proven.account.user.profile, field=FIELD)
            # Not compared when a code was the proof: its bearer may not know the password, and the refusal would tell it.
            if proven.challenge is None and normalized(new) == normalized(proof.password):
                raise InvalidArgument([Violation(FIELD, "is the current password", "PASSWORD_UNCHANGED")])
            password_hash = await self._passwords.hash(new)
            async with self._db.transaction() as tx:
                await self._owner_proofs.confirm(tx, caller, proven)
                await self._replace(tx, caller.user_id, password_hash, but=caller.session_id)
                await attempt.done(tx)
            if proven.challenge:
                await self._password_proofs.forgive(proven.account.user)

    async def start_reset(self, email: str, origin: Origin, device_token: str) -> Started:
        """Mail a code to reset the password. Raises TooManyCodes."""
        return await self._code_proofs.start(Purpose.PASSWORD_RESET, email, origin, device_token)

    async def complete_reset(self, answer: CodeAnswer, new: str, origin: Origin) -> None:
        """Set the password and end all sessions; opens none.

        Raises CodeInvalid, InvalidArgument or Overloaded. After the latter two the code is still valid.
        """
        # Check only the rules that need no account, so that callers without a code learn nothing about one.
        self._policy.check(normalized(new), None, field=FIELD)
        async with (
            self._audit.attempt(Action.PASSWORD_RESET, origin) as attempt,
            self._code_proofs.redeemed(Purpose.PASSWORD_RESET, answer, attempt) as challenge,
        ):
            # Hash after the code is checked, so that wrong codes cost no processor time.
            password_hash = await self._passwords.hash(new)
            async with self._db.transaction() as tx:
                locked = challenge.user_id and await store.users.lock(tx, challenge.user_id)
                if not locked or not challenge.proves(locked):
                    raise CodeInvalid
                user = locked.user
                self._policy.check(normalized(new), user.profile, field=FIELD)
                await self._code_proofs.use(tx, challenge)
                await self._replace(tx, user.id, password_hash, reset=True)
                await attempt.done(tx, actor_id=user.id)
            await self._password_proofs.forgive(user)

    async def _replace(
        self, tx: Transaction, user_id: UUID, password_hash: str, *, but: UUID | None = None, reset: bool = False
    ) -> None:
        await store.users.set_password(tx, user_id, password_hash, self._clock())
        await self._endings.end_all(tx, user_id, RevokeReason.PASSWORD_CHANGED, but=but)
        await outbox.add(tx, events.PasswordChanged(user_id=str(user_id), reset=reset), key=user_id)
