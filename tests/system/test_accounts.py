"""Sessions, credentials and accounts: everything that people do with them, through both doors."""

from __future__ import annotations

import asyncio
import json
from asyncio.subprocess import PIPE
from functools import partial

from local.harness import RunningMesh
from tests.mails import text_of
from tests.system.conftest import PASSWORD, code_for, mails_to
from tests.system.doors import Door
from tests.system.members import (
    WRONG_PASSWORD,
    Member,
    at_once,
    begun,
    body_of,
    ends,
    member_of,
    new_address,
    signed_up,
    wrong,
)
from tests.waiting import until

NEW_PASSWORD = "another horse battery staple"
REVOKED = ("UNAUTHENTICATED", "SESSION_REVOKED")
WRONG = ("UNAUTHENTICATED", "INVALID_CREDENTIALS")
INVALID_CODE = ("UNAUTHENTICATED", "CODE_INVALID")
TOKEN_MISSING = ("UNAUTHENTICATED", "TOKEN_MISSING")


async def told(mesh: RunningMesh, address: str, subject: str) -> None:
    await until(lambda: subject in [str(mail["Subject"]) for mail in mails_to(mesh.mail_dir, address)])


async def test_a_person_changes_what_they_say_about_themselves(mesh: RunningMesh, door: Door) -> None:
    member, other = await signed_up(door, mesh), await signed_up(door, mesh)
    username = new_address().partition("@")[0]
    changes = {"username": username, "first_name": "Ada", "last_name": "King", "preferences": ["a", "b"]}
    assert (await member.must("UpdateAccount", **changes))["user"] == {**member.user, **changes}
    assert (await member.must("UpdateAccount", preferences=[]))["user"]["preferences"] == []
    assert (await member.must("UpdateAccount"))["user"]["first_name"] == "Ada"
    assert (await member.must("GetAccount"))["user"] == {**member.user, **changes, "preferences": []}
    body_of(await door.call("CreateSession", login=username.upper(), password=PASSWORD))
    taken = await other.call("UpdateAccount", username=username.upper())
    assert taken.refusal == ("ALREADY_EXISTS", "USERNAME_TAKEN")
    for field, value in {
        "username": "1a",
        "first_name": "a\nb",
        "last_name": "x" * 65,
        "preferences": ["", "a"],
    }.items():
        answer = await member.call("UpdateAccount", **{field: value})
        assert (answer.code, answer.fields) == ("INVALID_ARGUMENT", {field})
    assert (await door.call("UpdateAccount", first_name="Eve")).refusal == TOKEN_MISSING


async def test_nobody_lists_usernames_by_trying_to_take_them(mesh: RunningMesh, door: Door) -> None:
    member, other = await signed_up(door, mesh), await signed_up(door, mesh)
    taken = new_address().partition("@")[0]
    await other.must("UpdateAccount", username=taken)
    for number in range(5):
        await member.call("UpdateAccount", username=taken if number % 2 else new_address().partition("@")[0])
    for name in (taken, new_address().partition("@")[0]):
        answer = await member.call("UpdateAccount", username=name)
        assert answer.refusal == ("RESOURCE_EXHAUSTED", "TOO_MANY_USERNAME_CHANGES")
    await member.must("UpdateAccount", first_name="Ada")
    await other.must("UpdateAccount", username=taken.upper())


async def test_a_person_sees_their_devices_and_signs_them_out(mesh: RunningMesh, door: Door) -> None:
    member, stranger = await signed_up(door, mesh), await signed_up(door, mesh)
    names = ["laptop", "telephone", "tablet"]
    devices = [
        member_of(
            *(door, mesh, member.email),
            body_of(await door.call("CreateSession", login=member.email, password=PASSWORD, device_name=name)),
        )
        for name in names
    ]
    first = await member.must("ListSessions", page_size=2)
    second = await member.must("ListSessions", page_size=2, page_token=first["next_page_token"])
    sessions = first["sessions"] + second["sessions"]
    assert second["next_page_token"] == ""
    assert [each["device_name"] for each in sessions][:3] == names[::-1]
    assert [each["current"] for each in sessions] == [False, False, False, True]
    foreign = await stranger.call("ListSessions", page_token=first["next_page_token"])
    assert (foreign.code, foreign.fields) == ("INVALID_ARGUMENT", {"page_token"})

    tablet, current = sessions[0]["id"], sessions[3]["id"]
    absent = await stranger.call("RevokeSession", session_id=tablet)
    assert absent.refusal == ("NOT_FOUND", "SESSION_NOT_FOUND")
    for _ in range(2):
        await member.must("RevokeSession", session_id=tablet)
    await ends(partial(devices[2].call, "GetAccount"), REVOKED)
    spent = await door.call("RefreshSession", refresh_token=devices[2].refresh_token)
    assert spent.refusal == REVOKED
    assert (await member.must("RevokeOtherSessions"))["revoked_count"] == 2
    assert [each["id"] for each in (await member.must("ListSessions"))["sessions"]] == [current]
    await member.must("Logout")
    await ends(partial(member.call, "ListSessions"), REVOKED)


