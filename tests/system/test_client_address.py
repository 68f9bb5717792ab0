"""Clients behind trusted proxies: the mesh logs and counts the address that the proxies forward."""

from __future__ import annotations

from collections.abc import AsyncIterator
from itertools import count

import psycopg
import pytest

from local.harness import RunningMesh
from tests.system.conftest import FAILURES_PER_NETWORK, EdgeSettings, databases_of
from tests.system.doors import Door
from tests.system.members import WRONG_PASSWORD, body_of, signed_up
from tests.waiting import until

OUTER_PROXY, ADA, MALLORY = "192.0.2.1", "203.0.113.7", "198.51.100.66"
TOO_MANY = ("RESOURCE_EXHAUSTED", "TOO_MANY_SIGN_INS")


def client(address: str) -> dict[str, str]:
    """Return the headers of a client that claims another address; each proxy appends the address of its peer."""
    return {"x-forwarded-for": f"6.6.6.6, {address}, {OUTER_PROXY}", "x-storymesh-client-address": "6.6.6.6"}


@pytest.fixture
async def two_proxies(mesh: RunningMesh, edge_settings: EdgeSettings) -> AsyncIterator[None]:
    edge_settings.write(trusted_proxies=2)
    await mesh.restart("envoy")
    yield
    edge_settings.write()
    await mesh.restart("envoy")


async def test_behind_proxies_one_persons_guesses_refuse_nobody_else(
    mesh: RunningMesh, two_proxies: None, unknown_network: None, both_doors: Door
) -> None:
    member = await signed_up(both_doors, mesh)
    logins = (f"nobody-{number}@example.com" for number in count())
    guessed = []

    async def refused() -> bool:
        """Fail to sign in, each time with another login, so that only the network's limit applies."""
        guess = {"login": next(logins), "password": WRONG_PASSWORD}
        guessed.append((await both_doors.call("CreateSession", headers=client(MALLORY), **guess)).refusal)
        return guessed[-1] == TOO_MANY

    await until(refused, 60)
    assert len(guessed) > FAILURES_PER_NETWORK
    owner = {"login": member.email, "password": member.password}
    for spelling in (ADA, f"::ffff:{ADA}"):
        body_of(await both_doors.call("CreateSession", headers=client(spelling), **owner))
    sessions = (await member.must("ListSessions"))["sessions"]
    assert [each["ip"] for each in sessions if not each["current"]] == [ADA, ADA]
    async with await psycopg.AsyncConnection.connect(databases_of(mesh)["auth"]) as connection:
        query = "SELECT ip FROM audit_entries WHERE subject_id = %s ORDER BY occurred_at DESC LIMIT 2"
        assert await (await connection.execute(query, (member.user["id"],))).fetchall() == [(ADA,), (ADA,)]
