"""Throttling guesses without locking owners out, and without telling who has an account."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from argon2 import PasswordHasher
from grpc import StatusCode
from grpc.aio import AioRpcError
from storymesh.auth.v1 import account_service_pb2, session_service_pb2
from storymesh.events.v1 import auth_events_pb2 as events

from kit.runtime import base64url
from services.auth.model.device_tokens import DeviceTokens
from tests.auth.conftest import PASSWORD, REFRESH_KEY, AuthWorld, MakeWorld, Member, wrong
from tests.auth.work import work
from tests.statuses import raises_status, reason_of

pytestmark = pytest.mark.slow

ADA, BOB, NOBODY = "ada@example.org", "bob@example.org", "nobody@example.org"
NETWORK = "198.51.100.7"
WRONG = "not the right password"
NEW = "an entirely different phrase"


@pytest.fixture
async def ada(world: AuthWorld) -> Member:
    return await world.register(ADA, username="countess")


async def guess(
    world: AuthWorld,
    login: str,
    password: str = WRONG,
    *,
    ip: str = NETWORK,
    claimed: str = "",
    device_token: str | None = None,
) -> str:
    """The reason of the refusal; "" for a sign-in. `ip` is the edge's address, `claimed` one from a client's header."""
    request = session_service_pb2.CreateSessionRequest(login=login, password=password, device_token=device_token)
    try:
        await world.sessions.CreateSession(
            request, metadata=(("x-storymesh-client-address", ip), ("x-forwarded-for", claimed))
        )
    except AioRpcError as error:
        return reason_of(error)
    return ""


async def guesses(world: AuthWorld, times: int, login: str, password: str = WRONG, **changes: Any) -> list[str]:
    return [await guess(world, login, password, **changes) for _ in range(times)]


REFUSED, SLOWED = "INVALID_CREDENTIALS", "TOO_MANY_SIGN_INS"


class TestKnownDevices:
    async def test_an_attacker_at_the_same_login_does_not_slow_down_a_known_device(
        self, world: AuthWorld, ada: Member
    ) -> None:
        assert await guesses(world, 6, ADA) == [REFUSED] * 5 + [SLOWED]
        assert await guess(world, ADA, PASSWORD) == SLOWED
        assert await guess(world, ADA, PASSWORD, device_token=ada.device_token) == ""

    async def test_failures_on_a_known_device_do_not_slow_down_others(self, world: AuthWorld, ada: Member) -> None:
        assert await guesses(world, 6, ADA, device_token=ada.device_token) == [REFUSED] * 5 + [SLOWED]
        # By any of the account's logins.
        assert await guess(world, "countess", PASSWORD, device_token=ada.device_token) == SLOWED
        assert await guess(world, ADA, PASSWORD) == ""

    async def test_a_device_that_knows_the_account_is_slowed_down_as_well(self, world: AuthWorld, ada: Member) -> None:
        await guesses(world, 5, ADA, device_token=ada.device_token)
        world.clock.advance(seconds=1)
        assert await guesses(world, 2, ADA, device_token=ada.device_token) == [REFUSED, SLOWED]

    async def test_a_device_token_that_is_forged_cut_or_of_another_account_makes_nothing_known(
        self, world: AuthWorld, ada: Member
    ) -> None:
        bob = await world.register(BOB)
        raw = base64url.decode(ada.device_token.removeprefix("smd1_"))
        renamed = raw[:16] + bytes(16) + raw[32:]
        await guesses(world, 5, ADA)
        for token in (
            bob.device_token,
            DeviceTokens([b"x" * 32], bytes).make(uuid4()),
            "smd1_" + base64url.encode(renamed),
            "smd1_" + base64url.encode(raw[:32]),
            ada.device_token[:-4],
            ada.device_token + "AAAA",
            "smd1_",
            "garbage",
            "\N{PILE OF POO}",
            "\0",
        ):
            assert await guess(world, ADA, PASSWORD, device_token=token) == SLOWED

    async def test_a_sign_in_answers_with_the_token_of_the_device_and_a_new_one_for_a_new_device(
        self, world: AuthWorld, ada: Member
    ) -> None:
        bob = await world.register(BOB)
        assert (await world.sign_in(ADA, device_token=ada.device_token)).device_token == ada.device_token
        others = [
            (await world.sign_in(ADA, device_token=token)).device_token for token in (None, bob.device_token, "x")
        ]
        assert len({ada.device_token, bob.device_token, *others}) == 5
        assert DeviceTokens([b"n" * 32, REFRESH_KEY], bytes).name_of(others[0], uuid4()) is None

    async def test_a_login_is_never_taken_for_a_device_an_account_or_a_person(self, make_world: MakeWorld) -> None:
        """A login may be any text. If some were the same counter, a stranger who knows an id could lock its owner out."""
        world = await make_world(sign_in_most_failures=6)
        ada = await world.register(ADA)
        device = DeviceTokens([REFRESH_KEY], bytes).name_of(ada.device_token, UUID(ada.user.id))
        for login in (f"user {ada.user.id}", f"device {device}", ada.user.id, f"of {ada.user.id}"):
            assert await guesses(world, 6, login) == [REFUSED] * 5 + [SLOWED]
        assert await guess(world, ADA, WRONG, device_token=ada.device_token) == REFUSED
        assert await world.told(events.PasswordDisabled) == []
        await world.change_password(ada, NEW)


class TestWindows:
    @pytest.fixture
    async def world(self, make_world: MakeWorld) -> AuthWorld:
        return await make_world(sign_in_failures_per_network=3, sign_in_failures_altogether=8)

    async def test_guessing_at_many_logins_from_one_network_is_bounded(self, world: AuthWorld, ada: Member) -> None:
        outcomes = [await guess(world, f"person{number}@example.org") for number in range(5)]
        assert outcomes == [REFUSED] * 3 + [SLOWED] * 2
        assert await guess(world, ADA, PASSWORD) == SLOWED
        assert await guess(world, ADA, PASSWORD, ip="198.51.100.8") == ""
        world.clock.advance(minutes=10)
        assert await guess(world, ADA, PASSWORD) == ""

    async def test_a_whole_ipv6_network_is_one(self, world: AuthWorld, ada: Member) -> None:
        for host in range(3):
            assert await guess(world, f"person{host}", ip=f"2001:db8:0:1:{host}::1") == REFUSED
        assert await guess(world, ADA, PASSWORD, ip="2001:db8:0:1:ffff:ffff:ffff:ffff") == SLOWED
        assert await guess(world, ADA, PASSWORD, ip="2001:DB8::1:0:0:0:9") == SLOWED
        assert await guess(world, ADA, PASSWORD, ip="2001:db8:0:2::1") == ""

    async def test_an_ipv4_address_written_as_ipv6_is_the_same(self, world: AuthWorld, ada: Member) -> None:
        for number, ip in enumerate(("198.51.100.7", "::ffff:198.51.100.7", "::ffff:c633:6407")):
            assert await guess(world, f"person{number}", ip=ip) == REFUSED
        assert await guess(world, ADA, PASSWORD, ip="198.51.100.7") == SLOWED
        assert await guess(world, ADA, PASSWORD, ip="::ffff:198.51.100.8") == ""

    async def test_only_the_address_counts_that_the_edge_saw(self, world: AuthWorld, ada: Member) -> None:
        for number in range(3):
            assert await guess(world, f"person{number}", claimed=f"203.0.113.{number}") == REFUSED
        assert await guess(world, ADA, PASSWORD, claimed="203.0.113.9, 198.51.100.7") == SLOWED
        assert await guess(world, ADA, PASSWORD, ip="203.0.113.9", claimed=NETWORK) == ""

    async def test_right_passwords_and_throttled_tries_use_nothing_up(self, world: AuthWorld, ada: Member) -> None:
        for _ in range(5):
            assert await guess(world, ADA, PASSWORD) == ""
        assert await guesses(world, 2, NOBODY) == [REFUSED] * 2
        assert await guess(world, ADA, PASSWORD) == ""
        assert await guess(world, NOBODY) == REFUSED

    async def test_guessing_from_everywhere_is_bounded_and_known_devices_are_exempt(
        self, world: AuthWorld, ada: Member
    ) -> None:
        outcomes = [await guess(world, f"person{number}", ip=f"198.51.100.{number}") for number in range(10)]
        assert outcomes == [REFUSED] * 8 + [SLOWED] * 2
        assert await guess(world, ADA, PASSWORD) == SLOWED
        assert await guess(world, ADA, PASSWORD, device_token=ada.device_token) == ""
        # Failures of known devices are not counted in windows.
        world.clock.advance(minutes=10)
        await guesses(world, 4, ADA, device_token=ada.device_token)
        assert await guess(world, NOBODY) == REFUSED

    async def test_no_window_stands_before_what_people_do_who_are_signed_in(
        self, world: AuthWorld, ada: Member
    ) -> None:
        await guesses(world, 3, NOBODY)
        assert await guess(world, ADA, PASSWORD) == SLOWED
        await world.change_password(ada, NEW)


class TestDisabledPasswords:
    @pytest.fixture
    async def world(self, make_world: MakeWorld) -> AuthWorld:
        return await make_world(sign_in_most_failures=7)

    async def test_failures_in_a_row_from_anywhere_disable_the_password_once(
        self, world: AuthWorld, ada: Member
    ) -> None:
        await guesses(world, 3, ADA)
        await guesses(world, 3, "countess", ip="198.51.100.8")
        assert await world.told(events.PasswordDisabled) == []
        with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
            await world.change_password(ada, NEW, current=WRONG)
        assert [event.user_id for event in await world.told(events.PasswordDisabled)] == [ada.user.id]
        # The right password is refused like a wrong one, also from known devices, which sends no second notice.
        answers = []
        for password in (PASSWORD, WRONG):
            request = session_service_pb2.CreateSessionRequest(
                login=ADA, password=password, device_token=ada.device_token
            )
            call = world.sessions.CreateSession(request)
            answers.append((await call.code(), await call.details(), str(await call.trailing_metadata())))
        assert answers[0] == answers[1]
        assert answers[0][0] is StatusCode.UNAUTHENTICATED
        assert len(await world.told(events.PasswordDisabled)) == 1
        assert [action for action, _ in await world.audited()].count("PASSWORD_DISABLE") == 1

    async def test_simultaneous_failures_disable_it_once(self, world: AuthWorld, ada: Member) -> None:
        await guesses(world, 4, ADA)
        await asyncio.gather(*(guess(world, "countess") for _ in range(5)))
        assert len(await world.told(events.PasswordDisabled)) == 1

    async def test_a_right_password_ends_the_row(self, world: AuthWorld, ada: Member) -> None:
        for _ in range(3):
            assert await guesses(world, 4, ADA) == [REFUSED] * 4
            assert await guess(world, ADA, PASSWORD) == ""
        assert await world.told(events.PasswordDisabled) == []

    async def test_sessions_go_on_while_the_password_is_disabled(self, world: AuthWorld, ada: Member) -> None:
        for _ in range(7):
            world.clock.advance(seconds=16)
            await guess(world, ADA)
        assert await world.scalar("SELECT password_disabled_at IS NOT NULL FROM users")
        assert await world.account(ada)
        assert await world.refresh(ada.tokens.refresh_token)


class TestCosts:
    async def test_a_try_that_is_refused_by_the_throttle_is_not_hashed(
        self, world: AuthWorld, ada: Member, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        hashed: list[str] = []
        verify = PasswordHasher.verify

        def counting(hasher: PasswordHasher, stored: str, password: str) -> bool:
            hashed.append(stored)
            return verify(hasher, stored, password)

        monkeypatch.setattr(PasswordHasher, "verify", counting)
        for login in (ADA, NOBODY):
            hashed.clear()
            assert await guesses(world, 20, login) == [REFUSED] * 5 + [SLOWED] * 15
            assert len(hashed) == 5
        hashed.clear()
        for _ in range(10):
            with pytest.raises(AioRpcError):
                await world.change_password(ada, NEW, current=WRONG)
        assert len(hashed) == 5

    async def test_tries_that_are_refused_by_the_throttle_do_not_fill_the_audit_log(
        self, world: AuthWorld, ada: Member
    ) -> None:
        before = len(await world.audited())
        await guesses(world, 20, ADA)
        assert len(await world.audited()) == before + 5


class TestAlikeness:
    """Neither the answers nor the work done for them tell whether an address has an account, also at the second call."""

    @pytest.mark.parametrize("kind", ["start_code", "start_reset"])
    async def test_asking_for_codes(self, world: AuthWorld, ada: Member, kind: str) -> None:
        start = {"start_code": start_code, "start_reset": start_reset}[kind]
        await getattr(world, kind)("warm@example.org")
        assert await work(world, start(world, ADA)) == await work(world, start(world, NOBODY))
        # The second call comes within the cool-down.
        answers = [await answer(start(world, email)()) for email in (ADA, NOBODY)]
        assert answers[0] == answers[1]
        assert answers[0][0] is StatusCode.OK
        world.clock.advance(minutes=1)
        answers = [await answer(start(world, email)()) for email in (ADA, NOBODY)]
        assert answers[0] == answers[1]
        assert answers[0][0] is StatusCode.OK

    @pytest.mark.parametrize("kind", ["sign-in", "reset"])
    async def test_wrong_codes(self, world: AuthWorld, ada: Member, kind: str) -> None:
        start = world.start_code if kind == "sign-in" else world.start_reset
        redeem = complete_code if kind == "sign-in" else complete_reset
        challenges = {email: await start(email) for email in (ADA, NOBODY, "warm@example.org")}
        codes = {email: wrong(await world.code(challenge)) for email, challenge in challenges.items()}
        await answer(redeem(world, challenges["warm@example.org"], codes["warm@example.org"])())
        statements = {
            email: (await work(world, redeem(world, challenges[email], codes[email])))[0] for email in (ADA, NOBODY)
        }
        assert statements[ADA] == statements[NOBODY]
        answers = {
            email: [await answer(redeem(world, challenges[email], codes[email])()) for _ in range(6)]
            for email in (ADA, NOBODY)
        }
        assert answers[ADA] == answers[NOBODY]
        assert {code for code, *_ in answers[ADA]} == {StatusCode.UNAUTHENTICATED}

    async def test_moving_to_an_address(self, world: AuthWorld, ada: Member) -> None:
        await world.register(BOB)
        await world.start_email_change(ada, "warm@example.org")

        def start(email: str) -> Callable[[], Any]:
            request = account_service_pb2.StartEmailChangeRequest(new_email=email, password=PASSWORD)
            return lambda: world.accounts.StartEmailChange(request, metadata=ada.auth)

        assert await work(world, start(BOB)) == await work(world, start(NOBODY))
        answers = [await answer(start(email)()) for email in (BOB, NOBODY)]
        assert answers[0] == answers[1]
        assert answers[0][0] is StatusCode.OK
        world.clock.advance(minutes=1)
        answers = [await answer(start(email)()) for email in (BOB, NOBODY)]
        assert answers[0] == answers[1]
        assert answers[0][0] is StatusCode.OK

    async def test_logins_whose_wait_has_begun(self, world: AuthWorld, ada: Member) -> None:
        await guesses(world, 5, ADA)
        await guesses(world, 5, NOBODY)
        assert await work(world, sign_in(world, ADA)) == await work(world, sign_in(world, NOBODY))

    async def test_logins_with_a_device_token_of_another_account(self, world: AuthWorld, ada: Member) -> None:
        bob = await world.register(BOB)
        await guess(world, "warm@example.org", device_token=bob.device_token)
        calls = [sign_in(world, login, bob.device_token) for login in (ADA, NOBODY)]
        assert await work(world, calls[0]) == await work(world, calls[1])


def start_code(world: AuthWorld, email: str) -> Callable[[], Any]:
    request = session_service_pb2.StartSessionCodeRequest(email=email)
    return lambda: world.sessions.StartSessionCode(request)


def start_reset(world: AuthWorld, email: str) -> Callable[[], Any]:
    request = account_service_pb2.StartPasswordResetRequest(email=email)
    return lambda: world.accounts.StartPasswordReset(request)


def complete_code(world: AuthWorld, challenge_id: str, code: str) -> Callable[[], Any]:
    request = session_service_pb2.CompleteSessionCodeRequest(challenge_id=challenge_id, code=code)
    return lambda: world.sessions.CompleteSessionCode(request)


def complete_reset(world: AuthWorld, challenge_id: str, code: str) -> Callable[[], Any]:
    request = account_service_pb2.CompletePasswordResetRequest(challenge_id=challenge_id, code=code, new_password=NEW)
    return lambda: world.accounts.CompletePasswordReset(request)


def sign_in(world: AuthWorld, login: str, device_token: str | None = None) -> Callable[[], Any]:
    request = session_service_pb2.CreateSessionRequest(login=login, password=WRONG, device_token=device_token)
    return lambda: world.sessions.CreateSession(request, metadata=(("x-storymesh-client-address", NETWORK),))


async def answer(call: Any) -> tuple[Any, ...]:
    """Everything that the caller sees, without the random id."""
    code, metadata = await call.code(), (str(await call.initial_metadata()), str(await call.trailing_metadata()))
    body = b""
    if code is StatusCode.OK:
        response = await call
        assert len(response.challenge_id) == 36
        response.challenge_id = ""
        body = response.SerializeToString()
    return code, await call.details(), body, *metadata
