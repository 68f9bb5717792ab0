"""No answer tells whether an address has an account: apart from random ids its bytes are the same, after any number of calls."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID, uuid4

import pytest
from google.protobuf.message import Message
from grpc import StatusCode
from storymesh.auth.v1 import account_service_pb2, registration_service_pb2, session_service_pb2

from tests.auth.conftest import PASSWORD, AuthWorld, MakeWorld, Member

pytestmark = pytest.mark.slow

ADA, BOB = "ada@example.org", "bob@example.org"
"""Ada has an account, Bob has none."""

WRONG = "not the right password"


@dataclass(frozen=True)
class Answer:
    """Everything that a caller sees."""

    code: StatusCode
    details: str
    body: bytes
    initial_metadata: str
    trailing_metadata: str
    """The trailing metadata, with the status and its details as they are sent."""


class Asker:
    """A client that asks about one address, and keeps the answers."""

    def __init__(self, world: AuthWorld, email: str, stranger: Member) -> None:
        self.world = world
        self.email = email
        self.stranger = stranger
        self.answers: list[Answer] = []

    async def ask(self, method: Any, request: Message, *, times: int = 1, signed_in: bool = False) -> str:
        """Make a call and return the id in its answer, if any: the only part that may differ."""
        found = ""
        for _ in range(times):
            call = method(request, metadata=self.stranger.auth if signed_in else ())
            code = await call.code()
            body = await call if code is StatusCode.OK else None
            for field in ("registration_id", "challenge_id"):
                if body is not None and hasattr(body, field):
                    found = getattr(body, field)
                    assert UUID(found).version == 4
                    body.ClearField(field)
            trailing = str(await call.trailing_metadata())
            assert (code is StatusCode.OK) != ("grpc-status-details-bin" in trailing)
            self.answers.append(
                Answer(
                    code,
                    await call.details(),
                    body.SerializeToString(deterministic=True) if body is not None else b"",
                    str(await call.initial_metadata()),
                    trailing,
                )
            )
        return found


async def registering(asker: Asker) -> None:
    registrations, clock = asker.world.registrations, asker.world.clock
    create = registration_service_pb2.CreateRegistrationRequest(email=asker.email, password=PASSWORD)
    registration_id = await asker.ask(registrations.CreateRegistration, create)
    await asker.ask(registrations.CreateRegistration, create)
    resend = registration_service_pb2.ResendRegistrationCodeRequest(registration_id=registration_id)
    await asker.ask(registrations.ResendRegistrationCode, resend)
    for _ in range(2):
        clock.advance(minutes=1)
        await asker.ask(registrations.ResendRegistrationCode, resend, times=2)
    complete = registration_service_pb2.CompleteRegistrationRequest(registration_id=registration_id, code="000000")
    await asker.ask(registrations.CompleteRegistration, complete, times=6)
    clock.advance(minutes=1)
    await asker.ask(registrations.ResendRegistrationCode, resend)
    for _ in range(6):
        await asker.ask(registrations.CreateRegistration, create)
        clock.advance(minutes=1)
    clock.advance(minutes=10)
    await asker.ask(registrations.CreateRegistration, create, times=2)
    assert asker.answers[-1].code is StatusCode.RESOURCE_EXHAUSTED
    clock.advance(minutes=20)
    await asker.ask(registrations.ResendRegistrationCode, resend, times=2)
    await asker.ask(registrations.CompleteRegistration, complete)


async def registering_without_a_password(asker: Asker) -> None:
    create = registration_service_pb2.CreateRegistrationRequest(email=asker.email)
    await asker.ask(asker.world.registrations.CreateRegistration, create, times=2)


async def registering_with_a_weak_password(asker: Asker) -> None:
    create = registration_service_pb2.CreateRegistrationRequest(email=asker.email, password="password1234567")
    await asker.ask(asker.world.registrations.CreateRegistration, create, times=2)


async def signing_in_by_address(asker: Asker) -> None:
    await signing_in(asker, asker.email)


async def signing_in_by_username(asker: Asker) -> None:
    await signing_in(asker, asker.email.partition("@")[0])


async def signing_in_where_there_is_no_password(asker: Asker) -> None:
    await asker.world.execute("UPDATE users SET password_hash = NULL WHERE email = :email", email=asker.email)
    await signing_in(asker, asker.email)


async def signing_in(asker: Asker, login: str) -> None:
    sessions, clock = asker.world.sessions, asker.world.clock
    wrong = session_service_pb2.CreateSessionRequest(login=login, password=WRONG)
    await asker.ask(sessions.CreateSession, wrong, times=7)
    for _ in range(3):
        clock.advance(minutes=1)
        await asker.ask(sessions.CreateSession, wrong, times=2)
    # An account's password is disabled by now, so even the right one is refused.
    clock.advance(minutes=15)
    right = session_service_pb2.CreateSessionRequest(login=login, password=PASSWORD)
    await asker.ask(sessions.CreateSession, right, times=2)


async def signing_in_from_a_device_that_is_somebody_elses(asker: Asker) -> None:
    request = session_service_pb2.CreateSessionRequest(
        login=asker.email, password=WRONG, device_token=asker.stranger.device_token
    )
    await asker.ask(asker.world.sessions.CreateSession, request, times=7)


async def signing_in_with_a_code(asker: Asker) -> None:
    sessions, accounts, clock = asker.world.sessions, asker.world.accounts, asker.world.clock
    start = session_service_pb2.StartSessionCodeRequest(email=asker.email)
    challenge_id = await asker.ask(sessions.StartSessionCode, start)
    await asker.ask(sessions.StartSessionCode, start)
    complete = session_service_pb2.CompleteSessionCodeRequest(challenge_id=challenge_id, code="00000000")
    await asker.ask(sessions.CompleteSessionCode, complete, times=6)
    other_purpose = account_service_pb2.CompletePasswordResetRequest(
        challenge_id=challenge_id, code="00000000", new_password=PASSWORD
    )
    await asker.ask(accounts.CompletePasswordReset, other_purpose)
    clock.advance(minutes=5)
    await asker.ask(sessions.CompleteSessionCode, complete)
    for _ in range(6):
        await asker.ask(sessions.StartSessionCode, start)
        clock.advance(minutes=1)
    clock.advance(minutes=10)
    await asker.ask(sessions.StartSessionCode, start, times=2)
    assert asker.answers[-1].code is StatusCode.RESOURCE_EXHAUSTED


async def asking_for_codes_from_a_device_that_is_somebody_elses(asker: Asker) -> None:
    token = asker.stranger.device_token
    sign_in = session_service_pb2.StartSessionCodeRequest(email=asker.email, device_token=token)
    reset = account_service_pb2.StartPasswordResetRequest(email=asker.email, device_token=token)
    for _ in range(6):
        await asker.ask(asker.world.sessions.StartSessionCode, sign_in, times=2)
        await asker.ask(asker.world.accounts.StartPasswordReset, reset, times=2)
        asker.world.clock.advance(minutes=1)
    asker.world.clock.advance(minutes=10)
    await asker.ask(asker.world.sessions.StartSessionCode, sign_in)
    await asker.ask(asker.world.accounts.StartPasswordReset, reset)
    assert asker.answers[-1].code is StatusCode.RESOURCE_EXHAUSTED


async def resetting_the_password(asker: Asker) -> None:
    accounts, clock = asker.world.accounts, asker.world.clock
    start = account_service_pb2.StartPasswordResetRequest(email=asker.email)
    challenge_id = await asker.ask(accounts.StartPasswordReset, start)
    await asker.ask(accounts.StartPasswordReset, start)
    # The last password is too weak only for an account with this address.
    for password in ("short", "a long and unusual password", f"{asker.email}{asker.email}"[:15]):
        complete = account_service_pb2.CompletePasswordResetRequest(
            challenge_id=challenge_id, code="00000000", new_password=password
        )
        await asker.ask(accounts.CompletePasswordReset, complete, times=3)
    clock.advance(minutes=10)
    await asker.ask(accounts.CompletePasswordReset, complete)
    for _ in range(6):
        await asker.ask(accounts.StartPasswordReset, start)
        clock.advance(minutes=1)
    clock.advance(minutes=10)
    await asker.ask(accounts.StartPasswordReset, start, times=2)
    assert asker.answers[-1].code is StatusCode.RESOURCE_EXHAUSTED


async def moving_an_account_to_the_address(asker: Asker) -> None:
    accounts, clock = asker.world.accounts, asker.world.clock
    start = account_service_pb2.StartEmailChangeRequest(new_email=asker.email, password=PASSWORD)
    challenge_id = await asker.ask(accounts.StartEmailChange, start, signed_in=True)
    await asker.ask(accounts.StartEmailChange, start, signed_in=True)
    complete = account_service_pb2.CompleteEmailChangeRequest(challenge_id=challenge_id, code="00000000")
    await asker.ask(accounts.CompleteEmailChange, complete, times=6, signed_in=True)
    clock.advance(minutes=1)
    await asker.ask(accounts.StartEmailChange, start, times=2, signed_in=True)


@pytest.fixture
async def world(make_world: MakeWorld) -> AuthWorld:
    """A service that disables a password after eight failures, few enough to reach and to tell from the throttle."""
    return await make_world(sign_in_most_failures=8)


@pytest.mark.parametrize(
    "ask",
    [
        registering,
        registering_without_a_password,
        registering_with_a_weak_password,
        signing_in_by_address,
        signing_in_by_username,
        signing_in_where_there_is_no_password,
        signing_in_from_a_device_that_is_somebody_elses,
        signing_in_with_a_code,
        asking_for_codes_from_a_device_that_is_somebody_elses,
        resetting_the_password,
        moving_an_account_to_the_address,
    ],
)
async def test_the_answers_about_an_address_with_an_account_are_those_about_one_without(
    world: AuthWorld, ask: Callable[[Asker], Awaitable[None]]
) -> None:
    await world.register("eve@example.org")
    await world.register(ADA, username="ada")
    # Long enough that the code of her registration does not count any more.
    world.clock.advance(days=1)
    stranger = await world.sign_in("eve@example.org")
    began_at = world.clock.now
    askers = [Asker(world, email, stranger) for email in (ADA, BOB)]
    for asker in askers:
        # Concurrent calls, so that even times are equal.
        world.clock.now = began_at
        await ask(asker)
    about_ada, about_bob = (asker.answers for asker in askers)
    assert about_ada == about_bob


async def test_a_registration_that_came_too_late_answers_like_one_that_never_was(world: AuthWorld) -> None:
    """The registration ended because its address got an account."""
    late = await world.start(ADA)
    world.clock.advance(minutes=1)
    stranger = await world.register(ADA)
    world.clock.advance(minutes=1)
    askers = [Asker(world, ADA, stranger) for _ in range(2)]
    for asker, registration_id in zip(askers, (late, str(uuid4())), strict=True):
        resend = registration_service_pb2.ResendRegistrationCodeRequest(registration_id=registration_id)
        complete = registration_service_pb2.CompleteRegistrationRequest(registration_id=registration_id, code="000000")
        await asker.ask(world.registrations.ResendRegistrationCode, resend, times=2)
        await asker.ask(world.registrations.CompleteRegistration, complete, times=6)
    assert askers[0].answers == askers[1].answers
