"""Codes as people type them: with blanks and hyphens, pasted with a line end, or in digits of other scripts."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from buf.validate.validate_pb2 import field as rules
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from grpc import StatusCode
from grpc.aio import AioRpcError
from storymesh.auth.v1 import account_service_pb2, registration_service_pb2, session_service_pb2
from storymesh.options.v1.rules_pb2 import digits

from services.auth.operations.codes import plain_digits
from tests.auth.conftest import AuthWorld, MakeWorld, Member
from tests.statuses import reason_of, violated_fields

pytestmark = pytest.mark.slow

ADA = "ada@example.org"
NEW = "an entirely different phrase"

FULL_WIDTH = str.maketrans("0123456789", "\uff10\uff11\uff12\uff13\uff14\uff15\uff16\uff17\uff18\uff19")
ARABIC = str.maketrans("0123456789", "\u0660\u0661\u0662\u0663\u0664\u0665\u0666\u0667\u0668\u0669")

Typed = Callable[[str], str]

TAKEN: dict[str, Typed] = {
    "as mailed": lambda code: code,
    "a blank": lambda code: f"{code[:3]} {code[3:]}",
    "a hyphen": lambda code: f"{code[:3]}-{code[3:]}",
    "blanks around": lambda code: f"  {code} ",
    "a line end": lambda code: f"{code}\r\n",
    "a tab": lambda code: f"\t{code}",
    "no-break spaces": lambda code: f"\xa0{code[:3]}\u202f{code[3:]}",
    "an ideographic space": lambda code: f"{code[:3]}\u3000{code[3:]}",
    "a dash": lambda code: f"{code[:3]} \u2013 {code[3:]}",
    "a non-breaking hyphen": lambda code: f"{code[:3]}\u2011{code[3:]}",
    "a minus": lambda code: f"{code[:3]}\u2212{code[3:]}",
    "a zero-width space and a byte order mark": lambda code: f"\ufeff{code[:3]}\u200b{code[3:]}",
    "marks of direction": lambda code: f"\u2068{code}\u2069\u200e",
    "blanks between all": " ".join,
    "full-width digits": lambda code: code.translate(FULL_WIDTH),
    "Arabic digits": lambda code: code.translate(ARABIC),
}

REFUSED: dict[str, Typed] = {
    "nothing but blanks": lambda code: " " * len(code),
    "a digit less": lambda code: code[1:],
    "a digit more": lambda code: f"{code} 1",
    "a letter": lambda code: f"{code[:-1]}O",
    "a letter beside it": lambda code: f"{code}x",
    "a dot": lambda code: f"{code[:3]}.{code[3:]}",
    "a sign": lambda code: f"+{code}",
    "a superscript": lambda code: f"{code[:-1]}\xb2",
    "a number that is no digit": lambda code: f"{code[:-1]}\u2460",
    "NUL": lambda code: f"{code}\0",
    "too many blanks": lambda code: f"{code}{' ' * 40}",
}


@pytest.fixture
async def world(make_world: MakeWorld) -> AuthWorld:
    return await make_world(code_cooldown_seconds=0)


@pytest.mark.parametrize("typed", TAKEN.values(), ids=TAKEN)
async def test_a_code_is_taken_however_it_was_typed(world: AuthWorld, typed: Typed) -> None:
    registration = await world.start(ADA)
    assert await world.complete(registration, typed(await world.code(registration)))


@pytest.mark.parametrize("typed", REFUSED.values(), ids=REFUSED)
async def test_what_is_no_code_is_refused_and_costs_no_attempt(world: AuthWorld, typed: Typed) -> None:
    registration = await world.start(ADA)
    code = await world.code(registration)
    for _ in range(6):
        with pytest.raises(AioRpcError) as raised:
            await world.complete(registration, typed(code))
        assert raised.value.code() is StatusCode.INVALID_ARGUMENT
        assert violated_fields(raised.value) == ["code"]
    assert await world.complete(registration, code)


async def test_every_method_takes_a_code_as_it_was_typed(world: AuthWorld) -> None:
    async def typed(challenge: str) -> str:
        code = await world.code(challenge)
        return f" {code[:4]}-{code[4:]}\n"

    async def proof() -> dict[str, str]:
        challenge = await world.start_code(ADA)
        return {"challenge_id": challenge, "code": await typed(challenge)}

    registration = await world.start(ADA)
    ada: Member = await world.complete(registration, await typed(registration))
    await world.complete_code(**await proof())
    await world.change_password(ada, NEW, current="", **await proof())
    reset = await world.start_reset(ADA)
    await world.complete_reset(reset, await typed(reset), "one more phrase, different again")
    ada = await world.complete_code(**await proof())
    move = await world.start_email_change(ada, "countess@example.org", password="", **await proof())
    await world.complete_email_change(ada, move, await typed(move))
    challenge = await world.start_code("countess@example.org")
    await world.delete_account(ada, challenge_id=challenge, code=await typed(challenge))


@pytest.mark.parametrize("wrong", ["12 34-56", "\uff11\uff12\uff13\uff14\uff15\uff16"])
async def test_a_wrong_code_is_wrong_however_it_was_typed(world: AuthWorld, wrong: str) -> None:
    registration = await world.start(ADA)
    if await world.code(registration) == "123456":
        registration = await world.start(ADA)
    with pytest.raises(AioRpcError) as raised:
        await world.complete(registration, wrong)
    assert reason_of(raised.value) == "CODE_INVALID"


def test_the_digits_are_found_in_what_was_typed() -> None:
    for typed in TAKEN.values():
        assert plain_digits(typed("172802")) == "172802"


def test_all_codes_of_the_contract_follow_one_rule() -> None:
    found = {
        name: field.GetOptions().Extensions[rules].string.Extensions[digits] for name, field in codes_in_requests()
    }
    assert len(found) == 7
    assert set(found.values()) == {6, 8}


def codes_in_requests() -> Iterator[tuple[str, FieldDescriptor]]:
    for contract in (account_service_pb2, registration_service_pb2, session_service_pb2):
        message: Descriptor
        for message in contract.DESCRIPTOR.message_types_by_name.values():
            for field in message.fields:
                if field.name == "code":
                    yield message.name, field
