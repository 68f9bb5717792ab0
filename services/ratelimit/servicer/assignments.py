"""Translation between Envoy's rate-limit quota protocol (RLQS) and assignments.

An assignment of tokens is a token bucket of that size, into which almost nothing comes back. Envoy fills a bucket that follows a
blanket rule, and keeps the level of one that follows another bucket. So new tokens come behind a rule in the same message, which
Envoy applies at once, and an assignment that is only to last longer comes alone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping
from itertools import islice
from math import gcd
from typing import Any, TypeAlias

import grpc
from foreign import rlqs_pb2, rlqs_pb2_grpc
from google.protobuf import duration_pb2, wrappers_pb2

from kit.errors import InvalidArgument, MeshError, Unavailable, Violation
from kit.rpc.statuses import to_grpc

from ..model import Limit
from ..operations.assignments import Assigned, Assignments, Edge, Usage
from ..operations.terms import Blanket, BucketId

REPORT_BYTES = 16 << 20
"""Longest report. An Envoy that was without a limiter for long has kept every bucket of that time, some 100 bytes each."""

MOST_ENTRIES = 8
"""Of a bucket's id."""

LONGEST_ID = 512
"""Characters of an id's keys and values. A longer one is not kept."""

TTL_SECONDS = 15
"""How long an assignment holds. Envoy reports every 5 s, and each report lengthens it, so that two may be lost."""

_FILL_SECONDS = 300
"""In which an assigned bucket fills again: as slow as can be. Envoy fills a new bucket by what came back since its machine was
started, so on a machine that runs for less than that it begins with less."""

_EXACT_TOKENS = 60
"""So many do not grow by a whole token between two reports, which are 5 s apart. Of more, one in 61 is kept for what comes back."""

_BUCKETS_AT_ONCE = 1000
_MOST_TOKENS = 2**32 - 1

_Response = rlqs_pb2.RateLimitQuotaResponse
_Context: TypeAlias = "grpc.aio.ServicerContext[rlqs_pb2.RateLimitQuotaUsageReports, _Response]"


class AssignmentStreams(rlqs_pb2_grpc.RateLimitQuotaServiceServicer):
    """Serves Envoys until they leave or the server stops."""

    def __init__(self, assignments: Assignments, stopping: asyncio.Event) -> None:
        self._assignments = assignments
        self._stopping = stopping

    async def StreamRateLimitQuotas(self, request_iterator: Any, context: _Context) -> None:  # type: ignore[override]  # writes by context
        try:
            await self._serve(context)
        except MeshError as error:
            await context.abort_with_status(to_grpc(error))

    async def _serve(self, context: _Context) -> None:
        first = await _next(context)
        if first is None:
            return
        if not first.domain:
            raise InvalidArgument([Violation("domain", "is empty; it names the rules' domain", "REQUIRED")])
        edge = self._assignments.connect(first.domain)
        tasks = [
            asyncio.create_task(work)
            for work in (self._read(first, edge, context), self._write(edge, context), self._stop())
        ]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            try:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            finally:
                # Also when the call is cancelled just now: an Envoy that leaves first ends what it sends, and then the stream.
                self._assignments.leave(edge)

    async def _read(self, reports: rlqs_pb2.RateLimitQuotaUsageReports, edge: Edge, context: _Context) -> None:
        while True:
            await self._assignments.report(edge, list(self._usages(reports, edge)))
            read = await _next(context)
            if read is None:
                return
            if read.domain not in ("", edge.domain):
                raise InvalidArgument(
                    [Violation("domain", "is another than before; open another stream for it", "CHANGED")]
                )
            reports = read

    def _usages(self, reports: rlqs_pb2.RateLimitQuotaUsageReports, edge: Edge) -> Iterator[Usage]:
        """What was reported, the last of each bucket. An id that is too long to be kept is forgotten by Envoy too."""
        latest: dict[BucketId, Usage] = {}
        for each in reports.bucket_quota_usages:
            bucket = tuple(sorted(each.bucket_id.bucket.items()))
            if not bucket:
                continue
            if len(bucket) > MOST_ENTRIES or sum(len(key) + len(value) for key, value in bucket) > LONGEST_ID:
                self._assignments.forget(edge, bucket)
                continue
            latest[bucket] = Usage(
                bucket, each.num_requests_allowed, each.num_requests_denied, each.time_elapsed.seconds <= 0
            )
        yield from latest.values()

    async def _write(self, edge: Edge, context: _Context) -> None:
        while True:
            await edge.changed.wait()
            told = iter(edge.take().items())
            while part := list(islice(told, _BUCKETS_AT_ONCE)):
                await context.write(_Response(bucket_action=[each for told in part for each in _actions(*told)]))

    async def _stop(self) -> None:
        """Ends the stream when the server drains, so that Envoy opens another one elsewhere."""
        await self._stopping.wait()
        raise Unavailable()


def _actions(bucket: BucketId, assigned: Assigned) -> list[_Response.BucketAction]:
    """To be applied together, in this order."""
    named = rlqs_pb2.BucketId(bucket=dict(bucket))
    if assigned.how is None:
        return [_Response.BucketAction(bucket_id=named, abandon_action=_Response.BucketAction.AbandonAction())]
    strategies = [_strategy(assigned.how)]
    if assigned.fresh and strategies[0].HasField("token_bucket"):
        strategies.insert(0, rlqs_pb2.RateLimitStrategy(blanket_rule=rlqs_pb2.RateLimitStrategy.DENY_ALL))
    return [
        _Response.BucketAction(
            bucket_id=named,
            quota_assignment_action=_Response.BucketAction.QuotaAssignmentAction(
                assignment_time_to_live=duration_pb2.Duration(seconds=TTL_SECONDS), rate_limit_strategy=each
            ),
        )
        for each in strategies
    ]


def _strategy(how: int | Limit | Blanket) -> rlqs_pb2.RateLimitStrategy:
    if isinstance(how, Blanket):
        return rlqs_pb2.RateLimitStrategy(blanket_rule=_BLANKETS[how])
    if isinstance(how, Limit):
        divisor = gcd(how.requests, how.period_seconds)
        return _bucket(how.burst, how.requests // divisor, how.period_seconds // divisor)
    if how == 0:
        # Envoy knows no bucket of nothing.
        return rlqs_pb2.RateLimitStrategy(blanket_rule=rlqs_pb2.RateLimitStrategy.DENY_ALL)
    size = how if how < _EXACT_TOKENS else how * _EXACT_TOKENS // (_EXACT_TOKENS + 1)
    return _bucket(size, size, _FILL_SECONDS)


async def _next(context: _Context) -> rlqs_pb2.RateLimitQuotaUsageReports | None:
    """The next report; None when Envoy sends no more."""
    read: Any = await context.read()
    return None if read is grpc.aio.EOF else read


_BLANKETS: Mapping[Blanket, rlqs_pb2.RateLimitStrategy.BlanketRule.ValueType] = {
    Blanket.ADMIT: rlqs_pb2.RateLimitStrategy.ALLOW_ALL,
    Blanket.REFUSE: rlqs_pb2.RateLimitStrategy.DENY_ALL,
}


def _bucket(tokens: int, per_fill: int, seconds: int) -> rlqs_pb2.RateLimitStrategy:
    return rlqs_pb2.RateLimitStrategy(
        token_bucket=rlqs_pb2.TokenBucket(
            max_tokens=min(tokens, _MOST_TOKENS),
            tokens_per_fill=wrappers_pb2.UInt32Value(value=min(per_fill, _MOST_TOKENS)),
            fill_interval=duration_pb2.Duration(seconds=seconds),
        )
    )
