"""Calls are recorded for a bounded time and number, and candidate rules are tried with them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode
from grpc.aio import AioRpcError
from redis.asyncio import Redis
from storymesh.ops.v1 import rate_limit_pb2 as messages
from storymesh.ops.v1 import rate_limit_service_pb2 as pb

from tests.ratelimit.administering import ADDRESS, BY_ADDRESS, Limiter, administered
from tests.ratelimit.test_administration import RULES
from tests.statuses import raises_status, violated_fields

NARROW = RULES.replace("burst: 100", "burst: 2")


@pytest.fixture
async def limiter(limiter_redis: Redis, tmp_path: Path) -> AsyncIterator[Limiter]:
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULES)
    async with administered(limiter_redis, rules) as running:
        yield running


async def start(limiter: Limiter, most: int = 0, wait: timedelta = timedelta(minutes=5)) -> None:
    ends = Timestamp()
    ends.FromDatetime(datetime.now(UTC) + wait)
    request = pb.StartRateLimitRecordingRequest(expire_time=ends, most=most, reason="lower limits")
    await limiter.admin.StartRateLimitRecording(request, metadata=limiter.auth)


async def stop(limiter: Limiter) -> messages.RateLimitRecording:
    request = pb.StopRateLimitRecordingRequest(reason="enough")
    return (await limiter.admin.StopRateLimitRecording(request, metadata=limiter.auth)).recording


async def tried(limiter: Limiter, rules: str) -> pb.TryRateLimitRulesResponse:
    return await limiter.admin.TryRateLimitRules(pb.TryRateLimitRulesRequest(rules=rules), metadata=limiter.auth)


async def test_rules_are_tried_with_the_calls_that_were_recorded_and_nothing_is_debited(limiter: Limiter) -> None:
    assert await limiter.passes(BY_ADDRESS)
    await start(limiter)
    for _ in range(5):
        assert await limiter.passes(BY_ADDRESS)
    assert (await stop(limiter)).call_count == 5
    assert await limiter.passes(BY_ADDRESS)
    answer = await tried(limiter, NARROW)
    assert (answer.call_count, answer.admitted_count, answer.admitted_then_count) == (5, 5, 2)
    (difference,) = answer.differences
    assert (difference.before, difference.then, difference.call_count) == (
        "admitted by default-per-address",
        "refused by default-per-address",
        3,
    )
    assert difference.descriptors[0].entries[1].value == f"{ADDRESS}/32"
    assert await limiter.passes(BY_ADDRESS, hits=93)
    assert not await limiter.passes(BY_ADDRESS)


async def test_a_recording_takes_no_more_calls_than_it_may(limiter: Limiter) -> None:
    await start(limiter, most=3)
    for _ in range(5):
        assert await limiter.passes(BY_ADDRESS)
    assert (await tried(limiter, RULES)).call_count == 3
    await start(limiter, most=3)
    assert (await stop(limiter)).call_count == 0


async def test_rules_with_mistakes_are_told_by_line(limiter: Limiter) -> None:
    await start(limiter)
    assert await limiter.passes(BY_ADDRESS)
    with pytest.raises(AioRpcError) as refused:
        await tried(limiter, NARROW.replace("burst: 2", "burst: many", 1))
    assert violated_fields(refused.value) == ["rules"]
    assert "rules.yaml:" in (refused.value.details() or "")
    assert "/tmp" not in (refused.value.details() or "")


async def test_without_a_recording_there_is_nothing_to_try_or_stop(limiter: Limiter) -> None:
    with raises_status(StatusCode.NOT_FOUND, "RATE_LIMIT_RECORDING_NOT_FOUND"):
        await tried(limiter, RULES)
    with raises_status(StatusCode.NOT_FOUND, "RATE_LIMIT_RECORDING_NOT_FOUND"):
        await stop(limiter)


@pytest.mark.parametrize("wait", [timedelta(0), timedelta(minutes=61)])
async def test_a_recording_of_more_than_an_hour_is_refused(limiter: Limiter, wait: timedelta) -> None:
    with pytest.raises(AioRpcError) as refused:
        await start(limiter, wait=wait)
    assert violated_fields(refused.value) == ["expire_time"]


async def test_a_recording_and_its_end_are_recorded_changes(limiter: Limiter) -> None:
    await start(limiter)
    await stop(limiter)
    page = await limiter.admin.ListRateLimitChanges(pb.ListRateLimitChangesRequest(), metadata=limiter.auth)
    assert [(each.act, each.reason) for each in page.changes] == [
        (messages.RATE_LIMIT_ACT_RECORDING_STOPPED, "enough"),
        (messages.RATE_LIMIT_ACT_RECORDING_STARTED, "lower limits"),
    ]
