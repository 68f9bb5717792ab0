"""One-time codes in Redis: counted, limited, bound to their purpose and challenge."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from redis.asyncio import Redis
from redis.crc import key_slot

from services.auth.errors import CodeAttemptsSpent, CodeInvalid, TooManyCodes
from services.auth.model import Purpose
from services.auth.operations.codes import Code, CodeLimits, Codes, Requester
from tests.auth.conftest import FakeClock

ADA = "ada@example.org"
LIMITS = CodeLimits(
    life=timedelta(minutes=10),
    challenge_life=timedelta(minutes=30),
    attempts=5,
    attempts_a_day=50,
    cooldown=timedelta(minutes=1),
    repeat=timedelta(seconds=15),
    an_hour=5,
    a_day=10,
    an_hour_altogether=10,
    a_day_altogether=20,
)
OFTEN: dict[str, Any] = {"cooldown": timedelta(0), "repeat": timedelta(0)}
HOME = Requester.at("192.0.2.1")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


def codes_of(redis: Redis, clock: FakeClock, pepper: bytes = b"p" * 32, **limits: Any) -> Codes:
    return Codes(
        redis,
        Purpose.REGISTRATION,
        replace(LIMITS, **limits),
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
    code = await codes.issue(challenge, ADA, HOME)
    guesses = [f"{number:06}" for number in range(70) if f"{number:06}" != code.digits][:64]
    assert set(await asyncio.gather(*(outcome(codes, challenge, guess) for guess in guesses))) == {"invalid"}
    assert await attempts(redis, challenge) == 5
    assert await outcome(codes, challenge, code.digits) == "invalid"


async def test_of_64_simultaneous_right_codes_one_is_redeemed(redis: Redis, clock: FakeClock) -> None:
    codes, challenge = codes_of(redis, clock), uuid4()
    code = await codes.issue(challenge, ADA, HOME)
    outcomes = await asyncio.gather(*(outcome(codes, challenge, code.digits) for _ in range(64)))
    assert Counter(outcomes) == {"redeemed": 1, "invalid": 63}
    clock.advance(minutes=5)
    assert await outcome(codes, challenge, code.digits) == "invalid"


async def test_a_code_works_for_its_own_challenge_and_address_only(redis: Redis, clock: FakeClock) -> None:
    codes, challenge, other = codes_of(redis, clock, **OFTEN), uuid4(), uuid4()
    code = await codes.issue(challenge, ADA, HOME)
    await codes.issue(other, ADA, HOME)
    assert await outcome(codes, other, code.digits) == "invalid"
    assert await outcome(codes, challenge, code.digits, "bob@example.org") == "invalid"
    assert await outcome(codes, uuid4(), code.digits) == "invalid"
    assert await outcome(codes, challenge, code.digits) == "redeemed"


async def test_a_digest_moved_to_another_challenge_is_worth_nothing_there(redis: Redis, clock: FakeClock) -> None:
    """Otherwise an attacker who can write to Redis could answer another's challenge with a code of their own."""
    codes, own, others = codes_of(redis, clock), uuid4(), uuid4()
    code = await codes.issue(own, ADA, HOME)
    await codes.issue(others, ADA, Requester.at("192.0.2.2"))
    keys = {each: (await redis.keys(f"codes:*:{each}"))[0] for each in (own, others)}
    digest = await redis.hget(keys[own], "digest")
    assert digest
    await redis.hset(keys[others], "digest", digest)
    assert await outcome(codes, others, code.digits) == "invalid"
    assert await outcome(codes, own, code.digits) == "redeemed"


async def test_a_code_ends_after_ten_minutes(redis: Redis, clock: FakeClock) -> None:
    codes, challenge = codes_of(redis, clock), uuid4()
    code = await codes.issue(challenge, ADA, HOME)
    clock.advance(minutes=10, seconds=-1)
    with pytest.raises(RuntimeError):
        async with codes.redeemed(challenge, ADA, code.digits):
            raise RuntimeError
    clock.advance(seconds=1)
    assert await outcome(codes, challenge, code.digits) == "invalid"


async def test_while_a_code_is_being_redeemed_nobody_else_can_use_it(redis: Redis, clock: FakeClock) -> None:
    codes, challenge = codes_of(redis, clock), uuid4()
    code = await codes.issue(challenge, ADA, HOME)
    async with codes.redeemed(challenge, ADA, code.digits):
        for _ in range(10):
            assert await outcome(codes, challenge, code.digits) == "invalid"


