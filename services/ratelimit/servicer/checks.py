"""Translation between Envoy's rate-limit protocol and checks, for many calls at a time.

What costs most is kept: the checks of requests that came before, byte for byte, and the serialised parts of responses.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from foreign import rls_pb2
from google.protobuf import duration_pb2
from google.protobuf.message import DecodeError

from kit.errors import InvalidArgument, MalformedRequest, MeshError, Violation
from kit.rpc.batches import Answer, BatchedCall

from ..model import MICROSECONDS, Verdict
from ..model.decisions import Answer as DescriptorAnswer
from ..model.decisions import Decision, Descriptor, Outcome, tightest
from ..model.rules import Rule
from ..operations import headers, metadata
from ..operations.buckets import Asking, Buckets
from ..operations.planning import Check, Passed, Plan

_Response = rls_pb2.RateLimitResponse
_RateLimit = rls_pb2.RateLimitResponse.RateLimit

SERVICE, METHOD = "envoy.service.ratelimit.v3.RateLimitService", "ShouldRateLimit"

MOST_REQUEST_BYTES = 16 << 10
"""Longest request. A longer one is refused undecoded, because all calls of its batch would wait until it was read."""

MOST_DESCRIPTORS = 64
MOST_ENTRIES = 32
"""Entries of one descriptor."""

_KEPT_CHECKS = 1024
"""Each is a dozen objects that a full garbage collection looks through: four times as many would stop all calls for 50 ms."""

_KEPT_REQUEST_BYTES = 1024
"""Longest request whose check is kept, which bounds the memory of all that are."""

_KEPT_PARTS = 4096
"""Parts of responses that are kept for each rule."""

_MOST_RULES = 4096
"""Rules whose parts are kept."""

_UNITS = {
    1: _RateLimit.SECOND,
    60: _RateLimit.MINUTE,
    3600: _RateLimit.HOUR,
    86_400: _RateLimit.DAY,
    30 * 86_400: _RateLimit.MONTH,
}
"""By seconds, as Envoy shows them."""

_MOST_SHOWN = 2**32 - 1


class RateLimits:
    """Answers Envoy. Limits in a request are ignored: only the rules decide."""

    def __init__(self, buckets: Buckets) -> None:
        self._buckets = buckets
        self._kept_check = lru_cache(_KEPT_CHECKS)(_check)
        self._parts: dict[tuple[str, str], _Parts] = {}

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

    def _answered(self, decision: Passed | Decision | MeshError) -> Answer:
        """Concatenated parts of a message are their merged message (protobuf: encoding, "last one wins")."""
        if isinstance(decision, Passed):
            return self._passed(decision.plan, decision.taken.owed)
        if isinstance(decision, MeshError):
            return decision
        if decision.shadow:
            return b"".join([_ADMITTED, *[_UNLIMITED for _ in decision.answers], self._metadata(decision, None, True)])
        admitted = True
        outcomes = []
        for answer in decision.answers:
            outcome = tightest(answer.outcomes)
            outcomes.append(outcome)
            # No rule of this answer refuses the call if the tightest one does not.
            admitted = admitted and (answer.admitted if outcome is None else outcome.admits)
        deciding = tightest([each for each in outcomes if each is not None])
        if not admitted:
            outcomes = _with_limits_to_show(outcomes, deciding)
        parts = [_ADMITTED if admitted else _REFUSED, *map(self._status, decision.answers, outcomes)]
        if deciding is not None and deciding.verdict is not None:
            of_rule = self._parts_of(deciding.rule)
            parts.append(of_rule.headers(*_told(deciding.verdict)))
            if admitted and not decision.trying:
                parts.append(of_rule.admitted)
                return b"".join(parts)
        elif deciding is not None and not admitted and deciding.rule.ends_at:
            parts.append(self._until(deciding.rule.ends_at))
        parts.append(self._metadata(decision, deciding, admitted))
        return b"".join(parts)

    def _until(self, ends_at: int) -> bytes:
        """The header that says when a ban ends. This process lets the caller pass by the same clock."""
        seconds = max(1, headers.whole_seconds(ends_at - self._buckets.clock()))
        return _with_headers({"Retry-After": str(seconds)})

    def _passed(self, plan: Plan, owed: Sequence[int]) -> bytes:
        """The same as of its decision: of each descriptor the rule of which the least remains, and of these again the least."""
        charges = plan.charges
        parts = [_ADMITTED]
        least = None
        for rules in plan.counted or ():
            shown = None
            for rule, place in rules:
                charge = charges[place]
                interval = charge.limit.interval
                debt = owed[place] + charge.debit
                remaining = (charge.limit.capacity - debt) // interval
                if shown is None or remaining < shown[0]:
                    # As Verdict.more_after in whole seconds.
                    shown = remaining, 1 + (debt - 1) % interval // MICROSECONDS if debt else 0, rule
            if shown is None:
                parts.append(_UNLIMITED)
                continue
            remaining, seconds, rule = shown
            of_rule = self._parts_of(rule)
            parts.append(of_rule.status(True, remaining, seconds, False))
            if least is None or remaining < least[0]:
                least = remaining, seconds, of_rule
        if least is not None:
            remaining, seconds, of_rule = least
            parts.append(of_rule.headers(True, remaining, seconds, False))
            parts.append(of_rule.admitted)
        return b"".join(parts)

    def _status(self, answer: DescriptorAnswer, outcome: Outcome | None) -> bytes:
        """The status of a descriptor: with the limit of its tightest outcome, if that is to be shown."""
        if outcome is None or outcome.verdict is None:
            return _UNLIMITED if answer.admitted else _UNMATCHED
        return self._parts_of(outcome.rule).status(*_told(outcome.verdict))

    def _metadata(self, decision: Decision, deciding: Outcome | None, admitted: bool) -> bytes:
        """What the edge's access log and its refusals say: the rule that decided, and how."""
        outcome, how = metadata.of(decision, deciding, admitted)
        if outcome is None:
            return _UNMATCHED_METADATA if how == metadata.REFUSED else b""
        return self._parts_of(outcome.rule).metadata(how, not admitted and decision.permanent)

    def _parts_of(self, rule: Rule) -> _Parts:
        parts = self._parts.get(rule.full_name)
        if parts is None or parts.rule is not rule:
            if len(self._parts) >= _MOST_RULES:
                # Grants and bans come and go.
                self._parts.clear()
            parts = self._parts[rule.full_name] = _Parts(rule)
        return parts