async def test_a_password_is_changed_by_whoever_knows_it(mesh: RunningMesh, door: Door) -> None:
    member = await signed_up(door, mesh)
    other = await member.on_another_device()
    for current, new, refusal, fields in (
        (WRONG_PASSWORD, NEW_PASSWORD, WRONG, set()),
        (PASSWORD, "short", ("INVALID_ARGUMENT", "INVALID_ARGUMENT"), {"new_password"}),
        (PASSWORD, PASSWORD, ("INVALID_ARGUMENT", "INVALID_ARGUMENT"), {"new_password"}),
        (PASSWORD, member.email, ("INVALID_ARGUMENT", "INVALID_ARGUMENT"), {"new_password"}),
    ):
        answer = await member.call("ChangePassword", current_password=current, new_password=new)
        assert (answer.refusal, answer.fields) == (refusal, fields)
    await member.must("ChangePassword", current_password=PASSWORD, new_password=NEW_PASSWORD)
    await ends(partial(other.call, "ListStories"), REVOKED)
    await member.must("GetAccount")
    assert (await door.call("CreateSession", login=member.email, password=PASSWORD)).refusal == WRONG
    body_of(await door.call("CreateSession", login=member.email, password=NEW_PASSWORD))
    await told(mesh, member.email, "Your Storymesh password was changed")


async def test_a_forgotten_password_is_reset_with_a_mailed_code(mesh: RunningMesh, door: Door) -> None:
    member = await signed_up(door, mesh)
    challenge_id = body_of(await door.call("StartPasswordReset", email=member.email))["challenge_id"]
    code = await code_for(mesh.mail_dir, member.email, 8)
    reset = partial(door.call, "CompletePasswordReset", challenge_id=challenge_id)
    weak = await reset(code=code, new_password="short")
    assert (weak.code, weak.fields) == ("INVALID_ARGUMENT", {"new_password"})
    assert (await reset(code=wrong(code), new_password=NEW_PASSWORD)).refusal == INVALID_CODE
    assert body_of(await reset(code=code, new_password=NEW_PASSWORD)) == {}
    assert (await reset(code=code, new_password=NEW_PASSWORD)).refusal == INVALID_CODE
    await ends(partial(member.call, "ListNotifications"), REVOKED)
    assert (await door.call("CreateSession", login=member.email, password=PASSWORD)).refusal == WRONG
    body_of(await door.call("CreateSession", login=member.email, password=NEW_PASSWORD))
    await told(mesh, member.email, "Your Storymesh password was reset")


async def moving(member: Member, to: str) -> dict[str, str]:
    """Answer the challenge that allows the change of the e-mail address."""
    body = await member.must("StartEmailChange", new_email=to, password=PASSWORD)
    return {"challenge_id": body["challenge_id"], "code": await code_for(member.mesh.mail_dir, to, 8)}


async def test_an_account_moves_to_an_address_that_its_owner_has(mesh: RunningMesh, door: Door) -> None:
    member, stranger = await signed_up(door, mesh), await signed_up(door, mesh)
    new = new_address()
    assert (await member.call("StartEmailChange", new_email=new, password=WRONG_PASSWORD)).refusal == WRONG
    same = await member.call("StartEmailChange", new_email=member.email.upper(), password=PASSWORD)
    assert (same.code, same.fields) == ("INVALID_ARGUMENT", {"new_email"})
    answer = await moving(member, new)
    assert (await stranger.call("CompleteEmailChange", **answer)).refusal == INVALID_CODE
    assert (await member.must("CompleteEmailChange", **answer))["user"] == {**member.user, "email": new}
    assert (await member.call("CompleteEmailChange", **answer)).refusal == INVALID_CODE
    assert (await door.call("CreateSession", login=member.email, password=PASSWORD)).refusal == WRONG
    body_of(await door.call("CreateSession", login=new, password=PASSWORD))
    await told(mesh, member.email, "Your Storymesh address was changed")


async def how_to_stop(mesh: RunningMesh, address: str) -> str:
    """Return the mail's line that tells how to stop the change."""

    def lines() -> list[str]:
        texts = [text_of(mail) for mail in mails_to(mesh.mail_dir, address)]
        return [line for text in texts for line in text.splitlines() if line.startswith("curl ")]

    (line,) = await until(lines)
    return line