async def test_a_redemption_that_fails_or_is_given_up_costs_no_attempt(redis: Redis, clock: FakeClock) -> None:
    codes, challenge = codes_of(redis, clock), uuid4()
    code = await codes.issue(challenge, ADA, HOME)
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


async def test_attempts_are_limited_across_challenges_and_codes(redis: Redis, clock: FakeClock) -> None:
    codes = codes_of(redis, clock, **OFTEN, attempts_a_day=7)
    challenges = [uuid4() for _ in range(2)]
    issued = [await codes.issue(challenge, ADA, HOME) for challenge in challenges]
    for challenge, code in zip(challenges, issued, strict=True):
        for _ in range(5):
            await outcome(codes, challenge, wrong(code.digits))
    assert [await attempts(redis, challenge) for challenge in challenges] == [5, 2]
    code = await codes.renew(challenges[1], ADA, HOME)
    assert await outcome(codes, challenges[1], code.digits) == "invalid"
    clock.advance(days=1)
    code = await codes.renew(challenges[1], ADA, HOME)
    assert await outcome(codes, challenges[1], code.digits) == "redeemed"


async def test_attempts_of_one_requester_leave_those_of_another_alone(redis: Redis, clock: FakeClock) -> None:
    codes, own = codes_of(redis, clock, **OFTEN, attempts_a_day=7), uuid4()
    code = await codes.issue(own, ADA, HOME)
    for _ in range(4):
        strangers = uuid4()
        theirs = await codes.issue(strangers, ADA, Requester.at("198.51.100.1"))
        for _ in range(5):
            await outcome(codes, strangers, wrong(theirs.digits))
    assert await outcome(codes, own, code.digits) == "redeemed"


async def test_right_codes_leave_the_attempts_at_their_address_to_wrong_ones(redis: Redis, clock: FakeClock) -> None:
    codes = codes_of(redis, clock, **OFTEN, attempts_a_day=1)
    for _ in range(3):
        challenge = uuid4()
        code = await codes.issue(challenge, ADA, HOME)
        assert await outcome(codes, challenge, code.digits) == "redeemed"


async def test_mails_are_rationed_by_the_hour_and_the_day(redis: Redis, clock: FakeClock) -> None:
    codes, challenge = codes_of(redis, clock, repeat=timedelta(minutes=1)), uuid4()
    started, sent = clock(), list[float]()
    while clock() - started <= timedelta(days=1) and len(sent) < 20:
        try:
            code = await codes.renew(challenge, ADA, HOME)
        except TooManyCodes as error:
            clock.now += error.retry_after or timedelta(days=2)
        else:
            if code.is_due:
                sent.append((clock() - started).total_seconds() / 60)
            else:
                clock.advance(seconds=15)
    assert sent == pytest.approx([0, 1, 2, 3, 4, 60, 61, 62, 63, 64, 24 * 60], abs=0.01)


async def test_simultaneous_requests_for_codes_get_one_mail(redis: Redis, clock: FakeClock) -> None:
    codes, challenges = codes_of(redis, clock), [uuid4() for _ in range(32)]
    issued = await asyncio.gather(*(codes.issue(each, ADA, HOME) for each in challenges))
    (mailed,) = [code for code in issued if code.is_due]
    assert {code.digits for code in issued} == {mailed.digits}
    outcomes = await asyncio.gather(*(outcome(codes, each, mailed.digits) for each in challenges))
    assert outcomes.count("redeemed") == 1
    assert {await outcome(codes, each, mailed.digits) for each in challenges} == {"invalid"}


async def test_a_challenge_without_attempts_left_gets_no_further_code(redis: Redis, clock: FakeClock) -> None:
    codes, challenge = codes_of(redis, clock), uuid4()
    code = await codes.issue(challenge, ADA, HOME)
    for _ in range(5):
        await outcome(codes, challenge, wrong(code.digits))
    clock.advance(minutes=1)
    with pytest.raises(CodeAttemptsSpent):
        await codes.renew(challenge, ADA, HOME)
    assert await codes.issue(uuid4(), ADA, HOME)


