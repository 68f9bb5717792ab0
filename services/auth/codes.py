"""One-time codes. Redis holds only their keyed digests, the attempts at them and what was sent to each address.

A code answers a challenge, whose 122 random bits its caller keeps: nobody else can spend the attempts. All keys of an address share
a hash slot; the address appears in them only as a keyed digest.
"""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from redis.asyncio import Redis
from redis.exceptions import RedisError

from services.kit.clock import Clock

from .errors import CodeAttemptsSpent, CodeInvalid, TooManyCodes
from .model import Purpose, Randomness
from .scripts import CLAIM_CODE, ISSUE_CODE, RELEASE_CODE, USE_CODE

log = logging.getLogger(__name__)

_DAY = timedelta(days=1)
_HOUR = timedelta(hours=1)

_CLAIM = timedelta(seconds=30)
"""Longer than a call may take: a claim ends by itself only when its process died."""


@dataclass(frozen=True, slots=True)
class CodeLimits:
    life: timedelta
    challenge_life: timedelta
    attempts: int
    attempts_a_day: int
    cooldown: timedelta
    an_hour: int
    a_day: int
    live: int


@dataclass(frozen=True, slots=True)
class Code:
    digits: str
    expires_at: datetime


class Codes:
    """Issues and redeems the codes of one purpose.

    Of several peppers the first keys new digests and all are accepted; the last, which stays the longest, names the addresses, so
    that their budgets outlive a new pepper.
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
        self._issue = redis.register_script(ISSUE_CODE)
        self._claim = redis.register_script(CLAIM_CODE)
        self._release = redis.register_script(RELEASE_CODE)
        self._use = redis.register_script(USE_CODE)

    async def issue(self, challenge_id: UUID, address: str) -> Code:
        """A new code, in place of the challenge's former one; the attempts spent stay spent.

        Raises TooManyCodes, or CodeAttemptsSpent. The budget of the address is spent even if the code is never sent.
        """
        limits, now = self._limits, self._clock()
        # 128 bits reduced to a million leave no bias that could be noticed.
        digits = f"{int.from_bytes(self._random(16)) % 10**self._digits:0{self._digits}}"
        code = Code(digits, now + limits.life)
        windows = ((limits.cooldown, 1), (_HOUR, limits.an_hour), (_DAY, limits.a_day))
        outcome, wait = await self._issue(
            keys=[self._key(address, str(challenge_id)), self._key(address, "sent"), self._key(address, "live")],
            args=[
                _milliseconds(now),
                str(challenge_id),
                self._digest(self._peppers[0], challenge_id, address, digits),
                _milliseconds(code.expires_at),
                _milliseconds(now + limits.challenge_life),
                limits.attempts,
                limits.live,
                self._random(16).hex(),
                *(part for window, most in windows for part in (int(window.total_seconds() * 1000), most)),
            ],
        )
        match outcome:
            case b"wait":
                raise TooManyCodes(retry_after=timedelta(milliseconds=wait))
            case b"spent":
                raise CodeAttemptsSpent
        return code

    @asynccontextmanager
    async def redeemed(self, challenge_id: UUID, address: str, digits: str) -> AsyncIterator[None]:
        """Runs the block with the code claimed, so that no one else can use it, and voids it after the block.

        Raises CodeInvalid. When the block raises, the code is good again: a database that was down must not cost the person the
        code. After a crash the claim ends by itself.
        """
        claim, digits = self._random(16).hex(), plain_digits(digits)
        challenge, attempts = self._key(address, str(challenge_id)), self._key(address, "attempts")
        now = self._clock()
        outcome = await self._claim(
            keys=[challenge, attempts],
            args=[
                _milliseconds(now),
                claim,
                _milliseconds(now + _CLAIM),
                self._limits.attempts,
                self._limits.attempts_a_day,
                int(_DAY.total_seconds() * 1000),
                *(self._digest(pepper, challenge_id, address, digits) for pepper in self._peppers),
            ],
        )
        if outcome != b"claimed":
            log.info("a code was refused: %s", outcome.decode())
            raise CodeInvalid
        try:
            yield
        except BaseException:
            # Shielded, for the usual reason to be here is a deadline that has passed.
            await asyncio.shield(self._settle(self._release(keys=[challenge, attempts], args=[claim])))
            raise
        live = self._key(address, "live")
        await self._settle(self._use(keys=[challenge, attempts, live], args=[claim, str(challenge_id)]))

    async def _settle(self, script: Awaitable[object]) -> None:
        """The outcome of the block stands either way; without Redis the claim, or the code, ends by itself."""
        try:
            await script
        except (RedisError, OSError) as error:
            log.warning("the claim on a code ends only by itself: %s", error)

    def _key(self, address: str, name: str) -> str:
        owner = hmac.new(self._peppers[-1], f"address\0{address}".encode(), hashlib.sha256).hexdigest()[:32]
        return f"codes:{{{owner}}}:{self._purpose}:{name}"

    def _digest(self, pepper: bytes, challenge_id: UUID, address: str, digits: str) -> str:
        bound = f"code\0{self._purpose}\0{challenge_id}\0{address}\0{digits}"
        return hmac.new(pepper, bound.encode(), hashlib.sha256).hexdigest()


def plain_digits(typed: str) -> str:
    """What was typed, without what the contract lets stand between digits; digits of other scripts as ASCII ones."""
    return "".join(str(unicodedata.decimal(each)) for each in typed if each.isdecimal())


def _milliseconds(moment: datetime) -> int:
    return int(moment.timestamp() * 1000)
