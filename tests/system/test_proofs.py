"""Proofs of ownership, through both doors: codes as people type them, codes in place of passwords, and void ones after a change."""

from __future__ import annotations

from typing import Any

from local.harness import RunningMesh
from tests.system.conftest import PASSWORD, code_for
from tests.system.doors import Door
from tests.system.members import begun, body_of, member_of, new_address, signed_up

INVALID = ("UNAUTHENTICATED", "CODE_INVALID")
NEW_PASSWORD, NEWER_PASSWORD = "another horse battery staple", "and one more horse battery staple"


async def test_who_registers_without_a_password_does_everything_by_codes(mesh: RunningMesh, door: Door) -> None:
    email, elsewhere = new_address(), new_address()
    registration_id = str(body_of(await door.call("CreateRegistration", email=email))["registration_id"])
    code = await code_for(mesh.mail_dir, email)
    answer = await door.call("CompleteRegistration", registration_id=registration_id, code=f" {code[:3]} {code[3:]}\n")
    member = member_of(door, mesh, email, body_of(answer))
    assert not member.user.get("has_password")
    refused = await door.call("CreateSession", login=email, password=PASSWORD)
    assert refused.refusal == ("UNAUTHENTICATED", "INVALID_CREDENTIALS")
    unproven = await member.call("StartEmailChange", new_email=elsewhere)
    assert unproven.refusal == ("FAILED_PRECONDITION", "REAUTH_REQUIRED")

    async def proof(address: str, number: int) -> dict[str, Any]:
        challenge_id = body_of(await door.call("StartSessionCode", email=address))["challenge_id"]
        digits = await code_for(mesh.mail_dir, address, 8, number=number)
        return {"challenge_id": challenge_id, "code": f"{digits[:4]}-{digits[4:]}"}

    body_of(await door.call("CompleteSessionCode", **await proof(email, 1)))
    move = (await member.must("StartEmailChange", new_email=elsewhere, **await proof(email, 2)))["challenge_id"]
    await member.must("CompleteEmailChange", challenge_id=move, code=await code_for(mesh.mail_dir, elsewhere, 8))
    await member.must("ChangePassword", new_password=NEW_PASSWORD, **await proof(elsewhere, 2))
    assert (await member.must("GetAccount"))["user"]["has_password"]
    body_of(await door.call("CreateSession", login=elsewhere, password=NEW_PASSWORD))
    await member.must("DeleteAccount", **await proof(elsewhere, 3))


async def test_a_change_of_password_voids_every_code_from_before_it(mesh: RunningMesh, door: Door) -> None:
    member = await signed_up(door, mesh)
    sign_in = body_of(await door.call("StartSessionCode", email=member.email))["challenge_id"]
    codes = [await code_for(mesh.mail_dir, member.email, 8)]
    resets = []
    for number in (2, 3):
        resets.append(body_of(await door.call("StartPasswordReset", email=member.email))["challenge_id"])
        codes.append(await code_for(mesh.mail_dir, member.email, 8, number=number))
    reset: dict[str, Any] = {"challenge_id": resets[1], "code": codes[2], "new_password": NEW_PASSWORD}
    body_of(await door.call("CompletePasswordReset", **reset))
    second: dict[str, Any] = {"challenge_id": resets[0], "code": codes[1], "new_password": NEWER_PASSWORD}
    assert (await door.call("CompletePasswordReset", **second)).refusal == INVALID
    assert (await door.call("CompleteSessionCode", challenge_id=sign_in, code=codes[0])).refusal == INVALID
    body_of(await door.call("CreateSession", login=member.email, password=NEW_PASSWORD))


async def test_a_taken_username_costs_no_new_code(mesh: RunningMesh, door: Door) -> None:
    taken, free = (new_address().partition("@")[0] for _ in range(2))
    await signed_up(door, mesh, username=taken)
    email = new_address()
    registration_id = await begun(door, email, username=taken)
    answer: dict[str, Any] = {"registration_id": registration_id, "code": await code_for(mesh.mail_dir, email)}
    for _ in range(2):
        refused = await door.call("CompleteRegistration", **answer)
        assert refused.refusal == ("ALREADY_EXISTS", "USERNAME_TAKEN")
    malformed = await door.call("CompleteRegistration", **answer, username="1")
    assert malformed.fields == {"username"}
    assert body_of(await door.call("CompleteRegistration", **answer, username=free))["user"]["username"] == free


async def test_what_is_no_code_is_told_of_its_field(mesh: RunningMesh, door: Door) -> None:
    registration_id = await begun(door, new_address())
    for typed in ("12345", "1234567", "12345x", "123.456", "", " "):
        answer = await door.call("CompleteRegistration", registration_id=registration_id, code=typed)
        assert (answer.code, answer.fields) == ("INVALID_ARGUMENT", {"code"}), typed
