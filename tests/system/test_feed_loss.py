"""Loss of the revocation feed: while auth does not answer for too long, reads go on and writes are refused with a reason."""

from __future__ import annotations

import re

import httpx2
import pytest

from kit.identity.revocations import STALE_AFTER
from local.harness import RunningMesh
from tests.system.conftest import opened
from tests.system.doors import Door
from tests.system.members import Member, signed_up
from tests.waiting import until

UNKNOWN = ("UNAVAILABLE", "REVOCATIONS_UNKNOWN")
TAKEN = ("INVALID_ARGUMENT", "INVALID_ARGUMENT")
TOO_LONG = "x" * 101
"""An invalid field: the answer that names it proves that the caller may write, without making a story."""


async def written(door: Door, member: Member) -> tuple[str, str]:
    answer = await door.call("CreateStory", token=member.access_token, theme=TOO_LONG)
    if answer.refusal == UNKNOWN:
        assert answer.http_status in (None, 503)
    return answer.refusal


async def stale_gauge(mesh: RunningMesh) -> float:
    async with httpx2.AsyncClient() as client:
        page = (await client.get(f"http://{mesh.address('story-metrics')}/metrics")).text
    (value,) = re.findall(r"^storymesh_revocation_feed_stale(?:{.*})? (\S+)$", page, re.MULTILINE)
    return float(value)


@pytest.mark.timeout(180)
async def test_without_auth_reads_go_on_and_writes_are_refused_once_the_list_is_stale(mesh: RunningMesh) -> None:
    async with opened(mesh, "http") as http, opened(mesh, "grpc") as native:
        member = await signed_up(http, mesh)
        log = mesh.layout.log("story")
        told_before = log.read_text()
        assert await stale_gauge(mesh) == 0
        # One call through each, so that both know the key that signed the token.
        for name in ("ListStories", "ListNotifications"):
            await member.must(name)
        await mesh.stop("auth")
        try:
            assert await written(http, member) == await written(native, member) == TAKEN

            async def stale() -> bool:
                for door in (http, native):
                    assert (await door.call("ListStories", token=member.access_token)).ok
                    assert (await door.call("ListNotifications", token=member.access_token)).ok
                return await stale_gauge(mesh) == 1

            await until(stale, STALE_AFTER.total_seconds() + 15)
            assert await written(http, member) == await written(native, member) == UNKNOWN
            assert await stale()
            await until(lambda: "the list of revocations is stale" in log.read_text().removeprefix(told_before))
        finally:
            await mesh.start("auth")

        async def fresh() -> bool:
            return await stale_gauge(mesh) == 0

        await until(fresh, 30)
        assert await written(http, member) == await written(native, member) == TAKEN
        await until(lambda: "the revocation feed is back" in log.read_text().removeprefix(told_before))
        await member.must("UpdateAccount", first_name="Ada")
