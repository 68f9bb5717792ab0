"""Erasure: after the deletion of an account no database and no key of Redis holds anything about the person."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

from redis.asyncio import Redis

from local.harness import RunningMesh
from tests.system.conftest import code_for
from tests.system.doors import Door
from tests.system.members import begun, body_of, ends, new_address, signed_up
from tests.system.remains import kept
from tests.waiting import until

MAY_KEEP_THE_ID = (
    # The audit trail, under a random id that identifies nobody.
    "auth.audit_entries.",
    # Kept until the last access token has expired.
    "auth.revocations.value",
    # The event that tells other services to erase, and the tombstone that prevents new data.
    "auth.outbox[storymesh.events.v1.UserDeleted].",
    "auth.outbox[storymesh.events.v1.SessionsRevoked].",
    "story.erased_subjects.",
    "notification.erased_subjects.",
    "social.erased_subjects.",
    "file.erased_subjects.",
)
MAY_KEEP_THE_ID_FOR_A_TIME = (
    # The end of the words, which tells those who still watch the story.
    "redis progress:",
    # What the person has used of a limit: with the account's end it must not be full again.
    "redis ratelimit:",
)


async def test_a_deleted_person_is_nowhere_in_the_mesh(mesh: RunningMesh, both_doors: Door, mesh_redis: Redis) -> None:
    door = both_doors

    def unique(kind: str) -> str:
        return f"{kind}{uuid4().hex[:12]}"

    old, new = new_address(), new_address()
    personal = {name: unique(name[0]) for name in ("first_name", "last_name", "username")}
    preference, device, theme, prompt, claim = (unique(kind) for kind in ("pref", "dev", "theme", "prompt", "rq"))
    member = await signed_up(door, mesh, old, preferences=[preference], **personal)
    story: dict[str, Any] = {}

    async def finished() -> bool:
        story.update((await member.must("GetStory", story_id=story["id"]))["story"])
        return bool(story["state"] == "STORY_STATE_COMPLETED")

    async def is_unlike_others() -> bool:
        """False if another person's story has the same title or opening, which would be taken for a remainder of this one."""
        texts = [value for place, value in await kept(mesh, mesh_redis) if place.startswith("story.stories.t")]
        beginnings = (story["title"].encode(), story["text"][:60].encode())
        return all(sum(text.startswith(beginning) for text in texts) == 1 for beginning in beginnings)

    wish = {"theme": theme, "prompt": prompt, "length": "STORY_LENGTH_SHORT"}
    for number in range(5):
        story.update((await member.must("CreateStory", **wish, request_id=f"{claim}-{number}"))["story"])
        await until(finished, 40)
        if await is_unlike_others():
            break
    else:
        raise AssertionError("each story begins like somebody else's")
    body_of(
        await door.call("CreateSession", login=old, password=member.password, device_name=device, device_token=claim)
    )
    challenge_id = (await member.must("StartEmailChange", new_email=new, password=member.password))["challenge_id"]
    code = await code_for(mesh.mail_dir, new, 8)
    await member.must("CompleteEmailChange", challenge_id=challenge_id, code=code)
    # Challenges that others may have begun with the address, and those that the person did not finish.
    await begun(door, new, first_name=personal["first_name"])
    for start in ("StartSessionCode", "StartPasswordReset"):
        body_of(await door.call(start, email=new))
    profile = {"handle": unique("h"), "display_name": unique("n"), "bio": unique("b")}
    await member.must("UpdateProfile", **profile)
    other = await signed_up(door, mesh)
    await other.must("GetOwnProfile")
    await member.must("Block", user_id=other.user["id"])
    # A further story is being written at the deletion.
    await member.must("CreateStory", theme=theme, length="STORY_LENGTH_LONG")

    user_id = UUID(member.user["id"])
    words = [
        old,
        new,
        *personal.values(),
        *profile.values(),
        preference,
        device,
        theme,
        prompt,
        claim,
        story["title"],
        story["text"][:60],
    ]
    ids = [str(user_id), user_id.hex, story["id"]]

    async def found(needles: list[bytes]) -> dict[str, str]:
        """Return the places that hold a needle, each with one of those found."""
        pieces = await kept(mesh, mesh_redis)
        return {
            place: needle.decode(errors="replace") for place, value in pieces for needle in needles if needle in value
        }

    named = [word.encode() for word in words]

    async def is_everywhere() -> bool:
        return {place.partition(".")[0] for place in await found(named)} >= {"auth", "story", "notification", "social"}

    # Notifications are told of the story by an event, a moment after it.
    await until(is_everywhere)

    await member.must("DeleteAccount", password=member.password)
    await ends(lambda: member.call("GetAccount"), ("UNAUTHENTICATED", "SESSION_REVOKED"))

    async def left() -> dict[str, str]:
        of_ids = await found([*(each.encode() for each in ids), user_id.bytes])
        expiring = {
            place
            for place in of_ids
            if place.startswith(MAY_KEEP_THE_ID_FOR_A_TIME) and await mesh_redis.ttl(place.removeprefix("redis ")) > 0
        }
        forbidden = {
            place: needle
            for place, needle in of_ids.items()
            if place not in expiring and not place.startswith(MAY_KEEP_THE_ID)
        }
        return forbidden | await found(named)

    async def erased() -> bool:
        return not await left()

    try:
        await until(erased, 20)
    except TimeoutError:
        assert await left() == {}