def _with_limits_to_show(outcomes: Sequence[Outcome | None], deciding: Outcome | None) -> list[Outcome | None]:
    """Leave out those that Envoy would show in place of the one that decides: it takes the first of which the least remains."""
    if deciding is None or deciding.verdict is None:
        return [None for _ in outcomes]
    least, before = deciding.verdict.remaining, True
    shown: list[Outcome | None] = []
    for outcome in outcomes:
        if outcome is deciding:
            before = False
        elif outcome is not None and outcome.verdict is not None:
            remaining = outcome.verdict.remaining
            if remaining < least or (before and remaining == least):
                shown.append(None)
                continue
        shown.append(outcome)
    return shown


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


def _told(verdict: Verdict) -> tuple[bool, int, int, bool]:
    """What a client is told: whether it passed, the tokens that remain, when there is more in seconds, and if it never passes.

    Round up, because Envoy truncates to seconds, which would make clients return too early.
    """
    return verdict.admits, verdict.remaining, headers.whole_seconds(verdict.more_after), verdict.never


class _Parts:
    """The serialised parts of responses that concern one rule."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.status: Callable[[bool, int, int, bool], bytes] = lru_cache(_KEPT_PARTS)(self._status)
        self.headers: Callable[[bool, int, int, bool], bytes] = lru_cache(_KEPT_PARTS)(self._headers)
        self.admitted = self._metadata(metadata.ADMITTED, permanent=False)
        self.metadata: Callable[[str, bool], bytes] = lru_cache(_KEPT_PARTS)(self._metadata)

    def _status(self, admits: bool, remaining: int, seconds: int, _never: bool) -> bytes:
        status = _Response.DescriptorStatus(
            code=_code(admits),
            current_limit=_shown(self.rule),
            limit_remaining=min(remaining, _MOST_SHOWN),
            duration_until_reset=duration_pb2.Duration(seconds=seconds),
        )
        return _Response(statuses=[status]).SerializeToString()

    def _headers(self, admits: bool, remaining: int, seconds: int, never: bool) -> bytes:
        fields = headers.of(self.rule, admits=admits, remaining=remaining, seconds=seconds, permanent=never)
        return _with_headers(fields)

    def _metadata(self, how: str, permanent: bool) -> bytes:
        return _with_metadata(metadata.fields(self.rule, how, permanent=permanent))


def _with_headers(fields: Mapping[str, str]) -> bytes:
    added = [rls_pb2.HeaderValue(key=name, value=value) for name, value in fields.items()]
    return _Response(response_headers_to_add=added).SerializeToString()


def _with_metadata(fields: dict[str, str]) -> bytes:
    response = _Response()
    response.dynamic_metadata.update(fields)
    return response.SerializeToString()


_UNMATCHED_METADATA = _with_metadata(metadata.fields(None, metadata.REFUSED, permanent=True))


def _shown(rule: Rule) -> _RateLimit | None:
    """The limit as Envoy shows it: what a full bucket holds, so that no more can remain; its window if the protocol has it."""
    if rule.limit is None:
        return None
    unit = _UNITS.get(rule.limit.window_seconds, _RateLimit.UNKNOWN)
    return _RateLimit(name=rule.name, requests_per_unit=min(rule.limit.burst, _MOST_SHOWN), unit=unit)
