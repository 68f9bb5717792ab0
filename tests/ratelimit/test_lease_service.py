"""Leases at the service's door, over two replicas with one Redis."""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import grpc
import pytest
from redis.asyncio import Redis
from storymesh.ratelimit.v1 import lease_service_pb2 as pb
from storymesh.ratelimit.v1.lease_service_pb2_grpc import LeaseServiceStub

from kit.data import redis as kit_redis
from kit.errors import InvalidArgument, ResourceExhausted, Unavailable
from local.harness import Servers
from services.ratelimit.model.rules import RuleSet
from services.ratelimit.store.rules_file import load
from tests.kit.transports import TRANSPORTS
from tests.ratelimit.limiter import acquiring, calling, lease, limiter
from tests.statuses import raises_status
from tests.waiting import until

if TYPE_CHECKING:
    from storymesh.ratelimit.v1.lease_service_pb2_grpc import LeaseServiceAsyncStub

RULES = """\
domain: storymesh
on_no_match: deny
rules:
  - name: watches
    match: [{key: watch}, {key: user}]
    concurrency: 3
    ttl: 30s
    on_redis_down: open
  - name: watches-of-eve
    match: [{key: watch}, {key: user, value: eve}]
    concurrency: 1
    ttl: 30s
    on_redis_down: open
  - name: brief
    match: [{key: brief}]
    concurrency: 1
    ttl: 1s
    on_redis_down: closed
"""


@pytest.fixture
def rules(tmp_path: Path) -> RuleSet:
    path = tmp_path / "rules.yaml"
    path.write_text(RULES)
    return load(path)


@pytest.fixture(params=TRANSPORTS)
async def replicas(
    request: pytest.FixtureRequest, limiter_redis: Redis, rules: RuleSet
) -> AsyncIterator[list[LeaseServiceAsyncStub]]:
    async with (
        limiter(limiter_redis, lambda: rules, transport=request.param) as one,
        limiter(limiter_redis, lambda: rules, transport=request.param) as other,
        calling(one) as to_one,
        calling(other) as to_other,
    ):
        yield [LeaseServiceStub(to_one), LeaseServiceStub(to_other)]


async def test_a_person_holds_so_many_over_all_replicas_at_any_time(replicas: list[LeaseServiceAsyncStub]) -> None:
    calls = [replicas[number % 2].AcquireLease(acquiring(str(uuid4()))) for number in range(40)]
    answers = await asyncio.gather(*calls, return_exceptions=True)
    granted = [each for each in answers if isinstance(each, pb.AcquireLeaseResponse)]
    assert [(each.counted, each.ttl.ToTimedelta()) for each in granted] == [(True, timedelta(seconds=30))] * 3
    refused = [each for each in answers if isinstance(each, ResourceExhausted)]
    assert len(refused) == 37
    assert {(each.reason, each.metadata["rule"]) for each in refused} == {("RATE_LIMITED", "watches")}
    assert all(each.retry_after and each.retry_after <= timedelta(seconds=30) for each in refused)
    assert (await replicas[0].AcquireLease(acquiring("x", "watch=stories", "user=bob"))).counted


async def test_a_more_specific_rule_bounds_in_place_of_a_general_one(replicas: list[LeaseServiceAsyncStub]) -> None:
    await replicas[0].AcquireLease(acquiring("x", "watch=stories", "user=eve"))
    with pytest.raises(ResourceExhausted) as refused:
        await replicas[1].AcquireLease(acquiring("y", "watch=stories", "user=eve"))
    assert refused.value.metadata["rule"] == "watches-of-eve"


async def test_what_no_rule_matches_is_granted_uncounted(replicas: list[LeaseServiceAsyncStub]) -> None:
    granted = await replicas[0].AcquireLease(acquiring("x", "other=thing"))
    assert (granted.counted, granted.HasField("ttl")) == (False, False)
    renewed = await replicas[0].RenewLeases(pb.RenewLeasesRequest(leases=[lease("x", "other=thing")]))
    assert not renewed.renewals[0].lost


async def test_a_released_place_is_free_at_once_at_the_other_replica(replicas: list[LeaseServiceAsyncStub]) -> None:
    one, other = replicas
    await one.AcquireLease(acquiring("x", "brief=a"))
    with pytest.raises(ResourceExhausted):
        await other.AcquireLease(acquiring("y", "brief=a"))
    for _ in range(2):
        await one.ReleaseLeases(pb.ReleaseLeasesRequest(leases=[lease("x", "brief=a")]))
    assert (await other.AcquireLease(acquiring("y", "brief=a"))).counted


