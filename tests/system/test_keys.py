"""Rotation of the signing key while the mesh is used, and withdrawal of a leaked key."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

import grpc
import jwt
import pytest

from local.harness import RunningMesh
from local.settings import REPOSITORY
from tests.system.conftest import EdgeSettings, opened
from tests.system.doors import Answer, Door, GrpcDoor
from tests.system.members import Member, body_of, signed_up
from tests.waiting import until

WITHIN_SECONDS = 2.0
CALLS_AFTER = 100


@pytest.fixture(scope="module", autouse=True)
async def edge_that_learns_quickly(mesh: RunningMesh, edge_settings: EdgeSettings) -> AsyncIterator[None]:
    """An edge that fetches the key set every second instead of every five minutes."""
    edge_settings.write(authentication={"keys_cache_seconds": 6})
    await mesh.restart("envoy")
    yield
    edge_settings.write()
    await mesh.restart("envoy")


async def made_admin(mesh: RunningMesh, member: Member) -> Member:
    command = [sys.executable, "-m", "local", "exec", "--state-dir", str(mesh.layout.root)]
    process = await asyncio.create_subprocess_exec(
        *(*command, "auth", "make-admin", member.email),
        cwd=REPOSITORY,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    await renewed(member)
    return member


async def renewed(member: Member) -> Answer:
    answer = await member.door.call("RefreshSession", refresh_token=member.refresh_token)
    member.tokens = answer.body.get("tokens", member.tokens)
    return answer


def kid_of(tokens: dict[str, Any]) -> str:
    return str(jwt.get_unverified_header(tokens["access_token"])["kid"])


async def refused(door: Door, name: str, token: str) -> bool:
    """True if the token is refused: as revoked where the key is still known, as unknown elsewhere."""
    return (await door.call(name, token=token)).code == "UNAUTHENTICATED"


async def test_nobody_is_refused_while_the_signing_key_changes(mesh: RunningMesh) -> None:
    async with opened(mesh, "http") as http, opened(mesh, "grpc") as native:
        admin = await made_admin(mesh, await signed_up(http, mesh))
        people = [await signed_up(door, mesh) for door in (http, native) for _ in range(2)]
        used: list[tuple[str, Answer]] = []
        over = asyncio.Event()

        async def use(number: int, member: Member) -> None:
            """Use the mesh without a pause, with new tokens."""
            while not over.is_set():
                signing_in: dict[str, Any] = {"login": member.email, "password": member.password}
                answer = await (renewed(member) if number % 2 else member.door.call("CreateSession", **signing_in))
                member.tokens = answer.body.get("tokens", member.tokens)
                reads = ("GetAccount", "ListStories", "ListNotifications")
                answers = [answer, *await asyncio.gather(*(member.call(name) for name in reads))]
                used.extend((kid_of(member.tokens), each) for each in answers)

        async def rotated(door: Door) -> str:
            return str(body_of(await door.call("RotateKeys", token=admin.access_token))["kid"])

        async def another(former: str) -> str:
            kid = await rotated(native)
            return kid if kid != former else ""

        async with asyncio.TaskGroup() as group:
            for number, member in enumerate(people):
                group.create_task(use(number, member))
            try:
                await until(lambda: len(used) >= CALLS_AFTER)
                kids = [kid_of(admin.tokens), await rotated(http)]
                # Until the first new key takes over, RotateKeys returns it again; then it makes the next, which waits likewise.
                kids.append(await until(partial(another, kids[-1])))
                await until(lambda: [of for of, _ in used].count(kids[-1]) >= CALLS_AFTER, 40)
            finally:
                over.set()
        assert [answer for _, answer in used if not answer.ok] == []
        assert list(dict.fromkeys(of for of, _ in used)) == kids
        assert len(set(kids)) == 3
        # Tokens of the former keys are valid until they expire.
        await admin.must("GetAccount")


async def test_what_a_dropped_key_signed_is_refused_everywhere_and_refreshing_helps(
    mesh: RunningMesh, door: Door
) -> None:
    admin = await made_admin(mesh, await signed_up(door, mesh))
    member = await signed_up(door, mesh)
    dropped, token = kid_of(member.tokens), member.access_token
    active = (await admin.must("DropKey", kid=dropped))["active_kid"]
    assert active != dropped
    for component, name in {"auth": "GetAccount", "story": "ListStories", "notification": "ListNotifications"}.items():
        async with grpc.aio.insecure_channel(mesh.address(component)) as channel:
            await until(partial(refused, GrpcDoor(channel), name, token), WITHIN_SECONDS)
        assert await refused(door, name, token)
    body_of(await renewed(member))
    body_of(await renewed(admin))
    assert kid_of(member.tokens) == active

    async def let_in() -> bool:
        """Wait until the token is accepted: the edge learns of a key that was not published ahead at its next fetch."""
        return (await admin.call("GetAccount")).ok and (await member.call("ListStories")).ok

    await until(let_in)
    again = await admin.call("DropKey", kid=dropped)
    assert again.refusal == ("NOT_FOUND", "KEY_NOT_FOUND")
    assert dropped not in {key["kid"] for key in body_of(await door.call("GetJwks"))["keys"]}