async def test_another_pepper_knows_no_code(redis: Redis, clock: FakeClock) -> None:
    codes, challenge = codes_of(redis, clock), uuid4()
    code = await codes.issue(challenge, ADA, HOME)
    assert await outcome(codes_of(redis, clock, b"q" * 32), challenge, code.digits) == "invalid"


async def test_everything_kept_about_an_address_ends_by_itself(redis: Redis, clock: FakeClock) -> None:
    codes, challenge = codes_of(redis, clock), uuid4()
    code = await codes.issue(challenge, ADA, HOME)
    await outcome(codes, challenge, wrong(code.digits))
    keys = await redis.keys("*")
    assert len(keys) == 6
    assert all([0 < await redis.ttl(key) <= 86_400 for key in keys])


async def test_the_keys_of_an_address_share_a_hash_slot(redis: Redis, clock: FakeClock) -> None:
    codes, challenge = codes_of(redis, clock), uuid4()
    code = await codes.issue(challenge, ADA, HOME)
    await outcome(codes, challenge, wrong(code.digits))
    slots = {key_slot(key if isinstance(key, bytes) else key.encode()) for key in await redis.keys("codes:*")}
    assert len(slots) == 1


class TestAskingAgain:
    async def ask(self, codes: Codes, requester: Requester = HOME, binding: str = "") -> tuple[UUID, Code]:
        challenge = uuid4()
        return challenge, await codes.issue(challenge, ADA, requester, binding=binding)

    async def test_within_the_cool_down_the_same_code_is_mailed_again_at_most_every_15_seconds(
        self, redis: Redis, clock: FakeClock
    ) -> None:
        codes, asked = codes_of(redis, clock), list[tuple[UUID, Code]]()
        for _ in range(12):
            asked.append(await self.ask(codes))
            clock.advance(seconds=5)
        assert len({challenge for challenge, _ in asked}) == 12
        assert len({(code.digits, code.expires_at.replace(microsecond=0)) for _, code in asked}) == 1
        assert [code.is_due for _, code in asked] == [True, False, False] * 4
        assert await outcome(codes, asked[-1][0], asked[0][1].digits) == "redeemed"

    async def test_after_the_cool_down_it_is_another_one(self, redis: Redis, clock: FakeClock) -> None:
        codes = codes_of(redis, clock)
        first, code = await self.ask(codes)
        clock.advance(minutes=1)
        second, other = await self.ask(codes)
        assert other.is_due
        assert other.expires_at == code.expires_at + timedelta(minutes=1)
        assert await outcome(codes, second, other.digits) == "redeemed"
        assert await outcome(codes, first, code.digits) == "redeemed"

    async def test_a_live_code_is_given_on_although_no_more_may_be_mailed(self, redis: Redis, clock: FakeClock) -> None:
        codes = codes_of(redis, clock)
        for _ in range(5):
            _, code = await self.ask(codes)
            assert code.is_due
            clock.advance(minutes=1)
        for _ in range(9):
            challenge, again = await self.ask(codes)
            assert (again.is_due, again.digits) == (False, code.digits)
            clock.advance(minutes=1)
        assert clock() == code.expires_at.replace(microsecond=clock().microsecond)
        with pytest.raises(TooManyCodes) as refused:
            await self.ask(codes)
        assert refused.value.retry_after == timedelta(minutes=46)
        assert await outcome(codes, challenge, code.digits) == "invalid"

    async def test_challenges_that_share_a_code_have_as_many_attempts_together_as_the_first_has_alone(
        self, redis: Redis, clock: FakeClock
    ) -> None:
        codes = codes_of(redis, clock)
        first, code = await self.ask(codes)
        others = [(await self.ask(codes))[0] for _ in range(4)]
        guesses = [wrong(code.digits)] * 5
        for other in others:
            for guess in guesses:
                await outcome(codes, other, guess)
        assert sum([await attempts(redis, other) for other in others]) == 5
        assert await outcome(codes, others[-1], code.digits) == "invalid"
        for guess in guesses[:-1]:
            assert await outcome(codes, first, guess) == "invalid"
        assert await outcome(codes, first, code.digits) == "redeemed"

    async def test_a_code_whose_shared_attempts_are_spent_is_given_to_nobody_else(
        self, redis: Redis, clock: FakeClock
    ) -> None:
        codes = codes_of(redis, clock)
        _, code = await self.ask(codes)
        other, _ = await self.ask(codes)
        for _ in range(5):
            await outcome(codes, other, wrong(code.digits))
        challenge, fresh = await self.ask(codes)
        assert fresh.is_due
        assert await outcome(codes, challenge, fresh.digits) == "redeemed"

    async def test_a_redemption_that_fails_costs_no_shared_attempt(self, redis: Redis, clock: FakeClock) -> None:
        codes = codes_of(redis, clock)
        _, code = await self.ask(codes)
        other, _ = await self.ask(codes)
        for _ in range(6):
            with pytest.raises(RuntimeError):
                async with codes.redeemed(other, ADA, code.digits):
                    raise RuntimeError
        assert await outcome(codes, other, code.digits) == "redeemed"

    async def test_a_redeemed_code_gives_all_its_mails_back(self, redis: Redis, clock: FakeClock) -> None:
        codes = codes_of(redis, clock, an_hour=2, an_hour_altogether=2)
        for _ in range(4):
            await self.ask(codes)
            clock.advance(seconds=15)
            challenge, code = await self.ask(codes)
            assert code.is_due
            assert await outcome(codes, challenge, code.digits) == "redeemed"

    async def test_a_renewed_code_is_its_challenges_own(self, redis: Redis, clock: FakeClock) -> None:
        codes = codes_of(redis, clock)
        first, code = await self.ask(codes)
        second, _ = await self.ask(codes)
        clock.advance(seconds=15)
        renewed = await codes.renew(second, ADA, HOME)
        assert renewed.is_due
        if renewed.digits != code.digits:
            assert await outcome(codes, second, code.digits) == "invalid"
        assert await outcome(codes, second, renewed.digits) == "redeemed"
        assert await outcome(codes, first, code.digits) == "redeemed"

    async def test_a_code_is_not_renewed_within_15_seconds(self, redis: Redis, clock: FakeClock) -> None:
        codes = codes_of(redis, clock)
        challenge, code = await self.ask(codes)
        clock.advance(seconds=14)
        assert not (await codes.renew(challenge, ADA, HOME)).is_due
        assert await outcome(codes, challenge, code.digits) == "redeemed"

    async def test_when_what_it_protects_has_changed_the_live_code_is_replaced_and_the_answer_is_the_same(
        self, redis: Redis, clock: FakeClock
    ) -> None:
        codes = codes_of(redis, clock)
        _, code = await self.ask(codes, binding="before")
        clock.advance(seconds=15)
        challenge, other = await self.ask(codes, binding="after")
        assert other.is_due
        assert other.expires_at.replace(microsecond=0) == code.expires_at.replace(microsecond=0)
        if code.digits != other.digits:
            assert await outcome(codes, challenge, code.digits) == "invalid"
        assert await outcome(codes, challenge, other.digits) == "redeemed"

    async def test_a_replaced_code_is_mailed_at_once_for_the_former_one_is_no_use_any_more(
        self, redis: Redis, clock: FakeClock
    ) -> None:
        codes = codes_of(redis, clock)
        await self.ask(codes, binding="before")
        clock.advance(seconds=1)
        challenge, code = await self.ask(codes, binding="after")
        assert code.is_due
        clock.advance(seconds=1)
        second, same = await self.ask(codes, binding="after")
        assert (same.is_due, same.digits) == (False, code.digits)
        assert await outcome(codes, second, code.digits) == "redeemed"
        assert await outcome(codes, challenge, code.digits) == "invalid"

    async def test_replaced_codes_count_like_all_others(self, redis: Redis, clock: FakeClock) -> None:
        codes = codes_of(redis, clock)
        asked = [await self.ask(codes, binding=f"change {change}") for change in range(2 * LIMITS.an_hour)]
        assert [code.is_due for _, code in asked] == [True] * LIMITS.an_hour + [False] * LIMITS.an_hour

    async def test_a_new_pepper_leaves_what_was_mailed_good_and_mails_it_again(
        self, redis: Redis, clock: FakeClock
    ) -> None:
        _, code = await self.ask(codes_of(redis, clock))
        both = Codes(
            redis,
            Purpose.REGISTRATION,
            LIMITS,
            peppers=[b"q" * 32, b"p" * 32],
            digits=6,
            clock=clock,
            random=secrets.token_bytes,
        )
        clock.advance(seconds=15)
        challenge, again = await self.ask(both)
        assert (again.is_due, again.digits) == (True, code.digits)
        assert await outcome(both, challenge, code.digits) == "redeemed"


