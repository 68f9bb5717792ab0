"""Administrators ask the limiter through the operators' service: why a call was refused, what buckets hold, that they be full."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from grpc import StatusCode
from grpc.aio import AioRpcError
from redis.asyncio import Redis
from storymesh.ops.v1 import rate_limit_pb2 as messages
from storymesh.ops.v1 import rate_limit_service_pb2 as pb
from storymesh.ops.v1.rate_limit_service_pb2_grpc import RateLimitServiceStub

from tests.identity import bearer
from tests.ratelimit.administering import ADA, ADDRESS, BY_ADA, BY_ADDRESS, Limiter, administered, subject
from tests.ratelimit.building import PRODUCTION, described
from tests.statuses import raises_status, violated_fields

RULES = re.sub("rate: .*", "rate: 60/h", PRODUCTION.read_text())
"""So slow that no token comes back while a test runs."""

REASON = "asked by support"


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    path = tmp_path / "rules.yaml"
    path.write_text(
        RULES.replace(
            "rules:\n",
            """rules:
  - name: office
    match: [{key: class, value: default}, {key: client_ip, cidr: 198.51.100.0/24}]
    unlimited: true
  - name: abusers
    match: [{key: class, value: default}, {key: client_ip, cidr: 203.0.113.0/24}]
    block: true
