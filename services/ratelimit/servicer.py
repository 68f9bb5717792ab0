"""Translation between Envoy's rate-limit protocol and checks."""

from __future__ import annotations

import logging
from typing import Any

from foreign import rls_pb2, rls_pb2_grpc
from google.protobuf import duration_pb2
from grpc.aio import ServicerContext
from grpc_status import rpc_status

from kit.errors import Internal
from kit.rpc.statuses import as_mesh_error, to_status

from .model import Limit
from .operations import headers
from .operations.buckets import Answer, Buckets, Decision, Descriptor, Outcome, tightest

log = logging.getLogger(__name__)

_Response = rls_pb2.RateLimitResponse
_RateLimit = rls_pb2.RateLimitResponse.RateLimit

_UNITS = (
    (1, _RateLimit.SECOND),
    (60, _RateLimit.MINUTE),
    (3600, _RateLimit.HOUR),
    (86_400, _RateLimit.DAY),
    (30 * 86_400, _RateLimit.MONTH),
)


class RateLimits(rls_pb2_grpc.RateLimitServiceServicer):
    """Answers Envoy. Limits in a request are ignored: only the rules decide."""

    def __init__(self, buckets: Buckets) -> None:
        self._buckets = buckets

    async def ShouldRateLimit(
        self, request: rls_pb2.RateLimitRequest, context: ServicerContext[Any, Any]
    ) -> rls_pb2.RateLimitResponse:
        # Map errors here, because the kit's interceptor covers only methods with a policy in their contract.
        try:
            descriptors = [_descriptor(request, each) for each in request.descriptors]
            decision = await self._buckets.check(request.domain, descriptors, remaining=context.time_remaining())
            return _response(decision)
        except Exception as error:
            failure = as_mesh_error(error)
            if isinstance(failure, Internal):
                log.exception("unexpected error in ShouldRateLimit")
        await context.abort_with_status(rpc_status.to_status(to_status(failure)))


def _descriptor(request: rls_pb2.RateLimitRequest, descriptor: rls_pb2.RateLimitDescriptor) -> Descriptor:
    """A descriptor of the request. 0 hits of a request mean unset, and so 1; 0 hits of a descriptor only ask."""
    hits = descriptor.hits_addend.value if descriptor.HasField("hits_addend") else request.hits_addend or 1
    return Descriptor(tuple((entry.key, entry.value) for entry in descriptor.entries), hits)


def _response(decision: Decision) -> rls_pb2.RateLimitResponse:
    return _Response(
        overall_code=_Response.OK if decision.admitted else _Response.OVER_LIMIT,
        statuses=[_status(answer) for answer in decision.answers],
        response_headers_to_add=[
            rls_pb2.HeaderValue(key=name, value=value) for name, value in headers.of(decision).items()
        ],
    )


def _status(answer: Answer) -> rls_pb2.RateLimitResponse.DescriptorStatus:
    status = _Response.DescriptorStatus(code=_Response.OK if answer.admitted else _Response.OVER_LIMIT)
    outcome = tightest(answer.outcomes)
    if outcome is not None:
        _describe(status, outcome)
    return status


def _describe(status: rls_pb2.RateLimitResponse.DescriptorStatus, outcome: Outcome) -> None:
    requests, unit = _per_unit(outcome.rule.limit)
    status.current_limit.MergeFrom(_RateLimit(name=outcome.rule.name, requests_per_unit=requests, unit=unit))
    status.limit_remaining = outcome.verdict.remaining
    # Round up, because Envoy truncates to seconds, which would make clients return too early.
    status.duration_until_reset.MergeFrom(
        duration_pb2.Duration(seconds=headers.whole_seconds(outcome.verdict.more_after))
    )


def _per_unit(limit: Limit) -> tuple[int, rls_pb2.RateLimitResponse.RateLimit.Unit.ValueType]:
    """The rate per shortest protocol unit that spans the rule's period, rounded down to a whole number."""
    seconds, unit = next((seconds, unit) for seconds, unit in _UNITS if seconds >= limit.period_seconds)
    return limit.requests * seconds // limit.period_seconds, unit
