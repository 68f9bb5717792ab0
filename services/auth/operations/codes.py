"""One-time codes. Redis holds their keyed digests, the attempts, and the mails sent to each address.

A code answers a challenge. Only the caller knows its id of 122 random bits, so nobody else can spend its attempts. All keys of an
address share a hash slot; the address appears in them only as a keyed digest.

Mails to an address are limited per requester, so that strangers cannot lock its owner out, and in total, so that many strangers
cannot flood its mailbox.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError

from kit.runtime.clock import Clock, from_unix_milliseconds, milliseconds, unix_milliseconds

from ..errors import CodeAttemptsSpent, CodeInvalid, TooManyCodes
from ..model import Purpose, Randomness
from ..store.code_scripts import CLAIM_CODE, RELEASE_CODE, RENEW_CODE, START_CHALLENGE, USE_CODE
from .throttle import network_of

log = logging.getLogger(__name__)

_DAY = timedelta(days=1)
_HOUR = timedelta(hours=1)

_CLAIM = timedelta(seconds=30)
"""Longer than a call may take, so that a claim expires only if its process has died."""

_KNOWN, _UNKNOWN = "known", "unknown"


@dataclass(frozen=True, slots=True)
class CodeLimits:
    """Limits of codes. Limits an hour and a day exist per requester, and for all requesters of one kind together."""

    life: timedelta
    challenge_life: timedelta
    attempts: int
    attempts_a_day: int
    cooldown: timedelta
    repeat: timedelta
    """Shortest time between two mails of one code."""
    an_hour: int
    a_day: int
    an_hour_altogether: int
    a_day_altogether: int


@dataclass(frozen=True, slots=True)
class Requester:
    """The requester of a code, as far as it can be identified. Known devices have a total limit apart from that of strangers."""

    name: str
    known: bool = False

    @classmethod
    def at(cls, ip: str) -> Requester:
        """The requester at an address, or in an IPv6 /64: the people there cannot be told apart."""
        return cls(f"network {network_of(ip)}")

    @classmethod
    def on(cls, device: str) -> Requester:
        """A device that has signed in to the account before."""
        return cls(f"device {device}", known=True)

    @classmethod
    def of(cls, user_id: UUID) -> Requester:
        """A signed-in person who requests a code for an address that is not theirs yet."""
        return cls(f"account {user_id}")


@dataclass(frozen=True, slots=True)
class Code:
    digits: str
    """Empty if the code is not due and its digits are not known here."""
    expires_at: datetime
    is_due: bool
    """Whether the code must be mailed; false if it was mailed just now."""


class Codes:
    """Issues and redeems the codes of one purpose.

    Of several peppers the first keys new digests and all are accepted. The last, which stays longest, names the addresses, so that
    their budgets outlive a new pepper.
    """

    def __init__(
        self,
        redis: Redis,
        purpose: Purpose,
        limits: CodeLimits,
        *,
        peppers: Sequence[bytes],
        digits: int,
        clock: Clock,
        random: Randomness,
    ) -> None:
        self._purpose = purpose
        self._limits = limits
        self._clock = clock
        self._random = random
        self._peppers = peppers
        self._digits = digits
        self._start = redis.register_script(START_CHALLENGE)
        self._renew = redis.register_script(RENEW_CODE)
        self._claim = redis.register_script(CLAIM_CODE)
        self._release = redis.register_script(RELEASE_CODE)
        self._use = redis.register_script(USE_CODE)

    async def issue(self, challenge_id: UUID, address: str, requester: Requester, *, binding: str = "") -> Code:
        """Issue a code for a new challenge: a new code, or the one that was mailed to the requester just now.

        Within the cool-down, and when the budget is spent, the live code is mailed again instead of a refusal. Each challenge still
        has an id of its own, because requesters in the same network may be strangers. A live code is reused only for the same
        `binding`, the present state of what it protects. Raises TooManyCodes if there is no live code and the budget is spent. A
        code that is never mailed spends the budget all the same.
        """
        limits, now = self._limits, self._clock()
        prefix, who = self._prefix(address), self._named("requester", requester.name)
        fresh, other = self._random(16).hex(), ""
        while True:
            outcome, value = await self._start(
                keys=[f"{prefix}{challenge_id}", *self._budgets(prefix, requester, who)],
                args=[
                    unix_milliseconds(now),
                    limits.attempts,
                    prefix,
                    who,
                    self._named("binding", binding),
                    fresh,
                    self._digest(self._peppers[0], challenge_id, address, self._digits_of(fresh, address)),
                    other,
                    self._digest(self._peppers[0], challenge_id, address, self._digits_of(other, address)),
                    unix_milliseconds(now + limits.life),
                    unix_milliseconds(now + limits.challenge_life),
                    milliseconds(limits.cooldown),
                    milliseconds(limits.repeat),
                    *self._windows(),
                ],
            )
            if outcome != b"other":
                break
            other = value.decode()
        if outcome == b"wait":
            raise TooManyCodes(retry_after=timedelta(milliseconds=value))
        match outcome:
            case b"new":
                return Code(self._digits_of(fresh, address), now + limits.life, is_due=True)
            case b"instead":
                return Code(self._digits_of(fresh, address), from_unix_milliseconds(value), is_due=True)
        return Code(self._digits_of(other, address), from_unix_milliseconds(value), is_due=outcome == b"again")

    async def renew(self, challenge_id: UUID, address: str, requester: Requester) -> Code:
        """Replace the challenge's code by a new one; the attempts spent stay spent.

        The code is not due if one was mailed just now. Raises TooManyCodes or CodeAttemptsSpent.
        """
        limits, now = self._limits, self._clock()
        prefix, who = self._prefix(address), self._named("requester", requester.name)
        code = self._random(16).hex()
        digits = self._digits_of(code, address)
        outcome, value = await self._renew(
            keys=[f"{prefix}{challenge_id}", *self._budgets(prefix, requester, who)],
            args=[
                unix_milliseconds(now),
                prefix,
                who,
                code,
                self._digest(self._peppers[0], challenge_id, address, digits),
                unix_milliseconds(now + limits.life),
                unix_milliseconds(now + limits.challenge_life),
                limits.attempts,
                milliseconds(limits.repeat),
                *self._windows(),
            ],
        )
        match outcome:
            case b"wait":
                raise TooManyCodes(retry_after=timedelta(milliseconds=value))
            case b"spent":
                raise CodeAttemptsSpent
        if outcome == b"new":
            return Code(digits, now + limits.life, is_due=True)
        return Code("", from_unix_milliseconds(value), is_due=False)

    @asynccontextmanager
    async def redeemed(self, challenge_id: UUID, address: str, digits: str) -> AsyncIterator[None]:
        """Run the block with the code claimed exclusively, and void the code after the block.

        Raises CodeInvalid. When the block raises, the claim is released: a database outage must not cost the person the code. After
        a crash the claim expires.
        """
        claim, digits = self._random(16).hex(), plain_digits(digits)
        prefix = self._prefix(address)
        challenge, now = f"{prefix}{challenge_id}", self._clock()
        outcome = await self._claim(
            keys=[challenge],
            args=[
                unix_milliseconds(now),
                prefix,
                claim,
                unix_milliseconds(now + _CLAIM),
                self._limits.attempts,
                self._limits.attempts_a_day,
                milliseconds(_DAY),
                *(self._digest(pepper, challenge_id, address, digits) for pepper in self._peppers),
            ],
        )
        if outcome != b"claimed":
            log.info("a code was refused: %s", outcome.decode())
            raise CodeInvalid
        try:
            yield
        except BaseException:
            # Shielded, because the usual error here is the cancellation of a call whose deadline has passed.
            await asyncio.shield(self._settle(self._release(keys=[challenge], args=[prefix, claim])))
            raise
        await self._settle(self._use(keys=[challenge], args=[prefix, claim, _KNOWN, _UNKNOWN]))

    async def _settle(self, script: Awaitable[object]) -> None:
        """Settle the claim without raising: the outcome of the block stands, and without Redis the claim or the code expires."""
        try:
            await script
        except (RedisError, OSError) as error:
            log.warning("the claim on a code ends only by itself: %s", error)

    def _budgets(self, prefix: str, requester: Requester, who: str) -> list[str]:
        return [f"{prefix}sent:{who}", f"{prefix}sent:{_KNOWN if requester.known else _UNKNOWN}"]

    def _windows(self) -> Iterator[int]:
        yield from (milliseconds(_HOUR), self._limits.an_hour, self._limits.an_hour_altogether)
        yield from (milliseconds(_DAY), self._limits.a_day, self._limits.a_day_altogether)

    def _prefix(self, address: str) -> str:
        return f"codes:{{{self._named('address', address)}}}:{self._purpose}:"

    def _named(self, kind: str, name: str) -> str:
        return hmac.new(self._peppers[-1], f"{kind}\0{name}".encode(), hashlib.sha256).hexdigest()[:32]

    def _digits_of(self, code: str, address: str) -> str:
        """Derive the digits from the code's random name, so that they can be mailed again without being stored.

        Uses the last pepper, because a new first one would change the digits. 128 bits reduced to a million have no noticeable
        bias.
        """
        derived = hmac.digest(self._peppers[-1], f"digits\0{self._purpose}\0{address}\0{code}".encode(), hashlib.sha256)
        return f"{int.from_bytes(derived[:16]) % 10**self._digits:0{self._digits}}"

    def _digest(self, pepper: bytes, challenge_id: UUID, address: str, digits: str) -> str:
        bound = f"code\0{self._purpose}\0{challenge_id}\0{address}\0{digits}"
        return hmac.new(pepper, bound.encode(), hashlib.sha256).hexdigest()


def plain_digits(typed: str) -> str:
    """The typed code without the separators that the contract allows, with digits of other scripts as ASCII."""
    return "".join(str(unicodedata.decimal(each)) for each in typed if each.isdecimal())