async def test_who_reads_the_former_address_brings_a_stolen_account_back(mesh: RunningMesh, door: Door) -> None:
    member, thiefs = await signed_up(door, mesh), new_address()
    await member.must("CompleteEmailChange", **(await moving(member, thiefs)))
    token = json.loads((await how_to_stop(mesh, member.email)).rpartition(" -d ")[2].strip("'"))["stop_token"]
    stop = partial(door.call, "StopEmailChange")
    assert (await stop(stop_token=token[:-1])).refusal == ("UNAUTHENTICATED", "STOP_TOKEN_INVALID")
    body_of(await stop(stop_token=token))
    assert (await stop(stop_token=token)).refusal == ("UNAUTHENTICATED", "STOP_TOKEN_INVALID")
    await until(lambda: refused_as_revoked(member))
    challenge_id = body_of(await door.call("StartSessionCode", email=member.email))["challenge_id"]
    code = await code_for(mesh.mail_dir, member.email, 8)
    signed_in = body_of(await door.call("CompleteSessionCode", challenge_id=challenge_id, code=code))
    assert signed_in["user"]["email"] == member.email
    for address, subject in (
        (member.email, "Your Storymesh account keeps this address"),
        (thiefs, "Your Storymesh address was changed"),
    ):
        await told(mesh, address, subject)


async def refused_as_revoked(member: Member) -> bool:
    return (await member.call("GetAccount")).refusal == REVOKED


async def test_the_line_in_the_mail_stops_a_begun_change(mesh: RunningMesh, both_doors: Door) -> None:
    member = await signed_up(both_doors, mesh)
    await member.must("StartEmailChange", new_email=new_address(), password=PASSWORD)
    running = await asyncio.create_subprocess_shell(await how_to_stop(mesh, member.email), stdout=PIPE, stderr=PIPE)
    answer, _ = await running.communicate()
    assert json.loads(answer) == {}
    await until(lambda: refused_as_revoked(member))


async def test_of_two_accounts_that_move_to_one_address_at_once_one_does(mesh: RunningMesh, door: Door) -> None:
    movers, new = [await signed_up(door, mesh) for _ in range(2)], new_address()
    answers = []
    for number, member in enumerate(movers, start=1):
        body = await member.must("StartEmailChange", new_email=new, password=PASSWORD)
        code = await code_for(mesh.mail_dir, new, 8, number=number)
        answers.append({"challenge_id": body["challenge_id"], "code": code})
    outcomes = await at_once(2, lambda index: movers[index].call("CompleteEmailChange", **answers[index]))
    assert sorted(outcome.refusal for outcome in outcomes) == [("ALREADY_EXISTS", "EMAIL_TAKEN"), ("OK", "")]
    addresses = [(await member.must("GetAccount"))["user"]["email"] for member in movers]
    assert addresses.count(new) == 1


async def test_a_mailed_code_signs_in(mesh: RunningMesh, door: Door) -> None:
    member = await signed_up(door, mesh)
    challenge_id = body_of(await door.call("StartSessionCode", email=member.email))["challenge_id"]
    code = await code_for(mesh.mail_dir, member.email, 8)
    complete = partial(door.call, "CompleteSessionCode", challenge_id=challenge_id)
    assert (await complete(code=wrong(code))).refusal == INVALID_CODE
    answers = await at_once(5, lambda _: complete(code=code, device_name="mailed"))
    (signed_in,) = [answer.body for answer in answers if answer.ok]
    assert {answer.refusal for answer in answers if not answer.ok} == {INVALID_CODE}
    device = member_of(door, mesh, member.email, signed_in)
    assert device.user == member.user
    assert "mailed" in {each["device_name"] for each in (await device.must("ListSessions"))["sessions"]}


async def test_an_account_is_deleted_on_fresh_proof_only(mesh: RunningMesh, door: Door) -> None:
    member, other = await signed_up(door, mesh), await signed_up(door, mesh)
    assert (await member.call("DeleteAccount")).refusal == ("FAILED_PRECONDITION", "REAUTH_REQUIRED")
    assert (await member.call("DeleteAccount", password=WRONG_PASSWORD)).refusal == WRONG
    half = await member.call("DeleteAccount", code="12345678")
    assert half.code == "INVALID_ARGUMENT"
    await member.must("DeleteAccount", password=PASSWORD)

    challenge_id = body_of(await door.call("StartSessionCode", email=other.email))["challenge_id"]
    code = await code_for(mesh.mail_dir, other.email, 8)
    await other.must("DeleteAccount", challenge_id=challenge_id, code=code)
    for gone in (member, other):
        for name in ("GetAccount", "ListStories", "ListNotifications"):
            await ends(partial(gone.call, name), REVOKED)
        assert (await door.call("CreateSession", login=gone.email, password=PASSWORD)).refusal == WRONG
        refreshed = await door.call("RefreshSession", refresh_token=gone.refresh_token)
        assert refreshed.code == "UNAUTHENTICATED"
    # The address is free again.
    await begun(door, member.email)