async def test_a_renewal_that_comes_too_late_is_told_so(replicas: list[LeaseServiceAsyncStub]) -> None:
    one, other = replicas
    late, kept = lease("late", "brief=a"), lease("kept")
    await one.AcquireLease(pb.AcquireLeaseRequest(lease=late))
    await one.AcquireLease(pb.AcquireLeaseRequest(lease=kept))

    async def taken() -> bool:
        try:
            return (await other.AcquireLease(acquiring("next", "brief=a"))).counted
        except ResourceExhausted:
            return False

    await until(taken)
    renewals = (await one.RenewLeases(pb.RenewLeasesRequest(leases=[late, kept]))).renewals
    assert [each.lost for each in renewals] == [True, False]
    assert renewals[1].ttl.ToTimedelta() == timedelta(seconds=30)


HOLDER = """
import asyncio, sys
from storymesh.ratelimit.v1 import lease_service_pb2 as pb
from storymesh.ratelimit.v1.lease_service_pb2_grpc import LeaseServiceStub
from tests.ratelimit.limiter import acquiring, calling, lease

async def hold():
    async with calling(sys.argv[1]) as channel:
        stub = LeaseServiceStub(channel)
        await stub.AcquireLease(acquiring("holder", "brief=a"))
        while True:
            answer = await stub.RenewLeases(pb.RenewLeasesRequest(leases=[lease("holder", "brief=a")]))
            assert not answer.renewals[0].lost
            print("held", flush=True)
            await asyncio.sleep(0.2)

asyncio.run(hold())
"""


async def test_the_place_of_a_holder_that_is_killed_becomes_free(limiter_redis: Redis, rules: RuleSet) -> None:
    async with limiter(limiter_redis, lambda: rules) as address, calling(address) as channel:
        stub = LeaseServiceStub(channel)
        holder = await asyncio.create_subprocess_exec(sys.executable, "-c", HOLDER, address, stdout=PIPE)
        assert holder.stdout
        # More renewals than fit into the time to live of one second.
        for _ in range(8):
            assert await holder.stdout.readline() == b"held\n"
        with pytest.raises(ResourceExhausted):
            await stub.AcquireLease(acquiring("next", "brief=a"))
        holder.kill()
        await holder.wait()

        async def taken() -> bool:
            try:
                return (await stub.AcquireLease(acquiring("next", "brief=a"))).counted
            except ResourceExhausted:
                return False

        await until(taken)


async def test_without_redis_each_rule_says_whether_leases_are_granted(
    stoppable_redis: Servers, rules: RuleSet
) -> None:
    async with (
        kit_redis.connect(stoppable_redis.service_redis_url("ratelimit")) as client,
        limiter(client, lambda: rules, redis_seconds=1) as address,
        calling(address) as channel,
    ):
        stub = LeaseServiceStub(channel)
        await stub.AcquireLease(acquiring("x"))
        await stoppable_redis.stop("redis")
        try:
            assert not (await stub.AcquireLease(acquiring("y"))).counted
            for closed in (
                stub.AcquireLease(acquiring("z", "brief=a")),
                stub.RenewLeases(pb.RenewLeasesRequest(leases=[lease("x")])),
                stub.ReleaseLeases(pb.ReleaseLeasesRequest(leases=[lease("x")])),
            ):
                with pytest.raises(Unavailable) as refused:
                    await closed
                assert refused.value.reason == "RATE_LIMIT_BUCKETS_UNREACHABLE"
        finally:
            await stoppable_redis.start("redis")


async def test_rules_that_change_find_leases_lost_or_uncounted(limiter_redis: Redis, tmp_path: Path) -> None:
    path = tmp_path / "rules.yaml"
    path.write_text(RULES)
    current = load(path)
    async with limiter(limiter_redis, lambda: current) as address, calling(address) as channel:
        stub = LeaseServiceStub(channel)
        await stub.AcquireLease(acquiring("x"))
        path.write_text(RULES.replace("name: watches\n", "name: renamed\n"))
        current = load(path)
        assert (await stub.RenewLeases(pb.RenewLeasesRequest(leases=[lease("x")]))).renewals[0].lost
        assert (await stub.AcquireLease(acquiring("x"))).counted


async def test_only_services_of_the_mesh_are_served_and_requests_are_checked(
    limiter_redis: Redis, rules: RuleSet
) -> None:
    async with limiter(limiter_redis, lambda: rules) as address:
        async with grpc.aio.insecure_channel(address) as channel:
            with raises_status(grpc.StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"):
                await LeaseServiceStub(channel).AcquireLease(acquiring("x"))
        async with calling(address) as channel:
            stub = LeaseServiceStub(channel)
            for bad in (acquiring(""), acquiring("k" * 129), pb.AcquireLeaseRequest()):
                with pytest.raises(InvalidArgument):
                    await stub.AcquireLease(bad)
            with pytest.raises(InvalidArgument):
                await stub.ReleaseLeases(pb.ReleaseLeasesRequest(leases=[lease("x")] * 501))
