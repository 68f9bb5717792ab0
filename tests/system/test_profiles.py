"""Profiles through the edge: the same at both doors, and the same bytes for who is absent and who blocks."""

from __future__ import annotations

import hashlib
from typing import Any
from uuid import uuid4

import httpx2
import pytest

from local.harness import RunningMesh
from tests.file.pictures import photo
from tests.system.conftest import opened
from tests.system.doors import Answer, Door
from tests.system.members import Member, signed_up
from tests.waiting import until


def name() -> str:
    return f"h{uuid4().hex[:12]}"


async def made(member: Member, viewer: Member) -> dict[str, Any]:
    """The member's profile as the viewer sees it, once the event of the registration has made it."""

    async def found() -> Answer | None:
        answer = await viewer.call("GetProfile", user_id=member.user["id"])
        return answer if answer.ok else None

    answer = await until(found, 30)
    assert answer is not None
    profile: dict[str, Any] = answer.body["profile"]
    return profile


async def test_profiles_are_made_by_registrations_and_vanish_by_a_block_and_by_deletion(
    mesh: RunningMesh, both_doors: Door
) -> None:
    door = both_doors
    member, viewer = await signed_up(door, mesh), await signed_up(door, mesh)
    user_id = member.user["id"]
    before = await made(member, viewer)
    handle = name()
    changed = (await member.must("UpdateProfile", handle=handle, display_name="Ada", bio="Two\nlines"))["profile"]
    assert (changed["handle"], changed["bio"], changed["private"]) == (handle, "Two\nlines", False)
    assert await made(member, viewer) == {
        **changed,
        "create_time": before["create_time"],
        "relationship": {"blocking": False, "muting": False},
    }
    assert (await viewer.must("GetProfileByHandle", handle=handle))["profile"]["user_id"] == user_id
    both = [viewer.user["id"], user_id, str(uuid4())]
    found = (await viewer.must("BatchGetProfiles", user_ids=both))["profiles"]
    assert [each["user_id"] for each in found] == both[:2]

    await member.must("Block", user_id=viewer.user["id"])
    assert [each["user_id"] for each in (await member.must("ListBlocks"))["profiles"]] == [viewer.user["id"]]
    hidden = [
        await viewer.call("GetProfile", user_id=user_id),
        await viewer.call("GetProfileByHandle", handle=handle),
        await viewer.call("Mute", user_id=user_id),
        await viewer.call("GetProfile", user_id=str(uuid4())),
        await viewer.call("GetProfileByHandle", handle=name()),
    ]
    assert all(each.body == hidden[0].body for each in hidden)
    assert hidden[0].refusal == ("NOT_FOUND", "USER_NOT_FOUND")
    assert (await viewer.must("BatchGetProfiles", user_ids=both))["profiles"] == found[:1]

    assert (await viewer.call("UpdateProfile", handle=handle)).refusal == ("ALREADY_EXISTS", "HANDLE_TAKEN")
    assert (await member.call("Block", user_id=user_id)).refusal == ("INVALID_ARGUMENT", "SELF")

    await member.must("DeleteProfile")

    async def gone() -> bool:
        return (await member.call("GetOwnProfile")).refusal == ("NOT_FOUND", "PROFILE_DELETED")

    await until(gone, 30)
    assert (await member.must("UpdateProfile", handle=handle))["profile"]["display_name"] == ""
    assert (await member.must("ListBlocks"))["profiles"] == []
    assert (await viewer.must("GetProfileByHandle", handle=handle))["profile"]["user_id"] == user_id


