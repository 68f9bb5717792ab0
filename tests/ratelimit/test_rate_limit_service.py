"""The service as Envoy calls it, over gRPC, on every transport that kit's server has."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, closing
from typing import Protocol, TypeAlias

import grpc
import pytest
from foreign import rls_pb2, rls_pb2_grpc
from google.rpc import error_details_pb2, status_pb2

from kit.data import redis as kit_redis
from kit.data.blocking_redis import BlockingRedis
from kit.rpc.server import Server
from kit.runtime.settings import ServiceSettings
from services.ratelimit import servicer
from services.ratelimit.model import Limit
from services.ratelimit.model.rules import OnNoMatch, OnRedisDown, RuleSet
from services.ratelimit.operations.buckets import Buckets
from services.ratelimit.servicer import MOST_DESCRIPTORS, MOST_ENTRIES, MOST_REQUEST_BYTES, RateLimits
from services.ratelimit.store import BucketStore
from services.ratelimit.store.buckets import MOST_CALLS, RedisBucketStore
from tests.kit.transports import TRANSPORTS
from tests.ratelimit.building import BY_ADDRESS, BucketsFor, asking, described, rule, rule_set

Response = rls_pb2.RateLimitResponse
Stub: TypeAlias = "rls_pb2_grpc.RateLimitServiceAsyncStub"
"""Only the type checker has this name."""


class Served(Protocol):
    """Serves the checks of these buckets."""

    def __call__(self, buckets: Buckets) -> AbstractAsyncContextManager[grpc.aio.Channel]: ...


@pytest.fixture(params=TRANSPORTS)
def served(request: pytest.FixtureRequest) -> Served:
    @asynccontextmanager
    async def serve(buckets: Buckets) -> AsyncIterator[grpc.aio.Channel]:
        settings = ServiceSettings(
            listen="127.0.0.1:0", mesh_key="A" * 43, metrics_listen="", drain_seconds=0.5, grpc_server=request.param
        )
        server = Server(settings, required={})
        server.add_batched(servicer.SERVICE, servicer.METHOD, RateLimits(buckets).answer, most=MOST_CALLS)
        running = asyncio.create_task(server.run())
        try:
            async with grpc.aio.insecure_channel(await server.address) as channel:
                yield channel
        finally:
            server.stopping.set()
            await running

    return serve


BY_USER = described("class=default", "user=a")
RULES = rule_set(
    rule("addresses", "class=default client_ip", limit=Limit(300, 60, burst=10)),
    rule("users", "class=default user", limit=Limit(5, 15 * 60, burst=2)),
)


@pytest.fixture
async def limiter(served: Served, buckets_for: BucketsFor) -> AsyncIterator[Stub]:
    async with served(buckets_for(RULES)) as channel:
        yield rls_pb2_grpc.RateLimitServiceStub(channel)


def added(response: rls_pb2.RateLimitResponse) -> dict[str, str]:
    return {header.key: header.value for header in response.response_headers_to_add}


async def test_an_admitted_call_is_told_its_limits(limiter: Stub) -> None:
    response = await limiter.ShouldRateLimit(asking(BY_ADDRESS, BY_USER))
    assert response.overall_code == Response.OK
    addresses, users = response.statuses
    assert (addresses.code, addresses.limit_remaining, addresses.current_limit.name) == (Response.OK, 9, "addresses")
    assert (addresses.current_limit.requests_per_unit, addresses.current_limit.unit) == (10, Response.RateLimit.UNKNOWN)
    assert (users.code, users.limit_remaining, users.current_limit.name) == (Response.OK, 1, "users")
    assert (users.current_limit.requests_per_unit, users.current_limit.unit) == (2, Response.RateLimit.UNKNOWN)
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


async def test_a_descriptor_without_a_rule_is_over_limit_where_the_file_denies(
    served: Served, buckets_for: BucketsFor
) -> None:
    async with served(buckets_for(rule_set(*RULES.rules, on_no_match=OnNoMatch.DENY))) as channel:
        response = await rls_pb2_grpc.RateLimitServiceStub(channel).ShouldRateLimit(
            asking(described("tenant=a"), BY_USER)
        )
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


async def test_without_redis_closed_rules_are_unavailable_and_open_ones_pass(served: Served) -> None:
    """An error instead of OVER_LIMIT, so that Envoy answers 503: the client has exceeded nothing."""
    rules: RuleSet = rule_set(
        rule("logins", "class=credentials client_ip", on_redis_down=OnRedisDown.CLOSED),
        rule("reading", "class=default client_ip", on_redis_down=OnRedisDown.OPEN),
    )
    async with kit_redis.connect("redis://127.0.0.1:1/0") as nowhere:
        with closing(BlockingRedis(nowhere)) as connection:
            buckets = Buckets(RedisBucketStore(connection), lambda: rules, redis_seconds=0.5)
            async with served(buckets) as channel:
                limiter = rls_pb2_grpc.RateLimitServiceStub(channel)
                login = asking(described("class=credentials", "client_ip=192.0.2.7/32"))
                unreachable = (grpc.StatusCode.UNAVAILABLE, "RATE_LIMIT_BUCKETS_UNREACHABLE")
                answers = await asyncio.gather(
                    *(refused(limiter, login) for _ in range(5)),
                    *(limiter.ShouldRateLimit(asking(BY_ADDRESS)) for _ in range(5)),
                )
    assert answers[:5] == [unreachable] * 5
    assert [answer.overall_code for answer in answers[5:] if isinstance(answer, Response)] == [Response.OK] * 5


async def test_hundreds_of_calls_at_once_get_exactly_the_burst(limiter: Stub) -> None:
    answers = await asyncio.gather(*(limiter.ShouldRateLimit(asking(BY_ADDRESS)) for _ in range(300)))
    passed = [answer for answer in answers if answer.overall_code == Response.OK]
    # The bucket gets five tokens a second meanwhile.
    assert 10 <= len(passed) < 60


HOSTILE = {
    "900 KB": asking(described("class=default", f"client_ip={'x' * 900_000}")),
    "longer than a request": asking(described("class=default", f"client_ip={'x' * MOST_REQUEST_BYTES}")),
    "1,000 descriptors": asking(*[described("a=b")] * 1000),
    "one descriptor too many": asking(*[described("a=b")] * (MOST_DESCRIPTORS + 1)),
    "1,000 entries": asking(described(*["a=b"] * 1000)),
    "one entry too many": asking(described(*["a=b"] * (MOST_ENTRIES + 1))),
    "nothing": rls_pb2.RateLimitRequest(),
}


@pytest.mark.parametrize("hostile", HOSTILE.values(), ids=HOSTILE)
async def test_a_hostile_call_is_refused_alone(limiter: Stub, hostile: rls_pb2.RateLimitRequest) -> None:
    answers = await asyncio.gather(
        *(refused(limiter, hostile) for _ in range(20)),
        *(limiter.ShouldRateLimit(asking(BY_ADDRESS)) for _ in range(10)),
    )
    assert set(answers[:20]) == {(grpc.StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")}
    assert {answer.overall_code for answer in answers[20:] if isinstance(answer, Response)} == {Response.OK}


async def test_bytes_that_are_no_request_are_refused_alone(served: Served, buckets_for: BucketsFor) -> None:
    async with served(buckets_for(RULES)) as channel:
        raw: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            f"/{servicer.SERVICE}/{servicer.METHOD}"
        )
        good = asking(BY_ADDRESS).SerializeToString()
        answers = await asyncio.gather(
            *(raw(data) for data in [b"\xff" * 40, good, good[:-1], good]), return_exceptions=True
        )
    assert [isinstance(answer, grpc.aio.AioRpcError) and answer.code() for answer in answers] == [
        grpc.StatusCode.INVALID_ARGUMENT,
        False,
        grpc.StatusCode.INVALID_ARGUMENT,
        False,
    ]


async def test_the_largest_allowed_call_is_answered(limiter: Stub) -> None:
    widest = described(*(f"key-{number}=v" for number in range(MOST_ENTRIES)))
    response = await limiter.ShouldRateLimit(
        asking(BY_ADDRESS, *[widest] * 20, *[described("a=b")] * (MOST_DESCRIPTORS - 21))
    )
    assert len(response.statuses) == MOST_DESCRIPTORS


async def test_equal_requests_follow_the_rules_of_the_moment(served: Served, store: BucketStore) -> None:
    in_force = [rule_set(rule("before", "class=default client_ip"))]
    async with served(Buckets(store, lambda: in_force[-1], redis_seconds=10)) as channel:
        limiter = rls_pb2_grpc.RateLimitServiceStub(channel)
        names = []
        for _ in range(2):
            response = await limiter.ShouldRateLimit(asking(BY_ADDRESS))
            names.append((response.statuses[0].current_limit.name, added(response)["RateLimit-Policy"]))
            in_force.append(rule_set(rule("before", "class=default client_ip", limit=Limit(1, 1, burst=9))))
    assert names == [("before", '"before";q=3;w=3'), ("before", '"before";q=9;w=9')]
