"""One-time codes in Redis: counted, rationed, bound to what they are for."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from dataclasses import replace
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot

from services.auth.codes import CodeLimits, Codes
from services.auth.errors import CodeAttemptsSpent, CodeInvalid, TooManyCodes
from services.auth.model import Purpose
from tests.auth.conftest import FakeClock

ADA = "ada@example.org"
LIMITS = CodeLimits(
    life=timedelta(minutes=10),
    challenge_life=timedelta(minutes=30),
    attempts=5,
    attempts_a_day=50,
    cooldown=timedelta(minutes=1),
    an_hour=5,
    a_day=10,
    live=3,
)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def codes_of(redis: Redis, clock: FakeClock, pepper: bytes = b"p" * 32, **limits: object) -> Codes:
    return Codes(
        redis,
        Purpose.REGISTRATION,
        replace(LIMITS, **limits),  # type: ignore[arg-type]
        peppers=[pepper],
        digits=6,
        clock=clock,
        random=secrets.token_bytes,
    )


async def outcome(codes: Codes, challenge: UUID, digits: str, address: str = ADA) -> str:
    try:
        async with codes.redeemed(challenge, address, digits):
            return "redeemed"
    except CodeInvalid:
        return "invalid"


async def attempts(redis: Redis, challenge: UUID) -> int:
    (key,) = await redis.keys(f"codes:*:{challenge}")
    return int(await redis.hget(key, "attempts") or 0)


def wrong(digits: str) -> str:
    return f"{(int(digits) + 1) % 10**6:06}"


async def test_of_64_simultaneous_wrong_codes_five_are_looked_at(redis: Redis, clock: FakeClock) -> None:
    codes, challenge = codes_of(redis, clock), uuid4()
    code = await codes.issue(challenge, ADA)
    guesses = [f"{number:06}" for number in range(70) if f"{number:06}" != code.digits][:64]
    assert set(await asyncio.gather(*(outcome(codes, challenge, guess) for guess in guesses))) == {"invalid"}
    assert await attempts(redis, challenge) == 5
    assert await outcome(codes, challenge, code.digits) == "invalid"


async def test_of_64_simultaneous_right_codes_one_is_redeemed(redis: Redis, clock: FakeClock) -> None:
    codes, challenge = codes_of(redis, clock), uuid4()
    code = await codes.issue(challenge, ADA)
    outcomes = await asyncio.gather(*(outcome(codes, challenge, code.digits) for _ in range(64)))
    assert Counter(outcomes) == {"redeemed": 1, "invalid": 63}
    clock.advance(minutes=5)
    assert await outcome(codes, challenge, code.digits) == "invalid"


async def test_a_redeemed_challenge_makes_room_for_another(redis: Redis, clock: FakeClock) -> None:
    codes, challenge = codes_of(redis, clock, cooldown=timedelta(0), live=1), uuid4()
    code = await codes.issue(challenge, ADA)
    with pytest.raises(TooManyCodes):
        await codes.issue(uuid4(), ADA)
    assert await outcome(codes, challenge, code.digits) == "redeemed"
    assert await codes.issue(uuid4(), ADA)


async def test_a_code_works_for_its_own_challenge_and_address_only(redis: Redis, clock: FakeClock) -> None:
    codes, challenge, other = codes_of(redis, clock, cooldown=timedelta(0)), uuid4(), uuid4()
    code = await codes.issue(challenge, ADA)
    await codes.issue(other, ADA)
    assert await outcome(codes, other, code.digits) == "invalid"
    assert await outcome(codes, challenge, code.digits, "bob@example.org") == "invalid"
    assert await outcome(codes, uuid4(), code.digits) == "invalid"
    assert await outcome(codes, challenge, code.digits) == "redeemed"


async def test_the_same_digits_are_stored_differently_for_another_challenge_address_or_pepper(
    redis: Redis, clock: FakeClock
) -> None:
    """Else whoever can write to Redis could move the digest of a code of their own to another's challenge."""
    codes, other_pepper = (
        Codes(redis, Purpose.REGISTRATION, LIMITS, peppers=[pepper], digits=6, clock=clock, random=bytes)
        for pepper in (b"p" * 32, b"q" * 32)
    )
    challenge = uuid4()
    issued = [await codes.issue(challenge, ADA), await codes.issue(challenge, "bob@example.org")]
    issued.append(await other_pepper.issue(challenge, ADA))
    clock.advance(minutes=1)
    issued.append(await codes.issue(uuid4(), ADA))
    assert {code.digits for code in issued} == {"000000"}
    stored = [await redis.hget(key, "digest") for key in await redis.keys("codes:*-*")]
    assert len(set(stored)) == len(stored) == 4


async def test_a_code_ends_after_ten_minutes(redis: Redis, clock: FakeClock) -> None:
    codes, challenge = codes_of(redis, clock), uuid4()
    code = await codes.issue(challenge, ADA)
    clock.advance(minutes=10, seconds=-1)
    with pytest.raises(RuntimeError):
        async with codes.redeemed(challenge, ADA, code.digits):
            raise RuntimeError
    clock.advance(seconds=1)
    assert await outcome(codes, challenge, code.digits) == "invalid"


