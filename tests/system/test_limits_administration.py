"""Administrators and the rate limiter, through the edge: a refusal is explained, a caller banned for a time and let in again."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from local.harness import RunningMesh
from tests.system.doors import Door
from tests.system.members import signed_up
from tests.system.test_keys import made_admin
from tests.waiting import until


async def test_a_user_is_banned_learns_until_when_and_is_let_in_again(mesh: RunningMesh, door: Door) -> None:
    admin, member = await made_admin(mesh, await signed_up(door, mesh)), await signed_up(door, mesh)
    subject = {"user_id": (await member.must("GetAccount"))["user"]["id"]}
    until_when = (datetime.now(UTC) + timedelta(hours=1)).strftime("%Y-%m-%dT%H:%M:%SZ")
    banned = await admin.must("BanCaller", subject=subject, expire_time=until_when, reason="floods us")

    async def refused() -> bool:
        return (await member.call("GetAccount")).refusal == ("RESOURCE_EXHAUSTED", "RATE_LIMIT_BANNED")

    await until(refused)
    (call,) = (await admin.must("ExplainRateLimit", subject={**subject, "rate_limit_class": "default"}))["calls"]
    assert (call["reason"], call["retry_time"]) == ("RATE_LIMIT_BANNED", until_when)
    await admin.must("LiftRateLimitOverride", override_id=banned["override"]["id"], reason="over")

    async def passes() -> bool:
        return (await member.call("GetAccount")).ok

    await until(passes)


OF_ADDRESS = {"subject": {"client_address": "192.0.2.7"}}


@pytest.mark.parametrize(
    ("method", "request_of_it"),
    [
        ("ExplainRateLimit", OF_ADDRESS),
        ("BanCaller", {**OF_ADDRESS, "expire_time": "2100-01-01T00:00:00Z", "reason": "a test"}),
        ("ListRateLimitOffenders", {}),
    ],
)
async def test_nobody_else_may_ask(mesh: RunningMesh, door: Door, method: str, request_of_it: dict[str, Any]) -> None:
    member = await signed_up(door, mesh)
    assert (await member.call(method, **request_of_it)).refusal == ("PERMISSION_DENIED", "PERMISSION_DENIED")