async def test_an_uploaded_image_becomes_an_avatar_that_others_fetch_until_they_are_blocked(
    mesh: RunningMesh, door: Door
) -> None:
    member, viewer = await signed_up(door, mesh), await signed_up(door, mesh)
    user_id = member.user["id"]
    image = photo()
    declared = {
        "purpose": "FILE_PURPOSE_AVATAR",
        "name": "me.jpg",
        "size": len(image),
        "media_type": "image/jpeg",
        "sha256": hashlib.sha256(image).hexdigest(),
    }
    created = await member.must("CreateFile", **declared)
    file_id, upload = created["file"]["id"], created["upload"]
    early = await member.call("UpdateProfile", avatar_file_id=file_id)
    assert early.refusal == ("FAILED_PRECONDITION", "FILE_NOT_READY")
    stolen = await viewer.call("UpdateProfile", avatar_file_id=file_id)
    assert stolen.refusal == ("NOT_FOUND", "FILE_NOT_FOUND")
    assert (await viewer.call("GetAvatar", user_id=user_id)).refusal == ("NOT_FOUND", "NO_AVATAR")
    async with httpx2.AsyncClient(timeout=20) as anybody:
        sent = await anybody.request(upload["method"], upload["url"], content=image, headers=upload["headers"])
        assert sent.status_code == 200
        await member.must("CompleteFile", file_id=file_id)

        async def ready() -> bool:
            return bool((await member.must("GetFile", file_id=file_id))["file"]["state"] == "FILE_STATE_READY")

        await until(ready, 40)
        changed = (await member.must("UpdateProfile", avatar_file_id=file_id))["profile"]
        url = (await viewer.must("GetProfile", user_id=user_id))["profile"]["avatar_url"]
        assert url == changed["avatar_url"] or url
        shown = await anybody.get(url)
        assert (shown.status_code, shown.headers["content-type"]) == (200, "image/webp")
        headers = {"authorization": f"Bearer {viewer.access_token}"}
        path = f"{mesh.edge_url}/v1/users/{user_id}/avatar?size=96"
        redirected = await anybody.get(path, headers={**headers, "accept": "image/webp,*/*"}, follow_redirects=False)
        assert redirected.status_code == 302
        small = await anybody.get(redirected.headers["location"])
        assert (small.status_code, small.headers["content-type"]) == (200, "image/webp")
        assert len(small.content) < len(shown.content)
        as_json = await anybody.get(path, headers={**headers, "accept": "application/json"})
        assert (await anybody.get(as_json.json()["url"])).content == small.content
        assert (await member.call("DeleteFile", file_id=file_id)).refusal == ("FAILED_PRECONDITION", "FILE_IN_USE")

        await member.must("Block", user_id=viewer.user["id"])
        hidden = await viewer.call("GetAvatar", user_id=user_id)
        nobody = await viewer.call("GetAvatar", user_id=str(uuid4()))
        assert hidden.body == nobody.body
        assert hidden.refusal == ("NOT_FOUND", "USER_NOT_FOUND")

    await member.must("UpdateProfile", avatar_file_id="")

    async def deleted() -> bool:
        return (await member.call("GetFile", file_id=file_id)).refusal == ("NOT_FOUND", "FILE_NOT_FOUND")

    await until(deleted, 30)


async def test_who_calls_is_told_by_the_token_and_by_nothing_else(mesh: RunningMesh, door: Door) -> None:
    member, other = await signed_up(door, mesh), await signed_up(door, mesh)
    async with httpx2.AsyncClient(base_url=mesh.edge_url, timeout=20) as client:
        forged = {"x-user-id": other.user["id"], "authorization": f"Bearer {member.access_token}"}
        profile = (await client.get("/v1/profile", headers=forged)).json()["profile"]
        assert profile["user_id"] == member.user["id"]
        for headers in ({}, {"x-user-id": other.user["id"]}, {"cookie": f"jwt={member.access_token}"}):
            assert (await client.get("/v1/profile", headers=headers)).status_code == 401


@pytest.fixture(scope="module")
async def somebody(mesh: RunningMesh) -> Member:
    async with opened(mesh, "http") as door:
        return await signed_up(door, mesh)


@pytest.mark.parametrize(
    ("verb", "path", "status"),
    [
        ("GET", "/v1/users/none", 400),
        ("GET", "/v1/users/%2e%2e", 404),
        ("GET", "/v1/handles/Ada_L", 400),
        ("GET", "/v1/handles/%D0%B0da_l", 400),
        ("GET", "/v1/handles/ada%00l", 400),
        ("GET", "/v1/users:batchGet", 400),
        ("GET", "/v1/users:batchGet?user_ids=none", 400),
        ("GET", "/v1/users:batchGet?user_id=none", 400),
        ("GET", "/v1/users/0198c0de-0000-7000-8000-000000000000/profile", 404),
        ("POST", "/v1/profile", 405),
    ],
)
async def test_what_is_no_id_and_no_handle_is_refused_with_a_reason(
    mesh: RunningMesh, somebody: Member, verb: str, path: str, status: int
) -> None:
    async with httpx2.AsyncClient(base_url=mesh.edge_url, timeout=20) as client:
        answer = await client.request(verb, path, headers={"authorization": f"Bearer {somebody.access_token}"})
    assert answer.status_code == status, answer.text
    assert answer.json()["details"][0]["@type"].startswith("type.googleapis.com/google.rpc.")
