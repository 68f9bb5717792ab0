"""E-mail addresses in every method that takes one."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from local.harness import RunningMesh
from tests.system.conftest import PASSWORD, Person, code_for, mails_to
from tests.system.doors import Door
from tests.system.members import begun, body_of, signed_up
from tests.waiting import until

REFUSED = [
    "=?utf-8?q?x=0d=0aSubject=3a_Win=0d=0aBcc=3a_b=40evil.example=0d=0a=0d=0aOurs?=@example.com",
    "ada@example.com, b@evil.example",
    "ada@example.com\r\nBcc: b@evil.example",
    '"a b"@example.com',
    "a..b@example.com",
    "a" * 65 + "@example.com",
    "ada@localhost",
    "ada@127.0.0.1",
    "ada@[127.0.0.1]",
    "ada@example.com.",
]


async def test_what_no_mail_may_go_to_is_refused_wherever_an_address_is_asked_for(door: Door, person: Person) -> None:
    calls: dict[str, tuple[str, dict[str, Any]]] = {
        "CreateRegistration": ("email", {"password": PASSWORD}),
        "StartSessionCode": ("email", {}),
        "StartPasswordReset": ("email", {}),
        "StartEmailChange": ("new_email", {"password": PASSWORD}),
    }
    for address in REFUSED:
        for name, (field, rest) in calls.items():
            answer = await door.call(name, token=person.tokens["access_token"], **{field: address, **rest})
            assert (address, name, answer.code, answer.fields) == (address, name, "INVALID_ARGUMENT", {field})
        # A login may be any text; this one belongs to no account.
        answer = await door.call("CreateSession", login=address, password=PASSWORD)
        assert answer.refusal == ("UNAUTHENTICATED", "INVALID_CREDENTIALS")


async def test_every_spelling_of_an_address_is_the_same_at_every_door(mesh: RunningMesh, door: Door) -> None:
    name = f"bücher-{uuid4().hex[:10]}"
    kept = f"Reader@{f'{name}.example'.encode('idna').decode()}"
    spellings = (
        f"Reader@{name}.example",
        kept,
        f"\tREADER@{name.upper()}.EXAMPLE \n",
        f"\N{NO-BREAK SPACE}reader@{name}\N{IDEOGRAPHIC FULL STOP}example",
    )
    member = await signed_up(door, mesh, email=kept, first_name="Ada")
    assert member.user["email"] == kept

    for number, spelling in enumerate(spellings):
        signed_in = body_of(await door.call("CreateSession", login=spelling, password=PASSWORD))
        assert signed_in["user"] == member.user
        unchanged = await member.call("StartEmailChange", new_email=spelling, password=PASSWORD)
        assert (unchanged.code, unchanged.fields) == ("INVALID_ARGUMENT", {"new_email"})
        if number % 2:
            await begun(door, spelling)
    # The owner got a mail, so auth recognized the address as one with an account.
    await until(lambda: _count(mails_to(mesh.mail_dir, kept), "You already have a Storymesh account") == 2)
    started = body_of(await door.call("StartSessionCode", email=spellings[3]))
    code = await code_for(mesh.mail_dir, kept, digits=8)
    completed = await door.call("CompleteSessionCode", challenge_id=started["challenge_id"], code=code)
    assert body_of(completed)["user"] == member.user


async def test_an_account_can_move_to_an_address_of_another_script(mesh: RunningMesh, door: Door) -> None:
    member = await signed_up(door, mesh)
    name = f"пошта-{uuid4().hex[:10]}"
    kept = f"reader@{f'{name}.example'.encode('idna').decode()}"
    started = await member.must("StartEmailChange", new_email=f" reader@{name}.example ", password=PASSWORD)
    code = await code_for(mesh.mail_dir, kept, digits=8)
    moved = await member.must("CompleteEmailChange", challenge_id=started["challenge_id"], code=code)
    assert moved["user"]["email"] == kept
    body_of(await door.call("CreateSession", login=f"reader@{name}.example", password=PASSWORD))


def _count(mails: list[Any], subject: str) -> int:
    return [str(mail["Subject"]) for mail in mails].count(subject)
