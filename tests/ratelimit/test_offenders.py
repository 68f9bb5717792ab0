"""Who is refused most often: counted approximately, in bounded memory, for a short time."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from redis.asyncio import Redis
from storymesh.ops.v1 import rate_limit_service_pb2 as pb

from services.ratelimit.model.decisions import Answer, Decision, Outcome
from services.ratelimit.model.rules import Action
from services.ratelimit.operations.refusals import RefusalCounts
from tests.ratelimit.administering import ADDRESS, BY_ADA, BY_ADDRESS, Limiter, administered
from tests.ratelimit.building import by_address, described, rule
from tests.ratelimit.test_administration import RULES


@pytest.fixture
async def limiter(limiter_redis: Redis, tmp_path: Path) -> AsyncIterator[Limiter]:
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULES)
    async with administered(limiter_redis, rules) as running:
        yield running


async def offenders(limiter: Limiter, size: int = 0, token: str = "") -> pb.ListRateLimitOffendersResponse:
    request = pb.ListRateLimitOffendersRequest(minutes=10, page_size=size, page_token=token)
    return await limiter.admin.ListRateLimitOffenders(request, metadata=limiter.auth)


async def test_those_who_are_refused_are_listed_by_rule_the_most_first_in_pages(limiter: Limiter) -> None:
    other = described("class=default", "client_ip=192.0.2.8/32")
    for each, burst, refusals in ((BY_ADDRESS, 100, 3), (other, 100, 2), (BY_ADA, 50, 1)):
        assert await limiter.passes(each, hits=burst)
        for _ in range(refusals):
            assert not await limiter.passes(each)
    first = await offenders(limiter, 2)
    second = await offenders(limiter, 2, first.next_page_token)
    told = [(each.refused_count, each.rule, each.entries[1].value) for each in (*first.offenders, *second.offenders)]
    assert told[:2] == [(3, "default-per-address", f"{ADDRESS}/32"), (2, "default-per-address", "192.0.2.8/32")]
    assert [each[:2] for each in told[2:]] == [(1, "default-per-user")]
    assert second.next_page_token == ""


async def test_a_descriptor_that_would_have_passed_is_not_counted(limiter: Limiter) -> None:
    assert await limiter.passes(BY_ADDRESS, hits=100)
    assert not await limiter.passes(BY_ADDRESS, BY_ADA)
    assert [each.rule for each in (await offenders(limiter)).offenders] == ["default-per-address"]


def test_the_counts_of_a_round_are_bounded_in_number_and_length() -> None:
    counts = RefusalCounts()
    blocking = rule(action=Action.BLOCK)
    refused = Decision((Answer((Outcome(blocking, None),)),), trying=True)
    for number in range(1500):
        counts.add([by_address(f"caller-{number}")], refused)
    counts.add([by_address("caller-7")], refused)
    taken = counts.taken()
    assert len(taken) == 1000
    assert max(taken.values()) == 2
    counts.add([by_address("x" * 1000)], refused)
    assert counts.taken() == {}
