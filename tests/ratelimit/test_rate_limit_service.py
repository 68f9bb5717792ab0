"""The service as Envoy calls it, over gRPC."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TypeAlias

import grpc
import pytest
from foreign import rls_pb2, rls_pb2_grpc
from google.rpc import error_details_pb2, status_pb2

from kit.data import redis as kit_redis
from services.ratelimit.model import Limit
from services.ratelimit.model.rules import OnNoMatch, OnRedisDown, RuleSet
from services.ratelimit.operations.buckets import Buckets
from services.ratelimit.servicer import RateLimits
from services.ratelimit.store.buckets import BucketStore, retrying_once
from tests.ratelimit.building import BY_ADDRESS, BucketsFor, asking, described, rule, rule_set

Response = rls_pb2.RateLimitResponse
Stub: TypeAlias = "rls_pb2_grpc.RateLimitServiceAsyncStub"
"""Only the type checker has this name."""


@asynccontextmanager
async def served(buckets: Buckets) -> AsyncIterator[Stub]:
    server = grpc.aio.server()
    rls_pb2_grpc.add_RateLimitServiceServicer_to_server(RateLimits(buckets), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield rls_pb2_grpc.RateLimitServiceStub(channel)
    await server.stop(None)


BY_USER = described("class=default", "user=a")
RULES = rule_set(
    rule("addresses", "class=default client_ip", limit=Limit(300, 60, burst=10)),
    rule("users", "class=default user", limit=Limit(5, 15 * 60, burst=2)),
)


@pytest.fixture
async def limiter(buckets_for: BucketsFor) -> AsyncIterator[Stub]:
    async with served(buckets_for(RULES)) as stub:
        yield stub


def added(response: rls_pb2.RateLimitResponse) -> dict[str, str]:
    return {header.key: header.value for header in response.response_headers_to_add}


async def test_an_admitted_call_is_told_its_limits(limiter: Stub) -> None:
    response = await limiter.ShouldRateLimit(asking(BY_ADDRESS, BY_USER))
    assert response.overall_code == Response.OK
    addresses, users = response.statuses
    assert (addresses.code, addresses.limit_remaining, addresses.current_limit.name) == (Response.OK, 9, "addresses")
    assert (addresses.current_limit.requests_per_unit, addresses.current_limit.unit) == (300, Response.RateLimit.MINUTE)
    assert (users.code, users.limit_remaining, users.current_limit.name) == (Response.OK, 1, "users")
    assert (users.current_limit.requests_per_unit, users.current_limit.unit) == (20, Response.RateLimit.HOUR)
    assert users.duration_until_reset.seconds == 180
    assert added(response) == {"RateLimit-Policy": '"users";q=2;w=360', "RateLimit": '"users";r=1;t=180'}


async def test_a_refused_call_is_told_when_to_come_back(limiter: Stub) -> None:
    for _ in range(2):
        await limiter.ShouldRateLimit(asking(BY_ADDRESS, BY_USER))
    response = await limiter.ShouldRateLimit(asking(BY_ADDRESS, BY_USER))
    assert response.overall_code == Response.OVER_LIMIT
    addresses, users = response.statuses
    assert (addresses.code, addresses.limit_remaining) == (Response.OK, 8)
    assert (users.code, users.limit_remaining, users.duration_until_reset.seconds) == (Response.OVER_LIMIT, 0, 180)
    assert added(response) == {
        "RateLimit-Policy": '"users";q=2;w=360',
        "RateLimit": '"users";r=0;t=180',
        "Retry-After": "180",
    }


async def test_times_are_rounded_up_to_whole_seconds(limiter: Stub) -> None:
    """Envoy truncates to seconds, and clients that return too early are refused again."""
    await limiter.ShouldRateLimit(asking(BY_ADDRESS, hits=10))
    response = await limiter.ShouldRateLimit(asking(BY_ADDRESS))
    assert response.statuses[0].duration_until_reset.seconds == 1
    assert added(response)["Retry-After"] == "1"


async def test_unset_hits_mean_one_and_a_descriptors_own_hits_win(limiter: Stub) -> None:
    looked = described("class=default", "client_ip=192.0.2.7/32", hits=0)
    remaining = []
    for request in (asking(looked), asking(BY_ADDRESS), asking(BY_ADDRESS, hits=3), asking(looked, hits=3)):
        response = await limiter.ShouldRateLimit(request)
        remaining.append(response.statuses[0].limit_remaining)
    assert remaining == [10, 9, 6, 6]


async def test_a_descriptor_without_a_rule_is_answered_without_a_limit(limiter: Stub) -> None:
    response = await limiter.ShouldRateLimit(asking(described("tenant=a")))
    (status,) = response.statuses
    assert (status.code, status.HasField("current_limit"), added(response)) == (Response.OK, False, {})


async def test_a_descriptor_without_a_rule_is_over_limit_where_the_file_denies(buckets_for: BucketsFor) -> None:
    async with served(buckets_for(rule_set(*RULES.rules, on_no_match=OnNoMatch.DENY))) as limiter:
        response = await limiter.ShouldRateLimit(asking(described("tenant=a"), BY_USER))
    assert response.overall_code == Response.OVER_LIMIT
    assert [status.code for status in response.statuses] == [Response.OVER_LIMIT, Response.OK]
    assert added(response) == {}


async def refused(limiter: Stub, request: rls_pb2.RateLimitRequest) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await limiter.ShouldRateLimit(request)
    (packed,) = (value for key, value in error.value.trailing_metadata() if key == "grpc-status-details-bin")
    info = error_details_pb2.ErrorInfo()
    assert isinstance(packed, bytes)
    status_pb2.Status.FromString(packed).details[0].Unpack(info)
    return error.value.code(), info.reason


async def test_a_call_without_descriptors_is_invalid(limiter: Stub) -> None:
    assert await refused(limiter, asking()) == (grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")


async def test_without_redis_closed_rules_are_unavailable_and_open_ones_pass() -> None:
    """An error instead of OVER_LIMIT, so that Envoy answers 503: the client has exceeded nothing."""
    rules: RuleSet = rule_set(
        rule("logins", "class=credentials client_ip", on_redis_down=OnRedisDown.CLOSED),
        rule("reading", "class=default client_ip", on_redis_down=OnRedisDown.OPEN),
    )
    nowhere = retrying_once(kit_redis.connect("redis://127.0.0.1:1/0"))
    async with nowhere, served(Buckets(BucketStore(nowhere), lambda: rules, redis_seconds=0.5)) as limiter:
        login = asking(described("class=credentials", "client_ip=192.0.2.7/32"))
        unreachable = (grpc.StatusCode.UNAVAILABLE, "RATE_LIMIT_BUCKETS_UNREACHABLE")
        assert await refused(limiter, login) == unreachable
        assert (await limiter.ShouldRateLimit(asking(BY_ADDRESS))).overall_code == Response.OK
