"""Our decisions by converted rules, beside those of envoyproxy/ratelimit by the rules as they were."""

from __future__ import annotations

import re
import time
from collections.abc import AsyncIterator, Iterator
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import grpc
import pytest
import yaml
from foreign import rls_pb2, rls_pb2_grpc
from redis.asyncio import Redis

from local.harness import Servers
from services.ratelimit.model.decisions import Descriptor
from services.ratelimit.model.rules import Action, RuleSet
from services.ratelimit.operations.buckets import Buckets
from services.ratelimit.store.foreign_rules import Conversion
from services.ratelimit.store.memory import MemoryBucketStore
from services.ratelimit.store.rules_file import load
from tests.ratelimit import envoyproxy

# The first build of the other service takes a minute, and more on a busy machine.
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NOW = 1_800_000_000_000_000

MORE = [
    # Branches that hide a general one, and an end without a limit.
    """
domain: x
descriptors:
  - key: a
    value: closed
    descriptors:
      - {key: b, value: one, rate_limit: {unit: hour, requests_per_unit: 2}}
  - key: a
    rate_limit: {unit: hour, requests_per_unit: 4}
    descriptors:
      - {key: b, rate_limit: {unit: hour, requests_per_unit: 3}}
  - {key: a, value: free}
""",
    # Prefixes in and against the order of their lengths, at two depths.
    """
domain: x
descriptors:
  - key: path
    value: /v1/users/*
    rate_limit: {unit: day, requests_per_unit: 2}
  - key: path
    value: /v1/*
    rate_limit: {unit: day, requests_per_unit: 3}
    descriptors:
      - {key: verb, value: G*, rate_limit: {unit: day, requests_per_unit: 5}}
      - {key: verb, value: GET, rate_limit: {unit: day, requests_per_unit: 0}}
      - {key: verb, rate_limit: {unlimited: true}}
  - key: path
    value: /v1/late/*
    rate_limit: {unit: day, requests_per_unit: 7}
  - key: path
    rate_limit: {unit: week, requests_per_unit: 6}
""",
]

Entries = tuple[tuple[str, str], ...]


class Answered(NamedTuple):
    """What both services say of one call: whether it passes, and for each descriptor its code and whether a limit was asked.

    Of a call that is blocked, ours asks no other limit, because it would debit none.
    """

    passes: bool
    descriptors: list[tuple[bool, bool]]


@pytest.fixture(scope="module")
def peer(tmp_path_factory: pytest.TempPathFactory) -> envoyproxy.Peer:
    return envoyproxy.build(tmp_path_factory.mktemp("peer"))


def with_domain(text: str, domain: str) -> str:
    return re.sub(r"^domain:.*$", f"domain: {domain}", text, count=1, flags=re.MULTILINE)


@pytest.fixture
async def beside(
    peer: envoyproxy.Peer, servers: Servers, redis: Redis, tmp_path: Path
) -> AsyncIterator[tuple[rls_pb2_grpc.RateLimitServiceAsyncStub, dict[str, Path]]]:
    """The other service over all examples, each in a domain of its own, and the files by domain."""
    folder = tmp_path / "config"
    folder.mkdir()
    files = {}
    for number, text in enumerate([*peer.examples(), *MORE]):
        domain = f"example-{number}"
        files[domain] = folder / f"{domain}.yaml"
        files[domain].write_text(with_domain(text, domain))
    with peer.serving(folder, servers.redis_url, tmp_path) as address:
        async with grpc.aio.insecure_channel(address) as channel:
            stub = rls_pb2_grpc.RateLimitServiceStub(channel)
            first = rls_pb2.RateLimitRequest(domain="none", descriptors=[rls_pb2.RateLimitDescriptor()])
            await stub.ShouldRateLimit(first, wait_for_ready=True, timeout=30)
            yield stub, files


def paths(descriptors: list[dict[str, Any]], above: Entries = ()) -> Iterator[tuple[Entries, int]]:
    """Descriptors that the rules speak of and some that they do not, with numbers of hits that are just within a limit."""
    for each in descriptors:
        value = str(each.get("value") or "")
        for chosen in {value.replace("*", "x"), value.replace("*", "y")} if value else {"some", "other"}:
            entries = (*above, (each["key"], chosen))
            yield entries, each.get("rate_limit", {}).get("requests_per_unit", 1)
            yield (*entries, ("deeper", "x")), 1
            yield from paths(each.get("descriptors", []), entries)
        yield (*above, (each["key"], "unknown")), each.get("rate_limit", {}).get("requests_per_unit", 1)


async def theirs(stub: Any, redis: Redis, domain: str, calls: list[list[tuple[Entries, int]]]) -> list[Answered]:
    """The answers to calls one after the other within one unit of the clock, from the beginning of all counts."""
    while True:
        await redis.flushdb()
        begun = int(time.time())
        answers = []
        for call in calls:
            request = rls_pb2.RateLimitRequest(domain=domain)
            for entries, hits in call:
                descriptor = request.descriptors.add(
                    entries=[rls_pb2.RateLimitDescriptor.Entry(key=key, value=value) for key, value in entries]
                )
                descriptor.hits_addend.value = hits
            response = await stub.ShouldRateLimit(request, timeout=10)
            ok = rls_pb2.RateLimitResponse.OK
            passes = response.overall_code == ok
            statuses = response.statuses
            answers.append(
                Answered(passes, [(each.code == ok, passes and each.HasField("current_limit")) for each in statuses])
            )
        if int(time.time()) == begun:
            return answers


def ours(rules: RuleSet, domain: str, calls: list[list[tuple[Entries, int]]]) -> list[Answered]:
    buckets = Buckets(MemoryBucketStore(lambda: NOW), lambda: rules, redis_seconds=5)
    answers = []
    for call in calls:
        decision = buckets.check(domain, [Descriptor(entries, hits) for entries, hits in call], remaining=None)
        answers.append(
            Answered(
                decision.admitted,
                [
                    (
                        each.admitted,
                        decision.admitted and any(one.rule.action is not Action.UNLIMITED for one in each.outcomes),
                    )
                    for each in decision.answers
                ],
            )
        )
    return answers


async def test_the_documented_rules_and_more_decide_alike_in_both(beside: Any, redis: Redis, tmp_path: Path) -> None:
    stub, files = beside
    compared = 0
    for domain, file in files.items():
        converted = tmp_path / f"{domain}.yaml"
        converted.write_text(Conversion(file).text)
        rules = load(converted)
        asked = list(dict.fromkeys(paths(yaml.safe_load(file.read_text())["descriptors"])))
        sequences = []
        for entries, hits in asked:
            other = (*entries[:-1], (entries[-1][0], entries[-1][1] + "z"))
            # No call asks for 0 hits: there that passes whatever is left, here it asks whether a token is.
            sequences.append([[(entries, hits + 1)]])
            sequences.append([[(entries, max(hits, 1))], [(entries, max(hits, 1))], [(other, max(hits, 1))]])
        # Both descriptors of a call are within their limits, so that both services count both.
        plain = [(entries, 1) for entries, _ in asked if not any(value.endswith("z") for _, value in entries)][:12]
        sequences += [[[one, other]] for one, other in permutations(plain, 2)]
        for calls in sequences:
            assert ours(rules, domain, calls) == await theirs(stub, redis, domain, calls), (file.read_text(), calls)
            compared += len(calls)
    assert compared > 500
