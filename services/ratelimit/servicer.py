"""Translation between Envoy's rate-limit protocol and checks, for many calls at a time.

What costs most is kept: the checks of requests that came before, byte for byte, and the serialised parts of responses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache

from foreign import rls_pb2
from google.protobuf import duration_pb2
from google.protobuf.message import DecodeError

from kit.errors import InvalidArgument, MalformedRequest, MeshError, Violation
from kit.rpc.batches import Answer, BatchedCall

from .model import Limit, Verdict
from .model.rules import Rule
from .operations import headers
from .operations.buckets import Asking, Buckets, Check, Decision, Descriptor, Outcome, tightest

_Response = rls_pb2.RateLimitResponse
_RateLimit = rls_pb2.RateLimitResponse.RateLimit

SERVICE, METHOD = "envoy.service.ratelimit.v3.RateLimitService", "ShouldRateLimit"

MOST_REQUEST_BYTES = 16 << 10
"""Longest request. A longer one is refused undecoded, because all calls of its batch would wait until it was read."""

MOST_DESCRIPTORS = 64
MOST_ENTRIES = 32
"""Entries of one descriptor."""

_KEPT_CHECKS = 4096
_KEPT_REQUEST_BYTES = 1024
"""Longest request whose check is kept, which bounds the memory of all that are."""

_KEPT_PARTS = 4096
"""Parts of responses that are kept for each rule."""

_UNITS = (
    (1, _RateLimit.SECOND),
    (60, _RateLimit.MINUTE),
    (3600, _RateLimit.HOUR),
    (86_400, _RateLimit.DAY),
    (30 * 86_400, _RateLimit.MONTH),
)


class RateLimits:
    """Answers Envoy. Limits in a request are ignored: only the rules decide."""

    def __init__(self, buckets: Buckets) -> None:
        self._buckets = buckets
        self._kept_check = lru_cache(_KEPT_CHECKS)(_check)
        self._parts: dict[str, _Parts] = {}

    def answer(self, calls: Sequence[BatchedCall]) -> list[Answer]:
        """Serialised responses, or errors, in the order of the calls. Blocks while the buckets are asked."""
        asked = [self._asked(call) for call in calls]
        decisions = iter(self._buckets.check_many([each for each in asked if isinstance(each, Asking)]))
        return [self._answered(next(decisions) if isinstance(each, Asking) else each) for each in asked]

    def _asked(self, call: BatchedCall) -> Asking | MeshError:
        try:
            read = self._kept_check if len(call.request) <= _KEPT_REQUEST_BYTES else _check
            return Asking(read(call.request), call.remaining)
        except MeshError as error:
            return error

    def _answered(self, decision: Decision | MeshError) -> Answer:
        """Concatenated parts of a message are their merged message (protobuf: encoding, "last one wins")."""
        if isinstance(decision, MeshError):
            return decision
        admitted, statuses = True, []
        tightest_ones: list[Outcome] = []
        for answer in decision.answers:
            outcome = tightest(answer.outcomes)
            if outcome is None:
                admitted = admitted and answer.admitted
                statuses.append(_UNLIMITED if answer.admitted else _UNMATCHED)
            else:
                # No rule of this answer refuses the call if the tightest one does not.
                admitted = admitted and outcome.verdict.admits
                statuses.append(self._parts_of(outcome.rule).status(*_told(outcome.verdict)))
                tightest_ones.append(outcome)
        outcome = tightest(tightest_ones)
        if outcome is not None:
            statuses.append(self._parts_of(outcome.rule).headers(*_told(outcome.verdict)))
        return b"".join([_ADMITTED if admitted else _REFUSED, *statuses])

    def _parts_of(self, rule: Rule) -> _Parts:
        parts = self._parts.get(rule.name)
        if parts is None or parts.rule is not rule:
            parts = self._parts[rule.name] = _Parts(rule)
        return parts


def _check(request: bytes) -> Check:
    """Raises MalformedRequest and InvalidArgument."""
    if len(request) > MOST_REQUEST_BYTES:
        raise _too_many("", f"has {len(request)} bytes; {MOST_REQUEST_BYTES} are the most")
    try:
        asked = rls_pb2.RateLimitRequest.FromString(request)
    except DecodeError:
        raise MalformedRequest from None
    if len(asked.descriptors) > MOST_DESCRIPTORS:
        raise _too_many("descriptors", f"are {len(asked.descriptors)}; {MOST_DESCRIPTORS} are the most")
    for number, descriptor in enumerate(asked.descriptors):
        if len(descriptor.entries) > MOST_ENTRIES:
            what = f"are {len(descriptor.entries)}; {MOST_ENTRIES} are the most"
            raise _too_many(f"descriptors[{number}].entries", what)
    return Check(asked.domain, tuple(_descriptor(asked, each) for each in asked.descriptors))


def _too_many(field: str, description: str) -> InvalidArgument:
    return InvalidArgument([Violation(field, description, "TOO_MANY")])


def _descriptor(request: rls_pb2.RateLimitRequest, descriptor: rls_pb2.RateLimitDescriptor) -> Descriptor:
    """A descriptor of the request. 0 hits of a request mean unset, and so 1; 0 hits of a descriptor only ask."""
    hits = descriptor.hits_addend.value if descriptor.HasField("hits_addend") else request.hits_addend or 1
    return Descriptor(tuple((entry.key, entry.value) for entry in descriptor.entries), hits)


def _code(admitted: bool) -> rls_pb2.RateLimitResponse.Code.ValueType:
    return _Response.OK if admitted else _Response.OVER_LIMIT


def _with_status(admitted: bool) -> bytes:
    return _Response(statuses=[_Response.DescriptorStatus(code=_code(admitted))]).SerializeToString()


_ADMITTED, _REFUSED = (_Response(overall_code=_code(admitted)).SerializeToString() for admitted in (True, False))
_UNLIMITED, _UNMATCHED = _with_status(True), _with_status(False)


def _told(verdict: Verdict) -> tuple[bool, int, int]:
    """What a client is told: whether it passed, the tokens that remain, and when there is more, in seconds.

    Round up, because Envoy truncates to seconds, which would make clients return too early.
    """
    return verdict.admits, verdict.remaining, headers.whole_seconds(verdict.more_after)


class _Parts:
    """The serialised parts of responses that concern one rule."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.status: Callable[[bool, int, int], bytes] = lru_cache(_KEPT_PARTS)(self._status)
        self.headers: Callable[[bool, int, int], bytes] = lru_cache(_KEPT_PARTS)(self._headers)

    def _status(self, admits: bool, remaining: int, seconds: int) -> bytes:
        requests, unit = _per_unit(self.rule.limit)
        status = _Response.DescriptorStatus(
            code=_code(admits),
            current_limit=_RateLimit(name=self.rule.name, requests_per_unit=requests, unit=unit),
            limit_remaining=remaining,
            duration_until_reset=duration_pb2.Duration(seconds=seconds),
        )
        return _Response(statuses=[status]).SerializeToString()

    def _headers(self, admits: bool, remaining: int, seconds: int) -> bytes:
        fields = headers.of(self.rule, admits=admits, remaining=remaining, seconds=seconds)
        added = [rls_pb2.HeaderValue(key=name, value=value) for name, value in fields.items()]
        return _Response(response_headers_to_add=added).SerializeToString()


def _per_unit(limit: Limit) -> tuple[int, rls_pb2.RateLimitResponse.RateLimit.Unit.ValueType]:
    """The rate per shortest protocol unit that spans the rule's period, rounded down to a whole number."""
    seconds, unit = next((seconds, unit) for seconds, unit in _UNITS if seconds >= limit.period_seconds)
    return limit.requests * seconds // limit.period_seconds, unit
