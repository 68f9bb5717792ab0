"""Response time does not tell whether an address has an account.

Each endpoint is called alternately for addresses with and without an account. The area under the ROC curve (AUC, the statistic of
Mann and Whitney) is the chance to pick the account by comparing two durations: one half when they tell nothing.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections.abc import Awaitable, Callable, Iterator, Sequence
from random import Random
from time import perf_counter
from typing import Any
from uuid import uuid4

import pytest
from grpc import StatusCode
from storymesh.auth.v1 import account_service_pb2, registration_service_pb2, session_service_pb2

from tests.auth.conftest import PASSWORD, AuthWorld, MakeWorld

pytestmark = pytest.mark.slow

ROUNDS = 3
"""Chance may exceed a limit once, but not in every round; a real difference does."""

Looks = dict[float, float]
"""When a round may end early: after a share of its samples, if every AUC keeps a share of the limit."""

FINE_LOOKS: Looks = {0.5: 0.6, 0.75: 0.75}
"""Equal classes end at the first look in three calls of four.

Of 100 rounds with an AUC of 0.58 and 500 samples, 95 are found without looks and 93 with them.
"""

COARSE_LOOKS: Looks = {0.2: 0.4, 0.5: 0.6}
"""Equal classes end at the first look in two calls of three, and at the second in nearly all others.

Of 1,000 rounds with an AUC of 0.7 and 200 samples, 976 are found without looks and 966 with them.
"""

WARM_UP = 20
WRONG = "not the right password"

NO_LIMITS = {"code_cooldown_seconds": 0, "sign_in_failures_per_network": 10**6, "sign_in_failures_altogether": 10**6}
"""All calls come from one place, and several are about the same address."""

Conversation = Callable[[AuthWorld, str, bool], Awaitable[list[float]]]
"""Takes an address and whether it has an account; returns the seconds that each of its calls took."""


async def timed(method: Any, request: Any, expected: StatusCode = StatusCode.UNAUTHENTICATED) -> tuple[float, Any]:
    """The seconds that the call took, and its answer if it succeeded."""
    started = perf_counter()
    call = method(request)
    code = await call.code()
    seconds = perf_counter() - started
    assert code is expected
    return seconds, await call if code is StatusCode.OK else None


async def registering(world: AuthWorld, email: str, _: bool) -> list[float]:
    request = registration_service_pb2.CreateRegistrationRequest(email=email, password=PASSWORD)
    seconds, answer = await timed(world.registrations.CreateRegistration, request, StatusCode.OK)
    return [seconds, *await going_on(world, answer.registration_id)]


async def going_on_with_a_registration(world: AuthWorld, email: str, known: bool) -> list[float]:
    """Registrations of one class have ended, because their addresses got accounts."""
    registration_id = await world.start(email)
    return await going_on(world, registration_id if known else str(uuid4()))


async def going_on(world: AuthWorld, registration_id: str) -> list[float]:
    resend = registration_service_pb2.ResendRegistrationCodeRequest(registration_id=registration_id)
    complete = registration_service_pb2.CompleteRegistrationRequest(registration_id=registration_id, code="000000")
    resent, _ = await timed(world.registrations.ResendRegistrationCode, resend, StatusCode.OK)
    completed, _ = await timed(world.registrations.CompleteRegistration, complete)
    return [resent, completed]


async def signing_in(world: AuthWorld, email: str, _: bool) -> list[float]:
    request = session_service_pb2.CreateSessionRequest(login=email, password=WRONG)
    seconds, _answer = await timed(world.sessions.CreateSession, request)
    return [seconds]


async def signing_in_where_there_is_no_password(world: AuthWorld, email: str, known: bool) -> list[float]:
    if known:
        await world.execute("UPDATE users SET password_hash = NULL WHERE email = :email", email=email)
    return await signing_in(world, email, known)


async def signing_in_with_a_code(world: AuthWorld, email: str, _: bool) -> list[float]:
    start = session_service_pb2.StartSessionCodeRequest(email=email)
    started, answer = await timed(world.sessions.StartSessionCode, start, StatusCode.OK)
    complete = session_service_pb2.CompleteSessionCodeRequest(challenge_id=answer.challenge_id, code="00000000")
    completed, _answer = await timed(world.sessions.CompleteSessionCode, complete)
    return [started, completed]


async def resetting_the_password(world: AuthWorld, email: str, _: bool) -> list[float]:
    start = account_service_pb2.StartPasswordResetRequest(email=email)
    started, answer = await timed(world.accounts.StartPasswordReset, start, StatusCode.OK)
    complete = account_service_pb2.CompletePasswordResetRequest(
        challenge_id=answer.challenge_id, code="00000000", new_password=PASSWORD
    )
    completed, _answer = await timed(world.accounts.CompletePasswordReset, complete)
    return [started, completed]


@pytest.mark.timeout(300)  # the calls that three rounds need on a busy machine
class TestAlikeness:
    @pytest.mark.parametrize(
        "converse",
        [registering, going_on_with_a_registration, signing_in, signing_in_with_a_code, resetting_the_password],
    )
    async def test_nobody_can_tell_from_the_time_whether_an_address_has_an_account(
        self, make_world: MakeWorld, converse: Conversation
    ) -> None:
        """With 500 samples per class, equal classes have an AUC between 0.45 and 0.55 in 149 of 150 rounds."""
        # Concurrently, because the calls mostly wait; with production's padding, which is longer than that many calls take.
        world = await make_world(**NO_LIMITS, answer_beat_seconds=0.05)
        await cannot_be_told_apart(world, converse, samples=500, most=0.55, looks=FINE_LOOKS, at_once=6)

    @pytest.mark.parametrize(
        "converse",
        [
            registering,
            signing_in,
            signing_in_where_there_is_no_password,
            signing_in_with_a_code,
            resetting_the_password,
        ],
    )
    async def test_nothing_that_takes_long_is_spared_when_there_is_no_account(
        self, make_world: MakeWorld, converse: Conversation
    ) -> None:
        """Padding alone must not hide long work, because on a slow or busy machine it takes several multiples."""
        world = await make_world(**NO_LIMITS, answer_beat_seconds=0, password_hash_memory_kib=4096)
        await cannot_be_told_apart(world, converse, samples=200, most=0.65, looks=COARSE_LOOKS, at_once=1)


async def cannot_be_told_apart(
    world: AuthWorld, converse: Conversation, *, samples: int, most: float, looks: Looks, at_once: int
) -> None:
    """Fail if a call's AUC is beyond the limit in each round, whether accounts are slower or faster."""
    beyond: list[list[float]] = []
    for number in range(ROUNDS):
        random = Random(number)
        addresses = [f"person{number}.{index:04}@example.org" for index in range(2 * (samples + WARM_UP))]
        random.shuffle(addresses)
        half = len(addresses) // 2
        known, unknown = addresses[:half], addresses[half:]
        await give_accounts(world, known)
        areas = await measured(world, converse, known, unknown, random, most=most, looks=looks, at_once=at_once)
        if all(1 - most <= area <= most for area in areas):
            return
        beyond.append([round(area, 3) for area in areas])
    raise AssertionError(f"the durations of {converse.__name__} tell who has an account; AUC of its calls: {beyond}")


