"""A proof is void once what it protects has changed: a code requested before a change is refused after it."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from uuid import UUID

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError

from services.auth import store
from tests.auth.conftest import PASSWORD, AuthWorld, MakeWorld, Member, outcomes
from tests.statuses import raises_status
from tests.waiting import until

pytestmark = pytest.mark.slow

ADA, COUNTESS = "ada@example.org", "countess@example.org"
NEW, NEWER = "an entirely different phrase", "one more phrase, different again"
WRONG = "not the right password"

Change = Callable[[AuthWorld, Member], Awaitable[None]]


async def password_changed(world: AuthWorld, ada: Member) -> None:
    await world.change_password(ada, NEW)


async def password_reset(world: AuthWorld, ada: Member) -> None:
    challenge = await world.start_reset(ADA)
    await world.complete_reset(challenge, await world.code(challenge), NEW)


async def moved_away(world: AuthWorld, ada: Member) -> None:
    challenge = await world.start_email_change(ada, "elsewhere@example.org")
    await world.complete_email_change(ada, challenge, await world.code(challenge))


async def moved_away_and_back(world: AuthWorld, ada: Member) -> None:
    await moved_away(world, ada)
    challenge = await world.start_email_change(ada, ADA)
    await world.complete_email_change(ada, challenge, await world.code(challenge))


async def password_disabled(world: AuthWorld, ada: Member) -> None:
    for _ in range(3):
        with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
            await world.sign_in(ADA, WRONG)


async def made_an_administrator_and_none_again(world: AuthWorld, ada: Member) -> None:
    await world.grant_admin(ADA)
    await world.withdraw_admin(ADA)


async def deleted_and_registered_again(world: AuthWorld, ada: Member) -> None:
    await world.delete_account(ada, password=PASSWORD)
    await world.register(ADA)


CHANGES: list[Change] = [
    password_changed,
    password_reset,
    moved_away,
    moved_away_and_back,
    password_disabled,
    made_an_administrator_and_none_again,
    deleted_and_registered_again,
]


@pytest.fixture
async def world(make_world: MakeWorld) -> AuthWorld:
    return await make_world(code_cooldown_seconds=0, live_registrations=10, sign_in_most_failures=3)


@pytest.fixture
async def ada(world: AuthWorld) -> Member:
    return await world.register(ADA)


async def signed_in(world: AuthWorld, ada: Member) -> Member:
    """Sign in to the account as it is now; the change may have ended the session."""
    try:
        await world.account(ada)
    except AioRpcError:
        try:
            return await world.sign_in(ADA)
        except AioRpcError:
            return await world.sign_in(ADA, NEW)
    return ada


@pytest.mark.parametrize("change", CHANGES)
async def test_no_code_from_before_a_change_works_after_it(world: AuthWorld, ada: Member, change: Change) -> None:
    sign_in, reset = await world.start_code(ADA), await world.start_reset(ADA)
    move = await world.start_email_change(ada, COUNTESS)
    codes = {each: await world.code(each) for each in (sign_in, reset, move)}
    await change(world, ada)
    member = await signed_in(world, ada)
    for call in (
        world.complete_code(sign_in, codes[sign_in]),
        world.complete_reset(reset, codes[reset], NEWER),
        world.complete_email_change(member, move, codes[move]),
        world.delete_account(member, challenge_id=sign_in, code=codes[sign_in]),
        world.change_password(member, NEWER, challenge_id=sign_in, code=codes[sign_in]),
        world.start_email_change(member, COUNTESS, challenge_id=sign_in, code=codes[sign_in]),
    ):
        with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
            await call


@pytest.mark.parametrize("change", CHANGES)
async def test_codes_asked_for_after_the_change_work(world: AuthWorld, ada: Member, change: Change) -> None:
    """Needed above all to enable a disabled password."""
    await change(world, ada)
    email = "elsewhere@example.org" if change is moved_away else ADA
    sign_in = await world.start_code(email)
    member = await world.complete_code(sign_in, await world.code(sign_in))
    assert member.user.email == email
    reset = await world.start_reset(email)
    await world.complete_reset(reset, await world.code(reset), NEWER)
    assert await world.sign_in(email, NEWER)


async def test_a_code_to_sign_in_changes_nothing_that_other_codes_protect(world: AuthWorld, ada: Member) -> None:
    reset, sign_in = await world.start_reset(ADA), await world.start_code(ADA)
    await world.complete_code(sign_in, await world.code(sign_in))
    await world.complete_reset(reset, await world.code(reset), NEW)


async def test_another_name_or_other_preferences_void_no_code(world: AuthWorld, ada: Member) -> None:
    reset = await world.start_reset(ADA)
    await world.execute("UPDATE users SET first_name = 'Augusta'")
    await world.complete_reset(reset, await world.code(reset), NEW)


class TestTwoCodes:
    async def test_of_two_resets_one_sets_the_password(self, world: AuthWorld, ada: Member) -> None:
        first, second = await world.start_reset(ADA), await world.start_reset(ADA)
        await world.complete_reset(second, await world.code(second), NEW)
        with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
            await world.complete_reset(first, await world.code(first), NEWER)
        assert await world.sign_in(ADA, NEW)

    async def test_of_two_resets_at_once_one_sets_the_password(self, world: AuthWorld, ada: Member) -> None:
        challenges = [await world.start_reset(ADA) for _ in range(4)]
        codes = [await world.code(each) for each in challenges]
        resets = (
            world.complete_reset(challenge, code, f"the phrase of device number {code}")
            for challenge, code in zip(challenges, codes, strict=True)
        )
        assert await outcomes(*resets) == {"": 1, "CODE_INVALID": 3}

    async def test_of_two_moves_at_once_one_is_made(self, world: AuthWorld, ada: Member) -> None:
        moves = [await world.start_email_change(ada, f"home{number}@example.org") for number in range(4)]
        codes = [await world.code(each) for each in moves]
        calls = (world.complete_email_change(ada, move, code) for move, code in zip(moves, codes, strict=True))
        assert await outcomes(*calls) == {"": 1, "CODE_INVALID": 3}

    async def test_of_a_reset_and_a_change_at_once_one_is_made(self, world: AuthWorld, ada: Member) -> None:
        reset = await world.start_reset(ADA)
        code = await world.code(reset)
        reasons = await outcomes(world.complete_reset(reset, code, NEW), world.change_password(ada, NEWER))
        assert reasons[""] == 1
        assert sum(reasons.values()) == 2


class TestRaces:
    async def test_a_challenge_written_while_the_password_changes_is_void(self, world: AuthWorld, ada: Member) -> None:
        async with world.db.transaction() as tx:
            await tx.exec_driver_sql("LOCK TABLE challenges IN SHARE MODE")
            asking = asyncio.create_task(world.start_reset(ADA))
            await until(world.waits_for_a_lock)
            await world.change_password(ada, NEW)
        challenge = await asking
        with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
            await world.complete_reset(challenge, await world.code(challenge), NEWER)

    @pytest.mark.parametrize("by_code", [False, True])
    @pytest.mark.parametrize("what", ["delete", "move", "change"])
    async def test_what_was_proven_before_a_change_is_refused_after_it(
        self, world: AuthWorld, ada: Member, what: str, by_code: bool
    ) -> None:
        """The proof is checked, then the password changes, and only then the proof is used."""
        challenge = await world.start_code(ADA)
        code = {"challenge_id": challenge, "code": await world.code(challenge)} if by_code else {}
        calls: dict[str, Callable[[], Awaitable[object]]] = {
            "delete": lambda: world.delete_account(ada, password="" if by_code else PASSWORD, **code),
            "move": lambda: world.start_email_change(ada, COUNTESS, **code),
            "change": lambda: world.change_password(ada, NEWER, **code),
        }
        async with world.db.transaction() as tx:
            await store.users.lock(tx, UUID(ada.user.id))
            call = asyncio.ensure_future(calls[what]())
            await until(world.waits_for_a_lock)
            await store.users.set_password(tx, UUID(ada.user.id), "another", world.clock())
        with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID" if by_code else "INVALID_CREDENTIALS"):
            await call
        assert await world.scalar("SELECT count(*) FROM users WHERE password_hash = 'another'") == 1

    async def test_a_code_stays_void_whatever_redis_remembers(self, world: AuthWorld, ada: Member) -> None:
        reset = await world.start_reset(ADA)
        code = await world.code(reset)
        async with world.forgotten_by_redis(reset):
            await world.change_password(ada, NEW)
        for _ in range(3):
            with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
                await world.complete_reset(reset, code, NEWER)


class TestRegistrations:
    async def test_a_code_to_register_is_void_once_the_address_has_an_account(
        self, world: AuthWorld, ada: Member
    ) -> None:
        """However the address got the account, and even if the account was deleted since."""
        registrations = [await world.start(COUNTESS) for _ in range(2)]
        codes = [await world.code(each) for each in registrations]
        move = await world.start_email_change(ada, COUNTESS)
        await world.complete_email_change(ada, move, await world.code(move))
        with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
            await world.complete(registrations[0], codes[0])
        await world.delete_account(ada, password=PASSWORD)
        with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
            await world.complete(registrations[1], codes[1])


async def test_the_epoch_is_looked_at_with_the_account_locked(world: AuthWorld, ada: Member) -> None:
    """A completion that waits for a change of the same account sees it."""
    challenge = await world.start_code(ADA)
    code = await world.code(challenge)
    async with world.db.transaction() as tx:
        await store.users.lock(tx, UUID(ada.user.id))
        completing = asyncio.create_task(world.complete_code(challenge, code))
        await until(world.waits_for_a_lock)
        await store.users.set_password(tx, UUID(ada.user.id), "another", world.clock())
    with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
        await completing