@pytest.mark.slow
class TestBudgets:
    """Budgets per requester (a network, a known device, an account), and one for all unknown requesters together."""

    async def mailed(self, codes: Codes, clock: FakeClock, requester: Requester, times: int) -> int:
        count = 0
        for _ in range(times):
            clock.advance(seconds=1)
            with suppress(TooManyCodes):
                count += (await codes.issue(uuid4(), ADA, requester)).is_due
        return count

    @pytest.mark.parametrize("times", [3, 10, 1000])
    async def test_a_flood_from_one_network_keeps_nobody_else_out(
        self, redis: Redis, clock: FakeClock, times: int
    ) -> None:
        codes = codes_of(redis, clock, **OFTEN)
        assert await self.mailed(codes, clock, HOME, times) == min(times, 5)
        for requester in (Requester.at("192.0.2.2"), Requester.at("2001:db8::1"), Requester.on("phone")):
            assert (await codes.issue(uuid4(), ADA, requester)).is_due

    async def test_a_flood_from_many_networks_is_bounded_and_keeps_no_known_device_out(
        self, redis: Redis, clock: FakeClock
    ) -> None:
        codes, phone, count = codes_of(redis, clock, **OFTEN), Requester.on("phone"), 0
        for hour in range(24):
            clock.advance(hours=1)
            for network in range(20):
                stranger = Requester.at(f"2001:db8:{hour:x}:{network:x}::1")
                count += await self.mailed(codes, clock, stranger, 2)
        assert count == 20
        with pytest.raises(TooManyCodes):
            await codes.issue(uuid4(), ADA, Requester.of(uuid4()))
        challenge = uuid4()
        code = await codes.issue(challenge, ADA, phone)
        assert await outcome(codes, challenge, code.digits) == "redeemed"

    async def test_known_devices_have_their_own_bound_altogether(self, redis: Redis, clock: FakeClock) -> None:
        codes = codes_of(redis, clock, **OFTEN)
        devices = [Requester.on(f"device {number}") for number in range(9)]
        assert sum([await self.mailed(codes, clock, device, 9) for device in devices]) == 10
        assert (await codes.issue(uuid4(), ADA, HOME)).is_due

    async def test_an_ipv6_network_is_one_requester(self, redis: Redis, clock: FakeClock) -> None:
        codes = codes_of(redis, clock, **OFTEN)
        strangers = [Requester.at(f"2001:db8::{number:x}") for number in range(20)]
        assert sum([await self.mailed(codes, clock, stranger, 1) for stranger in strangers]) == 5
        assert Requester.at("::ffff:192.0.2.1") == HOME

    async def test_a_device_is_not_named_like_a_network_or_an_account(self) -> None:
        user_id = uuid4()
        names = {Requester.at(str(user_id)).name, Requester.on(str(user_id)).name, Requester.of(user_id).name}
        assert len(names) == 3

    async def test_a_redis_that_lost_everything_lets_people_in_again(self, redis: Redis, clock: FakeClock) -> None:
        codes, challenge = codes_of(redis, clock), uuid4()
        code = await codes.issue(challenge, ADA, HOME)
        await redis.flushall()
        assert await outcome(codes, challenge, code.digits) == "invalid"
        with suppress(TooManyCodes):
            await codes.renew(challenge, ADA, HOME)
        again = uuid4()
        code = await codes.issue(again, ADA, HOME)
        assert code.is_due
        assert await outcome(codes, again, code.digits) == "redeemed"


async def test_what_an_earlier_version_left_in_redis_is_no_code(redis: Redis, clock: FakeClock) -> None:
    codes, challenge = codes_of(redis, clock), uuid4()
    code = await codes.issue(challenge, ADA, HOME)
    (key,) = await redis.keys(f"codes:*:{challenge}")
    await redis.hdel(key, "code", "codes", "requester")
    assert await outcome(codes, challenge, code.digits) == "invalid"
    clock.advance(seconds=15)
    code = await codes.renew(challenge, ADA, HOME)
    assert await outcome(codes, challenge, code.digits) == "redeemed"