async def give_accounts(world: AuthWorld, emails: Sequence[str]) -> None:
    """Give each address an account, copied from the first person's."""
    if not await world.scalar("SELECT count(*) FROM users"):
        await world.register("somebody@example.org")
    columns = "first_name, last_name, preferences, role, password_hash, password_changed_at, created_at"
    await world.execute(
        f"INSERT INTO users (id, email, email_canonical, {columns}) "
        f"SELECT gen_random_uuid(), theirs, theirs, {columns} FROM users, unnest(CAST(:emails AS text[])) AS theirs "
        "WHERE email = 'somebody@example.org'",
        emails=list(emails),
    )


async def measured(
    world: AuthWorld,
    converse: Conversation,
    known: Sequence[str],
    unknown: Sequence[str],
    random: Random,
    *,
    most: float,
    looks: Looks,
    at_once: int,
) -> list[float]:
    """The AUC of each call of the conversation."""
    seconds: dict[bool, list[list[float]]] = {True: [], False: []}
    pairs = [{True: one, False: other} for one, other in zip(known, unknown, strict=True)]

    async def take_turns(pairs: Iterator[dict[bool, str]]) -> None:
        for pair in pairs:
            # The second call finds warm caches, which must not always favour the same class.
            for has_account in random.sample((True, False), 2):
                seconds[has_account].append(await converse(world, pair[has_account], has_account))

    async def areas_of(pairs: Sequence[dict[bool, str]]) -> list[float]:
        waiting = iter(pairs)
        await asyncio.gather(*(take_turns(waiting) for _ in range(at_once)))
        of_known, of_unknown = (zip(*seconds[has_account][WARM_UP:], strict=True) for has_account in (True, False))
        return [auc(*call) for call in zip(of_known, of_unknown, strict=True)]

    done = 0
    for share, strictness in looks.items():
        look = WARM_UP + int((len(pairs) - WARM_UP) * share)
        areas = await areas_of(pairs[done:look])
        if all(abs(area - 0.5) <= (most - 0.5) * strictness for area in areas):
            return areas
        done = look
    return await areas_of(pairs[done:])


def auc(of_known: Sequence[float], of_unknown: Sequence[float]) -> float:
    """The share of all pairs in which the known address took longer; ties count half."""
    ordered = sorted(of_unknown)
    below = sum(bisect_left(ordered, each) + bisect_right(ordered, each) for each in of_known)
    return below / (2 * len(of_known) * len(of_unknown))