async def test_while_a_code_is_being_redeemed_nobody_else_can_use_it(redis: Redis, clock: FakeClock) -> None:
    codes, challenge = codes_of(redis, clock), uuid4()
    code = await codes.issue(challenge, ADA)
    async with codes.redeemed(challenge, ADA, code.digits):
        for _ in range(10):
            assert await outcome(codes, challenge, code.digits) == "invalid"


async def test_a_redemption_that_fails_or_is_given_up_costs_no_attempt(redis: Redis, clock: FakeClock) -> None:
    codes, challenge = codes_of(redis, clock), uuid4()
    code = await codes.issue(challenge, ADA)
    for _ in range(10):
        entered = asyncio.Event()

        async def redeem(entered: asyncio.Event = entered) -> None:
            async with codes.redeemed(challenge, ADA, code.digits):
                entered.set()
                await asyncio.Event().wait()

        task = asyncio.create_task(redeem())
        await entered.wait()
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
    assert await attempts(redis, challenge) == 0
    assert await outcome(codes, challenge, code.digits) == "redeemed"


async def test_attempts_at_an_address_are_limited_across_challenges_and_codes(redis: Redis, clock: FakeClock) -> None:
    codes = codes_of(redis, clock, cooldown=timedelta(0), attempts_a_day=7)
    challenges = [uuid4() for _ in range(2)]
    issued = [await codes.issue(challenge, ADA) for challenge in challenges]
    for challenge, code in zip(challenges, issued, strict=True):
        for _ in range(5):
            await outcome(codes, challenge, wrong(code.digits))
    assert [await attempts(redis, challenge) for challenge in challenges] == [5, 2]
    code = await codes.issue(challenges[1], ADA)
    assert await outcome(codes, challenges[1], code.digits) == "invalid"
    clock.advance(days=1)
    code = await codes.issue(challenges[1], ADA)
    assert await outcome(codes, challenges[1], code.digits) == "redeemed"


async def test_right_codes_leave_the_attempts_at_their_address_to_wrong_ones(redis: Redis, clock: FakeClock) -> None:
    codes = codes_of(redis, clock, cooldown=timedelta(0), attempts_a_day=1)
    for _ in range(3):
        challenge = uuid4()
        code = await codes.issue(challenge, ADA)
        assert await outcome(codes, challenge, code.digits) == "redeemed"


async def test_codes_are_rationed_by_the_minute_the_hour_and_the_day(redis: Redis, clock: FakeClock) -> None:
    codes, challenge = codes_of(redis, clock), uuid4()
    started, sent = clock(), list[float]()
    while clock() - started <= timedelta(days=1) and len(sent) < 20:
        try:
            await codes.issue(challenge, ADA)
        except TooManyCodes as error:
            clock.now += error.retry_after or timedelta(days=2)
        else:
            sent.append((clock() - started).total_seconds() / 60)
    assert sent == pytest.approx([0, 1, 2, 3, 4, 60, 61, 62, 63, 64, 24 * 60], abs=0.01)


async def test_simultaneous_requests_for_codes_get_one(redis: Redis, clock: FakeClock) -> None:
    codes = codes_of(redis, clock)
    outcomes = await asyncio.gather(*(codes.issue(uuid4(), ADA) for _ in range(32)), return_exceptions=True)
    assert Counter(type(each).__name__ for each in outcomes) == {"Code": 1, "TooManyCodes": 31}


async def test_a_challenge_without_attempts_left_gets_no_further_code(redis: Redis, clock: FakeClock) -> None:
    codes, challenge = codes_of(redis, clock), uuid4()
    code = await codes.issue(challenge, ADA)
    for _ in range(5):
        await outcome(codes, challenge, wrong(code.digits))
    clock.advance(minutes=1)
    with pytest.raises(CodeAttemptsSpent):
        await codes.issue(challenge, ADA)
    assert await codes.issue(uuid4(), ADA)


async def test_another_pepper_knows_no_code(redis: Redis, clock: FakeClock) -> None:
    codes, challenge = codes_of(redis, clock), uuid4()
    code = await codes.issue(challenge, ADA)
    assert await outcome(codes_of(redis, clock, b"q" * 32), challenge, code.digits) == "invalid"


async def test_everything_kept_about_an_address_ends_by_itself(redis: Redis, clock: FakeClock) -> None:
    codes, challenge = codes_of(redis, clock), uuid4()
    code = await codes.issue(challenge, ADA)
    await outcome(codes, challenge, wrong(code.digits))
    keys = await redis.keys("*")
    assert len(keys) == 4
    assert all([0 < await redis.ttl(key) <= 86_400 for key in keys])


async def test_the_keys_of_an_address_share_a_hash_slot(redis: Redis, clock: FakeClock) -> None:
    codes, challenge = codes_of(redis, clock), uuid4()
    code = await codes.issue(challenge, ADA)
    await outcome(codes, challenge, wrong(code.digits))
    slots = {key_slot(key if isinstance(key, bytes) else key.encode()) for key in await redis.keys("codes:*")}
    assert len(slots) == 1
