"""Sign-in with a password."""

from __future__ import annotations

import asyncio
from collections import Counter
from contextlib import ExitStack
from datetime import timedelta
from functools import partial

import pytest
from argon2 import PasswordHasher
from google.rpc.error_details_pb2 import RetryInfo
from grpc import StatusCode
from grpc.aio import AioRpcError
from storymesh.auth.v1 import session_service_pb2 as pb

from tests.auth.conftest import PASSWORD, AuthWorld, MakeWorld, session_id_of
from tests.auth.work import executed, work
from tests.statuses import detail, raises_status, reason_of
from tests.waiting import until

ADA = "ada@example.org"
WRONG = "not the right password"


async def fail(world: AuthWorld, login: str, times: int) -> None:
    for _ in range(times):
        with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
            await world.sign_in(login, WRONG)


async def wait_told(world: AuthWorld, login: str, password: str = WRONG) -> timedelta:
    with pytest.raises(AioRpcError) as raised:
        await world.sign_in(login, password)
    assert (raised.value.code(), reason_of(raised.value)) == (StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_SIGN_INS")
    retry = detail(raised.value, RetryInfo)
    assert retry
    return retry.retry_delay.ToTimedelta()


async def has_counted(world: AuthWorld, failures: int) -> bool:
    """Whether a failure is counted in all three places: for the login, for the network and in total."""
    counts = [int(await world.redis.hget(key, "failures") or 0) for key in await world.redis.keys("signin:*")]
    return counts == [failures] * 3


@pytest.mark.parametrize("login", ["ada@example.org", " ADA@Example.ORG ", "ada.L", "ADA.l"])
async def test_the_address_and_the_username_sign_in_however_they_are_written(world: AuthWorld, login: str) -> None:
    member = await world.register(ADA, username="Ada.L")
    assert (await world.sign_in(login)).user == member.user


async def test_an_international_domain_signs_in_in_either_form(world: AuthWorld) -> None:
    member = await world.register("ada@xn--bcher-kva.example")
    assert (await world.sign_in("ada@Bücher.example")).user == member.user


@pytest.mark.parametrize(
    "login",
    [
        "nobody@example.org",
        "ada+tag@example.org",
        "a.da@example.org",
        "\N{CYRILLIC SMALL LETTER A}da@example.org",
        "ada@example.org\0",
        "@",
        "ada",
        "\N{PILE OF POO}",
        "%",
    ],
)
async def test_no_other_login_signs_in(world: AuthWorld, login: str) -> None:
    await world.register(ADA)
    with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
        await world.sign_in(login)


@pytest.mark.parametrize(
    "password", [PASSWORD + " ", PASSWORD.title(), PASSWORD + "\0", "\N{GRINNING FACE}", "x" * 1024]
)
async def test_no_other_password_signs_in(world: AuthWorld, password: str) -> None:
    await world.register(ADA)
    with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
        await world.sign_in(ADA, password)


async def test_every_sign_in_is_a_session_of_its_own_with_its_device(world: AuthWorld) -> None:
    first = await world.register(ADA)
    request = pb.CreateSessionRequest(login=ADA, password=PASSWORD, device_name="Ada's phone")
    second = await world.sessions.CreateSession(
        request, metadata=(("x-storymesh-client-address", "198.51.100.7"), ("x-user-agent", "Reader/1.0"))
    )
    assert session_id_of(first.tokens) != session_id_of(second.tokens)
    row = await world.scalar(
        "SELECT device_name || '|' || user_agent || '|' || ip FROM sessions WHERE id = :id",
        id=session_id_of(second.tokens),
    )
    assert row == "Ada's phone|Reader/1.0|198.51.100.7"


async def test_an_unnamed_device_is_called_by_its_user_agent(world: AuthWorld) -> None:
    member = await world.register(ADA)
    assert "grpc" in str(
        await world.scalar("SELECT device_name FROM sessions WHERE id = :id", id=session_id_of(member.tokens))
    )


@pytest.mark.slow
async def test_a_sign_in_that_a_password_change_overtakes_opens_no_session(make_world: MakeWorld) -> None:
    """The change ends all sessions; one that is being opened with the former password must not survive it."""
    world = await make_world(password_hash_memory_kib=65536, password_hash_passes=10)
    await world.register(ADA)
    looked_up = asyncio.Event()

    def look(statement: str) -> None:
        if "FROM users" in statement:
            looked_up.set()

    with executed(look):
        signing_in = asyncio.create_task(world.sign_in(ADA))
        await looked_up.wait()
        await world.execute("UPDATE users SET password_changed_at = password_changed_at + interval '1 second'")
        with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
            await signing_in
    assert await world.scalar("SELECT count(*) FROM sessions") == 1


async def test_without_a_place_for_its_password_a_sign_in_is_refused_before_anything_else(
    make_world: MakeWorld,
) -> None:
    """Whatever it says, so that a flood costs little; other calls, and a registration without a password, are not refused."""
    world = await make_world(password_hash_threads=1)
    member = await world.register(ADA)
    requests = [
        pb.CreateSessionRequest(login=ADA, password=PASSWORD, device_token=member.device_token),
        pb.CreateSessionRequest(login="nobody@example.org", password=WRONG),
        pb.CreateSessionRequest(),
    ]
    refusals = []
    with ExitStack() as places:
        for _ in range(5):  # one at work and four that wait
            places.enter_context(world.ops.passwords.admitted())

        async def refused() -> None:
            for request in requests:
                with pytest.raises(AioRpcError) as raised:
                    await world.sessions.CreateSession(request)
                refusals.append(raised.value)

        statements, commands = await work(world, refused)
        assert await world.account(member)
    assert {(each.code(), reason_of(each)) for each in refusals} == {(StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED")}
    assert {detail(each, RetryInfo) is not None for each in refusals} == {True}
    assert len({str(each.trailing_metadata()) for each in refusals}) == 1
    assert statements == []
    assert "cmdstat_eval" not in commands
    assert await world.sign_in(ADA)


class TestAlikeness:
    async def test_answers_to_unknown_logins_and_wrong_passwords_are_identical(self, world: AuthWorld) -> None:
        await world.register(ADA)
        answers = []
        for login in (ADA, "nobody@example.org"):
            calls = []
            for _ in range(7):
                call = world.sessions.CreateSession(pb.CreateSessionRequest(login=login, password=WRONG))
                metadata = str(await call.initial_metadata()), str(await call.trailing_metadata())
                calls.append((await call.code(), await call.details(), *metadata))
            answers.append(calls)
        assert answers[0] == answers[1]
        assert [code for code, *_ in answers[0]] == [StatusCode.UNAUTHENTICATED] * 5 + [
            StatusCode.RESOURCE_EXHAUSTED
        ] * 2

    async def test_the_same_statements_and_commands_run_for_unknown_logins_and_wrong_passwords(
        self, world: AuthWorld
    ) -> None:
        await world.register(ADA)
        await fail(world, "warm@example.org", 1)
        assert await work(world, lambda: fail(world, ADA, 1)) == await work(
            world, lambda: fail(world, "nobody@example.org", 1)
        )


@pytest.mark.slow
class TestThrottle:
    @pytest.mark.parametrize("login", [ADA, "nobody@example.org", "nobody"])
    async def test_after_five_failures_in_a_row_each_doubles_the_wait_up_to_15_minutes(
        self, world: AuthWorld, login: str
    ) -> None:
        await world.register(ADA)
        await fail(world, login, 5)
        waits = []
        for _ in range(12):
            waits.append((await wait_told(world, login)).total_seconds())
            world.clock.advance(seconds=waits[-1])
            await fail(world, login, 1)
        assert waits == [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900]

    async def test_the_right_password_has_to_wait_as_well_and_then_ends_the_throttle(self, world: AuthWorld) -> None:
        await world.register(ADA)
        await fail(world, ADA, 5)
        assert await wait_told(world, ADA, PASSWORD) == timedelta(seconds=1)
        world.clock.advance(seconds=1)
        await world.sign_in(ADA)
        await fail(world, ADA, 5)

    async def test_failures_count_per_login_however_it_is_written(self, world: AuthWorld) -> None:
        await world.register(ADA)
        await fail(world, ADA, 3)
        await fail(world, " ADA@example.ORG", 2)
        assert await wait_told(world, ADA)
        assert await world.sign_in((await world.register("bob@example.org")).user.email)

    async def test_64_simultaneous_guesses_are_five(self, make_world: MakeWorld) -> None:
        world = await make_world(password_hash_threads=13)  # so that all 64 are admitted
        await world.register(ADA)
        outcomes = await asyncio.gather(*(world.sign_in(ADA, WRONG) for _ in range(64)), return_exceptions=True)
        reasons = Counter(reason_of(outcome) for outcome in outcomes if isinstance(outcome, AioRpcError))
        assert reasons == {"INVALID_CREDENTIALS": 5, "TOO_MANY_SIGN_INS": 59}

    async def test_a_call_that_is_given_up_still_counts(self, make_world: MakeWorld) -> None:
        slow = await make_world(password_hash_memory_kib=65536, password_hash_passes=10, password_hash_threads=1)
        for failures in range(1, 6):
            call = slow.sessions.CreateSession(pb.CreateSessionRequest(login=ADA, password=WRONG))
            await until(partial(has_counted, slow, failures))
            call.cancel()
        assert await wait_told(slow, ADA)

    async def test_a_password_nobody_looked_at_is_no_failure(self, world: AuthWorld) -> None:
        await world.register(ADA)
        await fail(world, ADA, 4)
        await world.execute("ALTER TABLE users RENAME TO away")
        for _ in range(6):
            with raises_status(StatusCode.INTERNAL, "INTERNAL"):
                await world.sign_in(ADA)
        await world.execute("ALTER TABLE away RENAME TO users")
        await fail(world, ADA, 1)
        assert await wait_told(world, ADA) == timedelta(seconds=1)


class TestStoredHashes:
    async def test_a_hash_with_former_parameters_is_renewed_at_sign_in(self, make_world: MakeWorld) -> None:
        former = await make_world(password_hash_memory_kib=32)
        await former.register(ADA)
        assert "$m=32,t=1,p=1$" in str(await former.scalar("SELECT password_hash FROM users"))
        world = await make_world(password_hash_memory_kib=64)
        await asyncio.gather(*(world.sign_in(ADA) for _ in range(5)))
        renewed = str(await world.scalar("SELECT password_hash FROM users"))
        assert "$m=64,t=1,p=1$" in renewed
        await world.sign_in(ADA)
        assert await world.scalar("SELECT password_hash FROM users") == renewed

    @pytest.mark.parametrize(
        "poison",
        [
            "$argon2id$v=19$m=4194304,t=2,p=1$c29tZXNhbHRzb21lc2FsdA$RdescudvJCsgt3ub+b/dWRWJTmaQkZUX4Ng8mV4g1jU",
            "$argon2id$v=19$m=64,t=4000000,p=1$c29tZXNhbHRzb21lc2FsdA$RdescudvJCsgt3ub+b/dWRWJTmaQkZUX4Ng8mV4g1jU",
            "$argon2id$v=19$m=65536,t=1,p=8192$c29tZXNhbHRzb21lc2FsdA$RdescudvJCsgt3ub+b/dWRWJTmaQkZUX4Ng8mV4g1jU",
            "$argon2i$v=19$m=64,t=1,p=1$c29tZXNhbHRzb21lc2FsdA$RdescudvJCsgt3ub+b/dWRWJTmaQkZUX4Ng8mV4g1jU",
            "$2b$12$R9h/cIPz0gi.URNNX3kh2OPST9/PgBkqquzi.Ss7KIUgO2t0jWMUW",
            "$argon2id$v=19$m=64,t=1,p=1$!$!",
            PASSWORD,
            "",
        ],
    )
    async def test_a_poisoned_hash_signs_nobody_in_and_costs_no_more_than_any_other(
        self, world: AuthWorld, poison: str
    ) -> None:
        await world.register(ADA)
        await world.execute("UPDATE users SET password_hash = :poison", poison=poison)
        request = pb.CreateSessionRequest(login=ADA, password=PASSWORD)
        with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
            await world.sessions.CreateSession(request, timeout=5)

    async def test_a_hash_of_the_default_parameters_is_argon2id_as_owasp_has_it(self, make_world: MakeWorld) -> None:
        world = await make_world(password_hash_memory_kib=19456, password_hash_passes=2)
        await world.register(ADA)
        stored = str(await world.scalar("SELECT password_hash FROM users"))
        assert stored.startswith("$argon2id$v=19$m=19456,t=2,p=1$")
        assert PasswordHasher().verify(stored, PASSWORD)
