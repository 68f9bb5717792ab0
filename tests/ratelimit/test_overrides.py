"""Grants and bans: rules for one caller that administrators make, that end by themselves, and that may be lifted."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from foreign import rls_pb2
from google.protobuf.json_format import MessageToDict
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode
from grpc.aio import AioRpcError
from redis.asyncio import Redis
from storymesh.ops.v1 import rate_limit_pb2 as messages
from storymesh.ops.v1 import rate_limit_service_pb2 as pb

from tests.ratelimit.administering import ADA, ADDRESS, BY_ADA, BY_ADDRESS, Limiter, administered, subject
from tests.ratelimit.building import described
from tests.ratelimit.test_administration import RULES, explained
from tests.statuses import raises_status, violated_fields
from tests.waiting import until

OK = rls_pb2.RateLimitResponse.OK
FAR = timedelta(hours=1)
NETWORK = subject("203.0.113.0/24")


@pytest.fixture
async def limiter(limiter_redis: Redis, tmp_path: Path) -> AsyncIterator[Limiter]:
    rules = tmp_path / "rules.yaml"
    rules.write_text(RULES)
    async with administered(limiter_redis, rules) as running:
        yield running


def after(wait: timedelta) -> Timestamp:
    moment = Timestamp()
    moment.FromDatetime(datetime.now(UTC) + wait)
    return moment


async def ban(limiter: Limiter, of: messages.RateLimitSubject, wait: timedelta = FAR) -> messages.RateLimitOverride:
    request = pb.BanCallerRequest(subject=of, expire_time=after(wait), reason="floods us")
    return (await limiter.admin.BanCaller(request, metadata=limiter.auth)).override


async def grant(limiter: Limiter, of: messages.RateLimitSubject, **more: Any) -> messages.RateLimitOverride:
    more.setdefault("expire_time", after(FAR))
    request = pb.GrantRateLimitRequest(subject=of, reason="imports an archive", **more)
    return (await limiter.admin.GrantRateLimit(request, metadata=limiter.auth)).override


async def lift(limiter: Limiter, override_id: str) -> None:
    request = pb.LiftRateLimitOverrideRequest(override_id=override_id, reason="over")
    await limiter.admin.LiftRateLimitOverride(request, metadata=limiter.auth)


async def listed(limiter: Limiter, size: int = 0, token: str = "") -> pb.ListRateLimitOverridesResponse:
    request = pb.ListRateLimitOverridesRequest(page_size=size, page_token=token)
    return await limiter.admin.ListRateLimitOverrides(request, metadata=limiter.auth)


def headers(response: rls_pb2.RateLimitResponse) -> dict[str, str]:
    return {header.key: header.value for header in response.response_headers_to_add}


@pytest.mark.parametrize(
    ("of", "banned", "others"),
    [
        (subject(ADDRESS), [BY_ADDRESS, described("class=stream", f"client_ip={ADDRESS}/32")], [BY_ADA]),
        (
            subject(ADDRESS, rate_limit_class="stream"),
            [described("class=stream", f"client_ip={ADDRESS}/32")],
            [BY_ADDRESS],
        ),
        (subject(user=ADA.upper()), [BY_ADA], [BY_ADDRESS, described("class=default", "user=b")]),
        (NETWORK, [described("class=default", "client_ip=203.0.113.9/32")], [BY_ADDRESS]),
        (
            subject("2001:db8:1:2::9"),
            [described("class=default", "client_ip=2001:db8:1:2::/64")],
            [described("class=default", "client_ip=2001:db8:1:3::/64")],
        ),
    ],
)
async def test_a_banned_caller_is_refused_in_every_class_that_is_meant_and_others_are_not(
    limiter: Limiter,
    of: messages.RateLimitSubject,
    banned: list[rls_pb2.RateLimitDescriptor],
    others: list[rls_pb2.RateLimitDescriptor],
) -> None:
    await ban(limiter, of)
    assert [await limiter.passes(each) for each in banned] == [False] * len(banned)
    assert [await limiter.passes(each) for each in others] == [True] * len(others)


async def test_a_ban_says_its_reason_and_when_it_ends_and_costs_no_token(limiter: Limiter) -> None:
    override = await ban(limiter, subject(ADDRESS))
    refused = await limiter.ask(BY_ADA, BY_ADDRESS)
    assert MessageToDict(refused.dynamic_metadata) == {
        "verdict": "refused",
        "rule": f"ban-{override.id}",
        "reason": "RATE_LIMIT_BANNED",
    }
    assert 3590 <= int(headers(refused)["Retry-After"]) <= 3600
    bucket = (await explained(limiter, subject(user=ADA, rate_limit_class="default"))).descriptors[0].rules[0].bucket
    assert bucket.remaining == bucket.limit


async def test_an_explanation_names_the_ban_and_its_end(limiter: Limiter) -> None:
    override = await ban(limiter, subject(ADDRESS))
    call = await explained(limiter, subject(ADDRESS, rate_limit_class="default"))
    assert (call.admitted, call.reason, call.deciding_rule) == (False, "RATE_LIMIT_BANNED", f"ban-{override.id}")
    assert call.retry_time == override.expire_time
    assert [each.rule.override_id for each in call.descriptors[0].rules if each.refuses] == [override.id]


async def test_a_ban_ends_by_itself_when_it_said(limiter: Limiter) -> None:
    await ban(limiter, subject(ADDRESS), timedelta(seconds=1.5))
    refused = await limiter.ask(BY_ADDRESS)
    assert (refused.overall_code, headers(refused)["Retry-After"]) in {(1, "1"), (2, "1"), (2, "2")}
    await until(lambda: limiter.passes(BY_ADDRESS), 10)
    assert not (await listed(limiter)).overrides


async def test_a_grant_counts_in_a_bucket_of_its_own_in_place_of_the_rule(limiter: Limiter) -> None:
    assert await limiter.passes(BY_ADDRESS, hits=100)
    assert not await limiter.passes(BY_ADDRESS)
    override = await grant(limiter, subject(ADDRESS), rate="5000/h", burst=300)
    answer = await limiter.ask(BY_ADDRESS, hits=299)
    assert (answer.overall_code, answer.statuses[0].limit_remaining) == (OK, 1)
    assert headers(answer)["RateLimit-Policy"] == f'"grant-{override.id}";q=300;w=216'
    assert not await limiter.passes(BY_ADDRESS, hits=2)
    call = await explained(limiter, subject(ADDRESS, rate_limit_class="default"))
    assert {each.rule.name: each.why_not for each in call.descriptors[0].rules} == {
        "default-per-address": f"grant-{override.id} replaces it",
        f"grant-{override.id}": "",
    }


async def test_a_grant_for_an_address_leaves_the_limit_of_the_user(limiter: Limiter) -> None:
    await grant(limiter, subject(ADDRESS), unlimited=True)
    assert await limiter.passes(BY_ADDRESS, hits=100_000)
    assert not await limiter.passes(BY_ADDRESS, BY_ADA, hits=100_000)


async def test_a_ban_comes_before_a_grant_and_lifting_it_leaves_the_grant(limiter: Limiter) -> None:
    banned = await ban(limiter, subject(ADDRESS))
    granted = await grant(limiter, subject(ADDRESS), unlimited=True)
    assert not await limiter.passes(BY_ADDRESS)
    await lift(limiter, banned.id)
    assert await limiter.passes(BY_ADDRESS, hits=100_000)
    await lift(limiter, granted.id)
    assert not await limiter.passes(BY_ADDRESS, hits=100_000)


async def test_the_newest_of_several_grants_counts_alone(limiter: Limiter) -> None:
    await grant(limiter, subject(ADDRESS), rate="60/h", burst=5)
    await grant(limiter, subject(ADDRESS, rate_limit_class="default"), rate="60/h", burst=7)
    assert await limiter.passes(BY_ADDRESS, hits=7)
    assert not await limiter.passes(BY_ADDRESS)


async def test_another_grant_for_the_same_caller_replaces_the_first(limiter: Limiter) -> None:
    first = await grant(limiter, subject(ADDRESS), rate="60/h", burst=5)
    second = await grant(limiter, subject(ADDRESS), unlimited=True)
    assert (second.id, second.limit) == (first.id, "unlimited")
    assert [each.limit for each in (await listed(limiter)).overrides] == ["unlimited"]


async def test_overrides_are_listed_in_pages_newest_first_with_who_made_them_and_why(limiter: Limiter) -> None:
    made = [await ban(limiter, subject(f"192.0.2.{last}")) for last in (1, 2, 3)]
    first = await listed(limiter, 2)
    second = await listed(limiter, 2, first.next_page_token)
    assert [*first.overrides, *second.overrides] == made[::-1]
    assert second.next_page_token == ""
    newest = first.overrides[0]
    assert (newest.match, newest.limit, newest.actor, newest.reason) == (
        "class=* client_ip=192.0.2.3/32",
        "blocked",
        str(limiter.administrator),
        "floods us",
    )


async def test_every_change_is_recorded(limiter: Limiter) -> None:
    await grant(limiter, subject(user=ADA), unlimited=True)
    banned = await ban(limiter, subject(ADDRESS))
    await lift(limiter, banned.id)
    page = await limiter.admin.ListRateLimitChanges(pb.ListRateLimitChangesRequest(), metadata=limiter.auth)
    assert [(each.act, each.reason) for each in page.changes] == [
        (messages.RATE_LIMIT_ACT_LIFTED, "over"),
        (messages.RATE_LIMIT_ACT_BANNED, "floods us"),
        (messages.RATE_LIMIT_ACT_GRANTED, "imports an archive"),
    ]
    assert f"client_ip={ADDRESS}/32" in page.changes[1].subject


async def test_another_replica_heeds_a_ban_and_its_lifting(
    limiter_redis: Redis, limiter: Limiter, tmp_path: Path
) -> None:
    async with administered(limiter_redis, tmp_path / "rules.yaml") as other:
        banned = await ban(limiter, subject(ADDRESS))

        async def refused() -> bool:
            return not await other.passes(BY_ADDRESS)

        await until(refused, 20)
        await lift(limiter, banned.id)
        await until(lambda: other.passes(BY_ADDRESS), 20)


async def test_a_reload_of_the_rules_keeps_bans(limiter: Limiter) -> None:
    await ban(limiter, subject(ADDRESS))
    await limiter.operations.rules._reload()
    assert not await limiter.passes(BY_ADDRESS)


async def test_metrics_count_all_bans_as_one_rule(limiter: Limiter) -> None:
    for last in (1, 2, 3):
        await ban(limiter, subject(f"192.0.2.{last}"))
        assert not await limiter.passes(described("class=default", f"client_ip=192.0.2.{last}/32"))
    counts = limiter.operations.buckets.counts
    told = [each.attributes or {} for each in counts._observe(None)]  # type: ignore[arg-type]  # options are not read
    assert sum(each["rule"] == "ban" for each in told) == 3
    assert not any(str(each["rule"]).startswith("ban-") for each in told)


@pytest.mark.parametrize(
    ("of", "field"),
    [
        (subject("0.0.0.0/0"), "subject.client_address"),
        (subject("2001:db8::/31"), "subject.client_address"),
        (subject(ADDRESS, ADA), "subject.user_id"),
        (subject(), "subject"),
        (
            messages.RateLimitSubject(
                descriptors=[messages.RateLimitDescriptor(entries=[messages.RateLimitEntry(key="class")])]
            ),
            "subject.descriptors[0]",
        ),
        (
            messages.RateLimitSubject(
                descriptors=[messages.RateLimitDescriptor(entries=[messages.RateLimitEntry(key="user", value=ADA)])]
            ),
            "subject",
        ),
    ],
)
async def test_a_ban_that_means_everybody_several_or_nobody_is_refused(
    limiter: Limiter, of: messages.RateLimitSubject, field: str
) -> None:
    with pytest.raises(AioRpcError) as refused:
        await ban(limiter, of)
    assert violated_fields(refused.value) == [field]


@pytest.mark.parametrize("wait", [timedelta(seconds=-1), timedelta(days=31)])
async def test_an_end_in_the_past_or_beyond_a_month_is_refused(limiter: Limiter, wait: timedelta) -> None:
    with pytest.raises(AioRpcError) as refused:
        await ban(limiter, subject(ADDRESS), wait)
    assert violated_fields(refused.value) == ["expire_time"]


@pytest.mark.parametrize(
    ("limit", "field"),
    [
        ({}, "rate"),
        ({"rate": "5/s"}, "burst"),
        ({"burst": 5}, "rate"),
        ({"rate": "5/fortnight", "burst": 5}, "rate"),
        ({"rate": "0", "burst": 5}, "rate"),
        ({"rate": "1/d", "burst": 1000}, "burst"),
        ({"rate": "5/s", "burst": 5, "unlimited": True}, "unlimited"),
    ],
)
async def test_a_grant_without_a_limit_that_can_be_counted_is_refused(
    limiter: Limiter, limit: dict[str, Any], field: str
) -> None:
    with pytest.raises(AioRpcError) as refused:
        await grant(limiter, subject(ADDRESS), **limit)
    assert violated_fields(refused.value) == [field]


async def test_administrators_cannot_ban_themselves(limiter: Limiter) -> None:
    with raises_status(StatusCode.FAILED_PRECONDITION, "RATE_LIMIT_BAN_OF_ONESELF"):
        await ban(limiter, subject(user=str(limiter.administrator)))


async def test_what_has_ended_or_never_was_cannot_be_lifted(limiter: Limiter) -> None:
    banned = await ban(limiter, subject(ADDRESS))
    await lift(limiter, banned.id)
    for override_id in (banned.id, str(uuid4())):
        with raises_status(StatusCode.NOT_FOUND, "RATE_LIMIT_OVERRIDE_NOT_FOUND"):
            await lift(limiter, override_id)
