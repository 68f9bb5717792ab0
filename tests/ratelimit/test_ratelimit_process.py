"""The process: its commands, its health and its shutdown."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from foreign import rls_pb2, rls_pb2_grpc
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from redis.asyncio import Redis

from local.harness import Servers
from services.ratelimit.__main__ import main, serve
from services.ratelimit.config import RateLimitSettings
from tests.kit.transports import TRANSPORTS
from tests.ratelimit.building import BY_ADDRESS, LOCAL, PRODUCTION, asking, described
from tests.waiting import until

pytestmark = pytest.mark.slow

EAGER = [(f"grpc.{which}_reconnect_backoff_ms", 50) for which in ("initial", "min", "max")]


async def started(environment: dict[str, str]) -> Process:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("STORYMESH_")}
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.ratelimit", "serve", stdout=PIPE, stderr=PIPE, env=clean | environment
    )


async def health(channel: grpc.aio.Channel, service: str) -> int:
    check = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=HealthCheckRequest.SerializeToString,
        response_deserializer=HealthCheckResponse.FromString,
    )
    answer = await check(HealthCheckRequest(service=service), wait_for_ready=True, timeout=20)
    return int(answer.status)


async def until_redis_is(channel: grpc.aio.Channel, status: int) -> None:
    watch = channel.unary_stream(
        "/grpc.health.v1.Health/Watch",
        request_serializer=HealthCheckRequest.SerializeToString,
        response_deserializer=HealthCheckResponse.FromString,
    )
    watching = watch(HealthCheckRequest(service="redis"), timeout=20)
    async for answer in watching:
        if answer.status == status:
            break
    watching.cancel()


@asynccontextmanager
async def serving(
    servers: Servers, rules: Path, address: str, *, transport: str = "grpcio"
) -> AsyncIterator[tuple[Process, grpc.aio.Channel]]:
    process = await started(
        {
            "STORYMESH_SECRETS_DIR": str(servers.secrets_dir("ratelimit")),
            "STORYMESH_RATE_LIMIT_RULES": str(rules),
            "STORYMESH_LISTEN": address,
            "STORYMESH_GRPC_SERVER": transport,
        }
    )
    try:
        async with grpc.aio.insecure_channel(address, options=EAGER) as channel:
            assert await health(channel, "") == HealthCheckResponse.SERVING
            yield process, channel
    finally:
        if process.returncode is None:
            process.kill()
            await process.communicate()


@pytest.fixture
def address() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


def test_checking_a_good_file_prints_its_rules(capsys: pytest.CaptureFixture[str]) -> None:
    main(["check", str(PRODUCTION)])
    printed = capsys.readouterr().out
    assert "19 rules of the domain storymesh; on_no_match: deny" in printed
    assert (
        "credentials-per-address      class=credentials client_ip=*  10/min, burst 20               closed when Redis is down"
        in printed
    )


def test_checking_a_bad_file_fails_with_its_mistakes(tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(PRODUCTION.read_text().replace("10/min", "10/m"))
    with pytest.raises(SystemExit, match=rf"{path}:17: rules\[0\].rate: '10/m' is not a rate; write requests per time"):
        main(["check", str(path)])


async def test_it_serves_with_and_without_redis_says_which_and_ends_in_order(
    stoppable_redis: Servers, address: str
) -> None:
    async with serving(stoppable_redis, LOCAL, address) as (process, channel):
        for name in ("envoy.service.ratelimit.v3.RateLimitService", "redis"):
            assert await health(channel, name) == HealthCheckResponse.SERVING, name
        limiter = rls_pb2_grpc.RateLimitServiceStub(channel)
        limited = await limiter.ShouldRateLimit(asking(BY_ADDRESS), timeout=5)
        assert limited.statuses[0].current_limit.name == "default-per-address"

        await stoppable_redis.stop("redis")
        unlimited = await limiter.ShouldRateLimit(asking(BY_ADDRESS), timeout=5)
        assert unlimited.overall_code == rls_pb2.RateLimitResponse.OK
        assert not unlimited.statuses[0].HasField("current_limit")
        await until_redis_is(channel, HealthCheckResponse.NOT_SERVING)
        assert await health(channel, "") == HealthCheckResponse.SERVING
        await stoppable_redis.start("redis")

        process.send_signal(signal.SIGTERM)
        _, errors = await process.communicate()
    assert (process.returncode, errors) == (0, b"")


@pytest.mark.parametrize("transport", TRANSPORTS)
async def test_a_limiter_that_is_killed_in_the_middle_of_batches_leaves_no_call_half_debited(
    servers: Servers, redis: Redis, address: str, transport: str
) -> None:
    """Both rules have the same limit, so that both buckets are full at the same instant as long as they are debited together."""
    call = asking(
        described("class=credentials", "client_ip=192.0.2.7/32"), described("class=credentials", "user=a"), hits=7
    )
    keys = [
        "ratelimit:{storymesh}:credentials-per-address:class=credentials:client_ip=192.0.2.7/32",
        "ratelimit:{storymesh}:credentials-per-user:class=credentials:user=a",
    ]
    async with serving(servers, LOCAL, address, transport=transport) as (process, channel):
        limiter = rls_pb2_grpc.RateLimitServiceStub(channel)
        other = asking(described("class=credentials", "user=b"), hits=1)

        async def counts_in_redis() -> bool:
            await limiter.ShouldRateLimit(other, timeout=20)
            return await redis.get(keys[1].replace("user=a", "user=b")) is not None

        # The first answer of Redis may come too late on a slow machine; without it calls are decided otherwise for a moment.
        await until(counts_in_redis)
        calls = [asyncio.ensure_future(limiter.ShouldRateLimit(call, timeout=20)) for _ in range(400)]
        await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        process.kill()
        await process.wait()
        states = await redis.mget(keys)
        await asyncio.gather(*calls, return_exceptions=True)
    assert states[0]
    assert states[0] == states[1]
    async with serving(servers, LOCAL, address, transport=transport) as (_, channel):
        answer = await rls_pb2_grpc.RateLimitServiceStub(channel).ShouldRateLimit(call, timeout=5)
    assert answer.overall_code == rls_pb2.RateLimitResponse.OK
    assert {status.limit_remaining < 5000 for status in answer.statuses} == {True}


async def test_it_does_not_start_with_bad_rules(tmp_path: Path) -> None:
    settings = RateLimitSettings(rate_limit_rules=tmp_path / "none.yaml", mesh_key="A" * 43)
    with pytest.raises(SystemExit, match=r"none.yaml cannot be read: No such file or directory"):
        await serve(settings)


async def test_it_does_not_start_while_a_class_of_the_contract_has_no_rule(tmp_path: Path) -> None:
    rules = tmp_path / "rules.yaml"
    rules.write_text(PRODUCTION.read_text().replace("value: stream", "value: streams"))
    settings = RateLimitSettings(rate_limit_rules=rules, mesh_key="A" * 43)
    with pytest.raises(SystemExit) as refused:
        await serve(settings)
    assert "stream-per-user: the contract has no rate-limit class streams; it has default, " in str(refused.value)
    assert "no rule matches every call of the rate-limit class stream by user, which then is refused" in str(
        refused.value
    )
