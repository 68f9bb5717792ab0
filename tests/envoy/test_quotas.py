"""Classes of which the edge decides by itself: real Envoys, with tokens from the real limiter and Redis."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from time import monotonic
from typing import Any

import grpc
import httpx2
import pytest
from edge.bootstrap import bootstrap
from edge.settings import SettingsError
from foreign.rlqs_pb2_grpc import add_RateLimitQuotaServiceServicer_to_server
from redis.asyncio import Redis
from storymesh.auth.v1 import account_service_pb2 as account
from storymesh.auth.v1 import account_service_pb2_grpc as account_grpc

from kit.data import redis as kit_redis
from kit.data.blocking_redis import BlockingRedis
from kit.rpc.server import Server
from kit.runtime.settings import ServiceSettings
from local.harness import Servers
from mesh.contract import read
from services.ratelimit import servicer
from services.ratelimit.model import Limit
from services.ratelimit.model.rules import RuleSet
from services.ratelimit.operations.assignments import Assignments
from services.ratelimit.operations.buckets import Buckets
from services.ratelimit.servicer import RateLimits
from services.ratelimit.servicer.assignments import AssignmentStreams
from services.ratelimit.store.buckets import RedisBucketStore
from services.ratelimit.store.withdrawals import RedisWithdrawals
from tests.envoy.conftest import Edge, Mesh, envoy, free_port, settings_for, until
from tests.envoy.statuses import grpc_reason, reason
from tests.ratelimit.building import rule, rule_set

PATIENT_SECONDS = 10.0
PATH = "/v1/account"


@pytest.fixture
async def limiter_redis(servers: Servers, redis: Redis) -> AsyncIterator[Redis]:
    async with kit_redis.connect(servers.service_redis_url("ratelimit")) as client:
        yield client


@asynccontextmanager
async def limiter(redis: Redis, rules: RuleSet, *, port: int = 0, transport: str = "native") -> AsyncIterator[str]:
    """The limiter, as its process builds it; yields its address."""
    settings = ServiceSettings(
        listen=f"127.0.0.1:{port}", mesh_key="A" * 43, metrics_listen="", drain_seconds=0.5, grpc_server=transport
    )
    server = Server(settings, required={})
    with closing(BlockingRedis(redis)) as one, closing(BlockingRedis(redis)) as other:
        buckets = Buckets(RedisBucketStore(one), lambda: rules, redis_seconds=PATIENT_SECONDS)
        assignments = Assignments(RedisWithdrawals(other), lambda: rules, redis_seconds=PATIENT_SECONDS)
        server.add_batched(servicer.SERVICE, servicer.METHOD, RateLimits(buckets).answer)
        server.add_foreign(
            add_RateLimitQuotaServiceServicer_to_server, AssignmentStreams(assignments, server.stopping), traced=False
        )
        server.background(assignments.follow)
        running = asyncio.create_task(server.run())
        try:
            yield await server.address
        finally:
            server.stopping.set()
            await running


@pytest.fixture
async def edges(mesh: Mesh, tmp_path: Path) -> AsyncIterator[Callable[..., Any]]:
    """Starts Envoys that decide by themselves about the class `default`, with the limiter at an address."""
    async with AsyncExitStack() as stack:

        async def start(address: str, *overrides: str) -> Edge:
            scratch = tmp_path / f"edge-{free_port()}"
            scratch.mkdir()
            settings = settings_for(
                mesh.endpoints | {"ratelimit": address}, "rate_limit.quota_classes=[default]", *overrides
            )
            edge = await stack.enter_async_context(envoy(settings, scratch))
            async with httpx2.AsyncClient() as client:
                # Until auth's keys are known and the health of all is; this path is of another class.
                await until(lambda: _ready(client, edge, mesh))
            return edge

        yield start


async def _ready(client: httpx2.AsyncClient, edge: Edge, mesh: Mesh) -> bool:
    answer = await client.get(f"{edge.url}/v1/users/nobody", headers={"authorization": f"Bearer {mesh.key.sign()}"})
    return answer.status_code < 500


async def _calls(edge: Edge, mesh: Mesh, until_: Callable[[], bool]) -> Counter[int]:
    """The statuses of calls one after the other."""
    seen: Counter[int] = Counter()
    async with httpx2.AsyncClient(headers={"authorization": f"Bearer {mesh.key.sign()}"}) as client:
        while not until_():
            seen[(await client.get(f"{edge.url}{PATH}")).status_code] += 1
    return seen


async def test_several_envoys_share_one_limit_and_go_on_without_the_limiter(
    limiter_redis: Redis, edges: Callable[..., Any], mesh: Mesh, channels: Callable[[Edge], grpc.aio.Channel]
) -> None:
    limit = Limit(requests=5, period_seconds=1, burst=20)
    rules = rule_set(rule("default-per-address", limit=limit))
    port = free_port()
    async with limiter(limiter_redis, rules, port=port) as address:
        both = [await edges(address), await edges(address)]
        # Until then the first calls of each pass.
        await asyncio.gather(*(_until_the_last_ten_are(429, edge, mesh) for edge in both))
        began = monotonic()
        # Each envoy reports every 5 s, so that by then both were given parts by what they reported.
        seen = await asyncio.gather(*(_calls(edge, mesh, lambda: monotonic() - began > 12) for edge in both))
        admitted = [each[200] for each in seen]
        assert sum(admitted) <= limit.burst + 5 * (monotonic() - began)
        # Far less than what the limit allows, as others may need the processors; and no Envoy is without.
        assert sum(admitted) > limit.burst / 2
        assert min(admitted) > sum(admitted) / 6
        await _refused_as_by_a_check(both[0], mesh, channels)
    # What was assigned is spent, and 15 s after the last answer calls pass.
    await asyncio.gather(*(_until_the_last_ten_are(200, edge, mesh) for edge in both))
    async with limiter(limiter_redis, rules, port=port):
        await asyncio.gather(*(_until_the_last_ten_are(429, edge, mesh) for edge in both))


async def _refused_as_by_a_check(edge: Edge, mesh: Mesh, channels: Callable[[Edge], grpc.aio.Channel]) -> None:
    headers = {"authorization": f"Bearer {mesh.key.sign()}"}
    async with httpx2.AsyncClient(headers=headers) as client:

        async def refused(path: str = PATH) -> httpx2.Response | None:
            answer = await client.get(f"{edge.url}{path}")
            return answer if answer.status_code == 429 else None

        answer = await until(refused)
        assert reason(answer) == "RATE_LIMITED"
        assert answer.headers["retry-after"] == "5"
        assert "ratelimit" not in answer.headers
    stub = account_grpc.AccountServiceStub(channels(edge))

    async def refused_call() -> grpc.aio.AioRpcError | None:
        try:
            await stub.GetAccount(account.GetAccountRequest(), metadata=tuple(headers.items()))
        except grpc.aio.AioRpcError as error:
            return error
        return None

    error = await until(refused_call)
    assert error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert grpc_reason(error) == "RATE_LIMITED"
    assert dict(error.trailing_metadata())["retry-after"] == "5"


async def _until_the_last_ten_are(status: int, edge: Edge, mesh: Mesh) -> None:
    async with httpx2.AsyncClient(headers={"authorization": f"Bearer {mesh.key.sign()}"}) as client:

        async def ten() -> bool:
            return {(await client.get(f"{edge.url}{PATH}")).status_code for _ in range(10)} == {status}

        await until(ten, 60)


async def test_the_limiter_is_not_asked_about_these_classes_and_people_have_buckets_of_their_own(
    limiter_redis: Redis, edges: Callable[..., Any], mesh: Mesh
) -> None:
    """A client cannot choose whose bucket it spends, nor leave it by a query behind the path."""
    by_user = rule("default-per-user", "class=default user", limit=Limit(requests=1, period_seconds=3600, burst=3))
    credentials = rule(
        "credentials", "class=credentials client_ip", limit=Limit(requests=1, period_seconds=60, burst=9)
    )
    async with limiter(limiter_redis, rule_set(by_user, credentials)) as address:
        edge = await edges(address)
        async with httpx2.AsyncClient(base_url=edge.url) as client:

            async def get(user: str, path: str = PATH, **headers: str) -> httpx2.Response:
                return await client.get(path, headers={"authorization": f"Bearer {mesh.key.sign(sub=user)}"} | headers)

            async def refused() -> bool:
                return (await get("grace")).status_code == 429

            await until(refused)
            assert (await get("grace", **{"x-storymesh-user": "hopper"})).status_code == 429
            assert (await get("hopper", **{"x-storymesh-user": "grace"})).status_code == 200
            assert "x-storymesh-user" not in mesh.calls.last.metadata
            native = await client.post(
                "/storymesh.auth.v1.AccountService/GetAccount?x=1",
                content=bytes(5),
                headers={
                    "authorization": f"Bearer {mesh.key.sign(sub='grace')}",
                    "content-type": "application/grpc-web+proto",
                },
            )
            assert native.headers["grpc-status"] == str(grpc.StatusCode.INVALID_ARGUMENT.value[0])
            other = await client.post("/v1/sessions", json={"login": "ada", "password": "x"})
            assert other.headers["ratelimit-policy"] == '"credentials";q=9;w=540'


@pytest.fixture
async def channels() -> AsyncIterator[Callable[[Edge], grpc.aio.Channel]]:
    async with AsyncExitStack() as stack:
        opened: dict[str, grpc.aio.Channel] = {}

        def channel(edge: Edge) -> grpc.aio.Channel:
            if edge.target not in opened:
                opened[edge.target] = grpc.aio.insecure_channel(edge.target)
                stack.push_async_callback(opened[edge.target].close)
            return opened[edge.target]

        yield channel


def test_only_known_classes_whose_calls_may_pass_unchecked_are_taken() -> None:
    for overrides, words in (
        (["rate_limit.quota_classes=[nonsense]"], "no rate-limit class nonsense"),
        (
            ["rate_limit.quota_classes=[default, credentials]"],
            "credentials is denied while the limiter does not answer",
        ),
        (["rate_limit.quota_classes=[default]", "rate_limit.on_failure.default=deny"], "default is denied"),
    ):
        settings = settings_for({}, *overrides)
        with pytest.raises(SettingsError, match=words):
            bootstrap(settings, read(settings.files.contract))


def test_no_class_is_taken_unless_it_is_named() -> None:
    settings = settings_for({})
    assert settings.rate_limit.quota_classes == ()
    assert "rate_limit_quota" not in str(bootstrap(settings, read(settings.files.contract)))