""",
            1,
        )
    )
    return path


def line_of(rules: Path, rule: str) -> int:
    return 1 + rules.read_text().splitlines().index(f"  - name: {rule}")


@pytest.fixture
async def limiter(limiter_redis: Redis, rules: Path) -> AsyncIterator[Limiter]:
    async with administered(limiter_redis, rules) as running:
        yield running


async def explained(limiter: Limiter, of: messages.RateLimitSubject) -> messages.ExplainedCall:
    answer = await limiter.admin.ExplainRateLimit(pb.ExplainRateLimitRequest(subject=of), metadata=limiter.auth)
    (call,) = answer.calls
    return call


async def reset(limiter: Limiter, of: messages.RateLimitSubject, rule: str = "") -> int:
    request = pb.ResetRateLimitRequest(subject=of, rule=rule, reason=REASON)
    return (await limiter.admin.ResetRateLimit(request, metadata=limiter.auth)).reset_count


async def emptied(limiter: Limiter) -> None:
    """Take all tokens of the address."""
    level = (await explained(limiter, subject(ADDRESS, rate_limit_class="default"))).descriptors[0].rules[0].bucket
    assert await limiter.passes(BY_ADDRESS, hits=level.remaining)
    assert not await limiter.passes(BY_ADDRESS)


async def test_a_refused_call_is_explained_by_its_rule_with_file_and_line_its_bucket_and_when_it_passes(
    limiter: Limiter, rules: Path
) -> None:
    await emptied(limiter)
    call = await explained(limiter, subject(ADDRESS, ADA, "default"))
    assert (call.admitted, call.reason, call.deciding_rule) == (False, "RATE_LIMITED", "default-per-address")
    by_address, by_user = call.descriptors
    (refusing,), (passing,) = by_address.rules, by_user.rules
    assert refusing.rule.place == f"{rules}:{line_of(rules, 'default-per-address')}"
    assert (refusing.applies, refusing.refuses, refusing.bucket.remaining) == (True, True, 0)
    assert (passing.applies, passing.refuses) == (True, False)
    assert passing.bucket.remaining == passing.bucket.limit
    assert not passing.bucket.HasField("full_time")
    assert call.retry_time.ToMicroseconds() == refusing.bucket.more_time.ToMicroseconds()
    assert call.retry_time.ToMicroseconds() < refusing.bucket.full_time.ToMicroseconds()


async def test_an_explanation_debits_nothing(limiter: Limiter) -> None:
    assert await limiter.passes(BY_ADDRESS, hits=3)
    first, second = [await explained(limiter, subject(ADDRESS, rate_limit_class="default")) for _ in range(2)]
    full_times = [each.descriptors[0].rules[0].bucket.full_time for each in (first, second)]
    assert full_times[0] == full_times[1] != Timestamp()


@pytest.mark.parametrize(
    ("address", "admitted", "reason", "deciding", "others"),
    [
        ("198.51.100.7", True, "", "office", {"default-per-address": "office is more specific"}),
        (
            "203.0.113.7",
            False,
            "RATE_LIMIT_UNSATISFIABLE",
            "abusers",
            {"default-per-address": "abusers is more specific"},
        ),
    ],
)
async def test_an_explanation_says_why_a_rule_that_matches_does_not_apply(
    limiter: Limiter, address: str, admitted: bool, reason: str, deciding: str, others: dict[str, str]
) -> None:
    call = await explained(limiter, subject(address, rate_limit_class="default"))
    assert (call.admitted, call.reason, call.deciding_rule) == (admitted, reason, deciding)
    assert not call.HasField("retry_time")
    assert {each.rule.name: each.why_not for each in call.descriptors[0].rules if not each.applies} == others


async def test_a_descriptor_that_no_rule_matches_is_explained(limiter: Limiter) -> None:
    of = messages.RateLimitSubject(
        descriptors=[messages.RateLimitDescriptor(entries=[messages.RateLimitEntry(key="unknown", value="x")])]
    )
    call = await explained(limiter, of)
    assert (call.admitted, call.reason, call.deciding_rule) == (False, "RATE_LIMIT_UNSATISFIABLE", "")
    assert call.descriptors[0].denied_unmatched


async def test_an_ipv6_client_is_explained_by_its_network(limiter: Limiter) -> None:
    assert await limiter.passes(described("class=default", "client_ip=2001:db8:1:2::/64"), hits=3)
    call = await explained(limiter, subject("2001:db8:1:2::99", rate_limit_class="default"))
    bucket = call.descriptors[0].rules[0].bucket
    assert bucket.limit - bucket.remaining == 3


async def test_inspecting_shows_the_buckets_of_every_class_and_resetting_fills_them(limiter: Limiter) -> None:
    await emptied(limiter)
    assert await limiter.passes(described("class=stream", f"client_ip={ADDRESS}/32"))
    request = pb.InspectRateLimitRequest(subject=subject(ADDRESS))
    buckets = (await limiter.admin.InspectRateLimit(request, metadata=limiter.auth)).buckets
    assert {each.rule for each in buckets if each.remaining < each.limit} == {
        "default-per-address",
        "stream-per-address",
    }
    assert await reset(limiter, subject(ADDRESS), "stream-per-address") == 1
    assert await reset(limiter, subject(ADDRESS)) == 1
    assert await reset(limiter, subject(ADDRESS)) == 0
    buckets = (await limiter.admin.InspectRateLimit(request, metadata=limiter.auth)).buckets
    assert all(each.remaining == each.limit for each in buckets)
    assert await limiter.passes(BY_ADDRESS)


async def test_a_reset_leaves_the_buckets_of_others(limiter: Limiter) -> None:
    assert await limiter.passes(BY_ADA, hits=2)
    assert await limiter.passes(described("class=default", "client_ip=192.0.2.70/32"), hits=2)
    assert await reset(limiter, subject(ADDRESS)) == 0
    for of in (subject(user=ADA, rate_limit_class="default"), subject("192.0.2.70", rate_limit_class="default")):
        bucket = (await explained(limiter, of)).descriptors[0].rules[0].bucket
        assert bucket.limit - bucket.remaining == 2


async def test_who_reset_what_and_why_is_listed_in_pages_newest_first(limiter: Limiter) -> None:
    for last in (7, 8, 9):
        await reset(limiter, subject(f"192.0.2.{last}"))
    first = await limiter.admin.ListRateLimitChanges(pb.ListRateLimitChangesRequest(page_size=2), metadata=limiter.auth)
    assert [each.subject for each in first.changes] == ["client_ip=192.0.2.9", "client_ip=192.0.2.8"]
    told = {(each.act, each.actor, each.reason) for each in first.changes}
    assert told == {(messages.RATE_LIMIT_ACT_RESET, str(limiter.administrator), REASON)}
    request = pb.ListRateLimitChangesRequest(page_size=2, page_token=first.next_page_token)
    second = await limiter.admin.ListRateLimitChanges(request, metadata=limiter.auth)
    assert [each.subject for each in second.changes] == ["client_ip=192.0.2.7"]
    assert second.next_page_token == ""


async def test_the_rules_in_force_are_listed_with_their_places_and_what_is_wrong_with_the_file(
    limiter: Limiter, rules: Path
) -> None:
    listed: list[messages.RateLimitRule] = []
    token = ""
    while True:
        request = pb.ListRateLimitRulesRequest(page_size=4, page_token=token)
        page = await limiter.admin.ListRateLimitRules(request, metadata=limiter.auth)
        listed += page.rules
        if not (token := page.next_page_token):
            break
    in_force = limiter.operations.rules.current()
    assert [each.name for each in listed] == [each.name for each in (*in_force.rules, *in_force.leases)]
    assert all(str(rules) in each.place for each in listed)
    assert {each.limit for each in listed[:2]} == {"unlimited", "blocked"}
    assert (page.source, page.fault, page.HasField("fault_time")) == (str(rules), "", False)
    assert len(page.digest) == 64

    await asyncio.to_thread(rules.write_text, "rules: none")
    await limiter.operations.rules._look()
    broken = await limiter.admin.ListRateLimitRules(pb.ListRateLimitRulesRequest(), metadata=limiter.auth)
    assert (broken.digest, broken.load_time) == (page.digest, page.load_time)
    assert f"{rules}:1" in broken.fault
    assert broken.HasField("fault_time")


@pytest.mark.parametrize(
    ("of", "field"),
    [
        (subject(), "subject"),
        (subject("example.org"), "subject.client_address"),
        (subject("192.0.2.0/24"), "subject.client_address"),
        (subject("2001:db8::/32"), "subject.client_address"),
        (subject(ADDRESS, rate_limit_class="none"), "subject.rate_limit_class"),
        (messages.RateLimitSubject(client_address=ADDRESS, domain="other"), "subject.domain"),
        (
            messages.RateLimitSubject(
                user_id=ADA,
                descriptors=[messages.RateLimitDescriptor(entries=[messages.RateLimitEntry(key="user", value=ADA)])],
            ),
            "subject.descriptors",
        ),
        (subject(user="ada"), "subject.user_id"),
    ],
)
async def test_a_subject_that_names_nobody_is_refused_by_its_field(
    limiter: Limiter, of: messages.RateLimitSubject, field: str
) -> None:
    with pytest.raises(AioRpcError) as refused:
        await explained(limiter, of)
    assert (refused.value.code(), violated_fields(refused.value)) == (StatusCode.INVALID_ARGUMENT, [field])


async def test_a_page_token_of_another_list_is_refused(limiter: Limiter) -> None:
    page = await limiter.admin.ListRateLimitRules(pb.ListRateLimitRulesRequest(page_size=1), metadata=limiter.auth)
    for token in (page.next_page_token, "x", "Y2hhbmdlcyBhLWI"):
        with raises_status(StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"):
            request = pb.ListRateLimitChangesRequest(page_token=token)
            await limiter.admin.ListRateLimitChanges(request, metadata=limiter.auth)


async def test_a_rule_that_does_not_match_cannot_be_reset(limiter: Limiter) -> None:
    with pytest.raises(AioRpcError) as refused:
        await reset(limiter, subject(ADDRESS), "default-per-user")
    assert violated_fields(refused.value) == ["rule"]


async def test_nobody_but_administrators_is_answered_by_either_door(limiter: Limiter) -> None:
    user = bearer(limiter.issuer.token(uuid4()))
    async with grpc.aio.insecure_channel(limiter.own_target) as channel:
        for door in (limiter.admin, RateLimitServiceStub(channel)):
            for metadata, code, reason in (
                (user, StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"),
                ((), StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"),
            ):
                request = pb.ResetRateLimitRequest(subject=subject(ADDRESS), reason=REASON)
                with raises_status(code, reason):
                    await door.ResetRateLimit(request, metadata=metadata)
