"""Unusual and invalid addresses, names and passwords."""

from __future__ import annotations

from typing import Any

import pytest

from local.harness import RunningMesh
from tests.system.conftest import PASSWORD, mails_to
from tests.system.doors import Door
from tests.system.members import begun, body_of, new_address, signed_up

MEGABYTE = "x" * 1_000_000
WRONG = ("UNAUTHENTICATED", "INVALID_CREDENTIALS")


@pytest.mark.parametrize(
    ("name", "request_"),
    [
        ("CreateSession", {"login": "somebody", "password": MEGABYTE}),
        ("CreateRegistration", {"email": "somebody@example.com", "password": MEGABYTE}),
        ("CreateSession", {"login": MEGABYTE, "password": PASSWORD}),
        ("RefreshSession", {"refresh_token": MEGABYTE}),
    ],
)
async def test_a_megabyte_is_refused_as_the_callers_mistake(door: Door, name: str, request_: dict[str, Any]) -> None:
    answer = await door.call(name, **request_)
    assert answer.refusal in (("INVALID_ARGUMENT", "REQUEST_TOO_LARGE"), ("INVALID_ARGUMENT", "INVALID_ARGUMENT"))
    assert answer.http_status in (None, 400, 413)


@pytest.mark.parametrize("length", [1025, 100_000])
async def test_a_long_password_is_named(door: Door, length: int) -> None:
    answer = await door.call("CreateSession", login="somebody", password="x" * length)
    assert (answer.code, answer.fields) == ("INVALID_ARGUMENT", {"password"})


async def test_a_nul_is_refused_where_text_is_kept_and_otherwise_matches_nobody(mesh: RunningMesh, door: Door) -> None:
    good: dict[str, Any] = {"email": new_address(), "password": PASSWORD}
    for field, value in {
        "email": "a\0b@example.com",
        "password": f"{PASSWORD}\0",
        "username": "abc\0",
        "first_name": "A\0",
        "last_name": "\0",
    }.items():
        answer = await door.call("CreateRegistration", **{**good, field: value})
        assert (answer.code, answer.fields) == ("INVALID_ARGUMENT", {field})
    member = await signed_up(door, mesh)
    requests: tuple[dict[str, Any], ...] = (
        {"login": f"{member.email}\0", "password": PASSWORD},
        {"login": "\0", "password": PASSWORD},
        {"login": member.email, "password": f"{PASSWORD}\0"},
        {"login": member.email, "password": "\0"},
    )
    for request in requests:
        assert (await door.call("CreateSession", **request)).refusal == WRONG
    named = await door.call("CreateSession", login=member.email, password=PASSWORD, device_name="a\0")
    assert (named.code, named.fields) == ("INVALID_ARGUMENT", {"device_name"})
    assert (await door.call("RefreshSession", refresh_token="smr1_\0")).reason == "REFRESH_INVALID"


async def test_a_password_may_be_of_any_characters_and_is_the_same_in_every_form_of_them(
    mesh: RunningMesh, door: Door
) -> None:
    composed, decomposed = "\N{LATIN SMALL LETTER E WITH ACUTE}", "e\N{COMBINING ACUTE ACCENT}"
    password = f"  \N{SNOWMAN}\N{FOX FACE} five m{composed}t words  "
    member = await signed_up(door, mesh, password=password)
    for same in (password, password.replace(composed, decomposed)):
        body_of(await door.call("CreateSession", login=member.email, password=same))
    for other in (password.strip(), password.replace(composed, "e")):
        assert (await door.call("CreateSession", login=member.email, password=other)).refusal == WRONG


async def test_an_address_is_one_in_any_case_and_another_with_a_tag_or_foreign_letters(
    mesh: RunningMesh, door: Door
) -> None:
    member = await signed_up(door, mesh, email=new_address().replace("reader", "Reader"))
    for spelling in (member.email.upper(), member.email.lower(), f" {member.email} "):
        signed_in = body_of(await door.call("CreateSession", login=spelling, password=PASSWORD))
        assert signed_in["user"] == member.user
    await begun(door, member.email.upper())
    told = [str(mail["Subject"]) for mail in mails_to(mesh.mail_dir, member.email)]
    assert told.count("Your Storymesh code") == 1

    tagged = await signed_up(door, mesh, email=member.email.replace("@", "+tag@"))
    assert tagged.user["id"] != member.user["id"]
    alike = member.email.replace("e", "\N{CYRILLIC SMALL LETTER IE}", 1)
    answer = await door.call("CreateSession", login=alike, password=PASSWORD)
    assert answer.refusal == WRONG
    registering = await door.call("CreateRegistration", email=alike, password=PASSWORD)
    assert (registering.code, registering.fields) == ("INVALID_ARGUMENT", {"email"})


async def test_a_language_that_nobody_writes_here_is_refused_at_the_request(mesh: RunningMesh, door: Door) -> None:
    member = await signed_up(door, mesh)
    for language in ("pt-BR", "fr", "zh-Hant"):
        answer = await door.call("CreateStory", token=member.access_token, language=language)
        assert (answer.code, answer.fields) == ("INVALID_ARGUMENT", {"language"})
        assert "LANGUAGE_UNSUPPORTED" in answer.text
    assert (await door.call("ListStories", token=member.access_token)).body.get("stories", []) == []
    assert (await door.call("CreateStory", token=member.access_token, language="en-GB")).ok
