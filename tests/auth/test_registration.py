"""Registration."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from google.rpc.error_details_pb2 import RetryInfo
from grpc import StatusCode
from grpc.aio import AioRpcError
from storymesh.auth.v1 import registration_service_pb2 as pb
from storymesh.auth.v1.user_pb2 import ROLE_USER
from storymesh.events.v1 import auth_events_pb2 as events

from tests.auth.conftest import PASSWORD, AuthWorld, MakeWorld
from tests.auth.work import work
from tests.statuses import detail, raises_status, reason_of, violated_fields

pytestmark = pytest.mark.slow

ADA = "ada@example.org"


def wrong(code: str) -> str:
    return f"{(int(code) + 1) % 10**6:06}"


def resend(registration_id: str) -> pb.ResendRegistrationCodeRequest:
    return pb.ResendRegistrationCodeRequest(registration_id=registration_id)


async def test_a_mailed_code_turns_a_registration_into_an_account_that_is_signed_in(world: AuthWorld) -> None:
    request = pb.CreateRegistrationRequest(
        email="Ada@Example.org",
        password=PASSWORD,
        username="Ada",
        first_name="Ada",
        last_name="Lovelace",
        preferences=["sea", "engines"],
    )
    started = await world.registrations.CreateRegistration(request)
    assert UUID(started.registration_id).version == 4
    assert started.code_expire_time.ToDatetime(world.clock().tzinfo) == world.clock() + timedelta(minutes=10)
    (mail,) = await world.mails(started.registration_id)
    assert (mail.email, mail.first_name, len(mail.code)) == ("Ada@Example.org", "", 6)

    member = await world.complete(started.registration_id, mail.code)
    assert UUID(member.user.id).version == 7
    assert (member.user.email, member.user.username, member.user.role) == ("Ada@Example.org", "Ada", ROLE_USER)
    assert (member.user.first_name, member.user.last_name) == ("Ada", "Lovelace")
    assert list(member.user.preferences) == ["sea", "engines"]
    assert await world.account(member) == member.user


async def test_the_account_and_its_event_appear_together_and_only_after_the_proof(world: AuthWorld) -> None:
    registration_id = await world.start(ADA)
    assert await world.scalar("SELECT count(*) FROM users") == 0
    assert [kind.rpartition(".")[2] for kind, _ in await world.published()] == ["CodeIssued"]
    member = await world.complete(registration_id, await world.code(registration_id))
    kind, payload = (await world.published())[-1]
    assert kind == events.UserRegistered.DESCRIPTOR.full_name
    assert events.UserRegistered.FromString(payload).user_id == member.user.id
    assert await world.scalar("SELECT count(*) FROM registrations") == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("email", "no-address"),
        ("email", "\N{CYRILLIC SMALL LETTER A}da@example.org"),
        ("email", f"{'a' * 250}@example.org"),
        ("password", "short"),
        ("password", "x" * 1025),
        ("password", "correct horse\0battery staple"),
        ("username", "1ada"),
        ("username", "a@b.example"),
        ("first_name", "Ada\n"),
        ("preferences", ["sea", "sea"]),
        ("preferences", ["x" * 21]),
    ],
)
async def test_an_invalid_field_is_named(world: AuthWorld, field: str, value: Any) -> None:
    fields: dict[str, Any] = {"email": ADA, "password": PASSWORD, field: value}
    with pytest.raises(AioRpcError) as raised:
        await world.registrations.CreateRegistration(pb.CreateRegistrationRequest(**fields))
    assert raised.value.code() is StatusCode.INVALID_ARGUMENT
    (violated,) = violated_fields(raised.value)
    assert violated.partition("[")[0] == field
    assert await world.published() == []


async def test_a_megabyte_of_password_is_refused_before_it_is_hashed(world: AuthWorld) -> None:
    with pytest.raises(AioRpcError) as raised:
        await world.start(ADA, password="x" * (1 << 20))
    assert raised.value.code() in (StatusCode.INVALID_ARGUMENT, StatusCode.RESOURCE_EXHAUSTED)


async def test_a_password_may_be_anything_that_prints(world: AuthWorld) -> None:
    password = "  ✨ żółw 🐢 über Ωmega  "
    await world.register(ADA, password=password)
    assert (await world.sign_in(ADA, password)).user.email == ADA
    with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
        await world.sign_in(ADA, password.strip())


async def test_the_same_password_in_another_unicode_form_signs_in(world: AuthWorld) -> None:
    composed = "caf\N{LATIN SMALL LETTER E WITH ACUTE} owner of the year"
    decomposed = "cafe\N{COMBINING ACUTE ACCENT} owner of the year"
    await world.register(ADA, password=composed)
    assert await world.sign_in(ADA, decomposed)
    await world.register("bob@example.org", password=decomposed)
    assert await world.sign_in("bob@example.org", composed)


class TestCodes:
    async def test_every_wrong_kind_of_code_gets_the_same_answer(self, world: AuthWorld) -> None:
        registration_id, other = await world.start(ADA), await world.start("bob@example.org")
        code, others_code = await world.code(registration_id), await world.code(other)
        attempts = {
            "wrong": (registration_id, wrong(code)),
            "of another registration": (registration_id, others_code if others_code != code else wrong(code)),
            "unknown": (str(uuid4()), code),
        }
        await world.complete(registration_id, code)
        attempts["used"] = (registration_id, code)
        world.clock.advance(minutes=10)
        attempts["expired"] = (other, others_code)
        answers = set()
        for attempt in attempts.values():
            with pytest.raises(AioRpcError) as raised:
                await world.complete(*attempt)
            error = raised.value
            answers.add((error.code(), error.details(), reason_of(error), str(error.trailing_metadata())))
        assert len(answers) == 1
        assert answers.pop()[2] == "CODE_INVALID"

    async def test_64_simultaneous_redemptions_of_one_code_make_one_account(self, world: AuthWorld) -> None:
        registration_id = await world.start(ADA)
        code = await world.code(registration_id)
        outcomes = await asyncio.gather(
            *(world.complete(registration_id, code) for _ in range(64)), return_exceptions=True
        )
        reasons = Counter(
            reason_of(outcome) if isinstance(outcome, AioRpcError) else type(outcome).__name__ for outcome in outcomes
        )
        assert reasons == {"Member": 1, "CODE_INVALID": 63}
        assert await world.scalar("SELECT count(*) FROM sessions") == 1

    async def test_after_five_wrong_codes_the_right_one_does_not_help_either(self, world: AuthWorld) -> None:
        registration_id = await world.start(ADA)
        code = await world.code(registration_id)
        for _ in range(5):
            with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
                await world.complete(registration_id, wrong(code))
        with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
            await world.complete(registration_id, code)
        world.clock.advance(minutes=2)
        with raises_status(StatusCode.RESOURCE_EXHAUSTED, "CODE_ATTEMPTS_SPENT"):
            await world.registrations.ResendRegistrationCode(resend(registration_id))
        assert len(await world.mails(registration_id)) == 1

    async def test_a_resent_code_replaces_the_former_and_keeps_the_attempts_spent(self, world: AuthWorld) -> None:
        registration_id = await world.start(ADA)
        first = await world.code(registration_id)
        for _ in range(3):
            with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
                await world.complete(registration_id, wrong(first))
        world.clock.advance(minutes=9)
        response = await world.registrations.ResendRegistrationCode(resend(registration_id))
        assert response.code_expire_time.ToDatetime(world.clock().tzinfo) == world.clock() + timedelta(minutes=10)
        second = await world.code(registration_id)
        if first != second:
            with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
                await world.complete(registration_id, first)
        with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
            await world.complete(registration_id, wrong(second))
        with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
            await world.complete(registration_id, second)

    async def test_a_resend_prolongs_the_registration(self, world: AuthWorld) -> None:
        registration_id = await world.start(ADA)
        world.clock.advance(minutes=25)
        await world.registrations.ResendRegistrationCode(resend(registration_id))
        world.clock.advance(minutes=9)
        assert await world.complete(registration_id, await world.code(registration_id))

    async def test_a_registration_that_was_left_alone_ends(self, world: AuthWorld) -> None:
        registration_id = await world.start(ADA)
        world.clock.advance(minutes=31)
        await world.registrations.ResendRegistrationCode(resend(registration_id))
        assert len(await world.mails(registration_id)) == 1
        with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
            await world.complete(registration_id, await world.code(registration_id))

    async def test_codes_to_one_address_are_rationed_however_it_is_written(self, world: AuthWorld) -> None:
        for address in ("Ada@Example.org", "ada@EXAMPLE.ORG", "ADA@example.org", ADA, "aDa@example.org"):
            await world.start(address)
            world.clock.advance(minutes=1)
        world.clock.advance(minutes=9)
        with pytest.raises(AioRpcError) as raised:
            await world.start("ada@EXAMPLE.ORG")
        assert reason_of(raised.value) == "TOO_MANY_CODES"
        retry = detail(raised.value, RetryInfo)
        assert retry
        assert retry.retry_delay.ToTimedelta() == timedelta(minutes=46)
        await world.start("ada+tag@example.org")
        world.clock.advance(minutes=46)
        await world.start(ADA)

    async def test_strangers_who_flood_an_address_cannot_spend_its_owners_attempts(self, world: AuthWorld) -> None:
        registration_id = await world.start(ADA)
        for _ in range(2):
            world.clock.advance(minutes=1)
            strangers = await world.start(ADA)
            for guess in range(10):
                with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
                    await world.complete(strangers, f"{guess:06}")
        assert await world.complete(registration_id, await world.code(registration_id))


class TestAddressesInUse:
    async def test_the_answers_for_known_and_unknown_addresses_differ_in_random_ids_only(
        self, world: AuthWorld
    ) -> None:
        await world.register(ADA, username="ada")
        world.clock.advance(minutes=1)
        answers = {}
        for email in (ADA, "bob@example.org"):
            answers[email] = [await self.start_answer(world, email) for _ in range(2)]
        assert answers[ADA] == answers["bob@example.org"]
        assert [code for code, *_ in answers[ADA]] == [StatusCode.OK] * 2

    async def test_resending_answers_alike_for_known_unknown_and_made_up_registrations(self, world: AuthWorld) -> None:
        await world.register(ADA)
        world.clock.advance(minutes=1)
        ids = [await world.start(ADA), await world.start("bob@example.org"), str(uuid4())]
        world.clock.advance(minutes=1)
        answers = [[await self.resend_answer(world, each) for _ in range(2)] for each in ids]
        assert answers[0] == answers[1] == answers[2]
        assert [code for code, *_ in answers[0]] == [StatusCode.OK] * 2

    async def test_the_same_statements_and_commands_run_whoever_the_address_belongs_to(self, world: AuthWorld) -> None:
        await world.register(ADA)
        await world.start("warm@example.org")
        world.clock.advance(minutes=1)
        assert await work(world, lambda: world.start(ADA)) == await work(world, lambda: world.start("bob@example.org"))

    async def test_the_owner_of_an_address_is_told_instead_of_getting_a_code(self, world: AuthWorld) -> None:
        member = await world.register(ADA)
        world.clock.advance(minutes=1)
        registration_id = await world.start("ADA@example.org", password="another long password")
        assert await world.mails(registration_id) == []
        kind, payload = (await world.published())[-1]
        assert kind == events.RegistrationRepeated.DESCRIPTOR.full_name
        assert events.RegistrationRepeated.FromString(payload).user_id == member.user.id
        assert await world.sign_in(ADA, PASSWORD)

    async def test_a_password_prepared_for_a_strangers_address_never_works(self, world: AuthWorld) -> None:
        """Pre-hijacking: the attacker registers first, then the owner registers and proves the address."""
        attackers = await world.start(ADA, password="the attacker's password")
        world.clock.advance(minutes=1)
        member = await world.register(ADA, password="the owner's own password")
        with raises_status(StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS"):
            await world.sign_in(ADA, "the attacker's password")
        # The code that the attacker's registration mailed to the owner does not enable it either.
        with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
            await world.complete(attackers, await world.code(attackers))
        assert (await world.sign_in(ADA, "the owner's own password")).user.id == member.user.id

    async def test_simultaneous_registrations_of_one_address_make_one_account(self, make_world: MakeWorld) -> None:
        world = await make_world(code_cooldown_seconds=0)
        ids = [await world.start(ADA, password=f"password of device {number}") for number in range(3)]
        codes = [await world.code(each) for each in ids]
        outcomes = await asyncio.gather(*map(world.complete, ids, codes), return_exceptions=True)
        reasons = Counter(
            reason_of(outcome) if isinstance(outcome, AioRpcError) else type(outcome).__name__ for outcome in outcomes
        )
        assert reasons == {"Member": 1, "CODE_INVALID": 2}
        assert await world.scalar("SELECT count(*) FROM users") == 1

    async def test_tags_and_dots_make_addresses_of_their_own(self, world: AuthWorld) -> None:
        members = [
            await world.register(email) for email in ("a.da@example.org", "ada@example.org", "ada+x@example.org")
        ]
        assert len({member.user.id for member in members}) == 3

    async def start_answer(self, world: AuthWorld, email: str) -> tuple[object, ...]:
        call = world.registrations.CreateRegistration(pb.CreateRegistrationRequest(email=email, password=PASSWORD))
        body = b""
        if await call.code() is StatusCode.OK:
            response = await call
            assert len(response.registration_id) == 36
            response.registration_id = ""
            body = response.SerializeToString()
        return await self.answer(call, body)

    async def resend_answer(self, world: AuthWorld, registration_id: str) -> tuple[object, ...]:
        call = world.registrations.ResendRegistrationCode(resend(registration_id))
        body = (await call).SerializeToString() if await call.code() is StatusCode.OK else b""
        return await self.answer(call, body)

    async def answer(self, call: Any, body: bytes) -> tuple[object, ...]:
        metadata = [str(await call.initial_metadata()), str(await call.trailing_metadata())]
        return (await call.code(), await call.details(), body, *metadata)


class TestUsernames:
    async def test_a_taken_username_shows_only_to_who_has_proven_an_address(self, world: AuthWorld) -> None:
        await world.register(ADA, username="Ada")
        registration_id = await world.start("bob@example.org", username="aDA")
        code = await world.code(registration_id)
        with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
            await world.complete(registration_id, wrong(code))
        with raises_status(StatusCode.ALREADY_EXISTS, "USERNAME_TAKEN"):
            await world.complete(registration_id, code)
        assert await world.scalar("SELECT count(*) FROM users") == 1

    async def test_the_code_stays_good_when_the_username_was_taken(self, world: AuthWorld) -> None:
        await world.register(ADA, username="ada")
        registration_id = await world.start("bob@example.org", username="ada")
        code = await world.code(registration_id)
        for _ in range(6):
            with raises_status(StatusCode.ALREADY_EXISTS, "USERNAME_TAKEN"):
                await world.complete(registration_id, code)
        await world.execute("DELETE FROM users WHERE email = :email", email=ADA)
        assert (await world.complete(registration_id, code)).user.username == "ada"

    async def test_simultaneous_completions_with_one_username_make_one_account(self, world: AuthWorld) -> None:
        ids = [await world.start(f"person{number}@example.org", username="ada") for number in range(8)]
        codes = [await world.code(each) for each in ids]
        outcomes = await asyncio.gather(*map(world.complete, ids, codes), return_exceptions=True)
        reasons = Counter(
            reason_of(outcome) if isinstance(outcome, AioRpcError) else type(outcome).__name__ for outcome in outcomes
        )
        assert reasons == {"Member": 1, "USERNAME_TAKEN": 7}


class TestFailures:
    async def test_a_code_survives_a_database_that_goes_down_while_it_is_redeemed(self, world: AuthWorld) -> None:
        registration_id = await world.start(ADA)
        code = await world.code(registration_id)
        async with world.database_lost_on_writing("users"):
            for _ in range(6):
                with raises_status(StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE"):
                    await world.complete(registration_id, code)
        assert (await world.complete(registration_id, code)).user.email == ADA

    async def test_a_registration_whose_event_cannot_be_written_does_not_exist(self, world: AuthWorld) -> None:
        async with world.database_lost_on_writing("outbox"):
            with raises_status(StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE"):
                await world.start(ADA)
        assert await world.scalar("SELECT count(*) FROM registrations") == 0
        world.clock.advance(minutes=1)
        assert await world.register(ADA)

    async def test_a_claim_whose_process_died_ends_by_itself(self, world: AuthWorld) -> None:
        registration_id = await world.start(ADA)
        code = await world.code(registration_id)
        challenge = (await world.redis.keys(f"codes:*:{registration_id}"))[0]
        until = int(world.clock().timestamp() * 1000) + 30_000
        await world.redis.hset(challenge, mapping={"claim": "of the dead", "claimed_until": until})
        with raises_status(StatusCode.UNAUTHENTICATED, "CODE_INVALID"):
            await world.complete(registration_id, code)
        world.clock.advance(seconds=30)
        assert await world.complete(registration_id, code)
