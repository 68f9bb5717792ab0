"""Header fields that tell a client its limits: draft-ietf-httpapi-ratelimit-headers-10, and Retry-After (RFC 9110)."""

from __future__ import annotations

from ..model import MICROSECONDS
from .buckets import Decision, tightest


def of(decision: Decision) -> dict[str, str]:
    """The fields of the most restrictive rule; empty if no bucket was checked.

    The policy's quota and window are the burst and the time in which it refills: the remaining tokens never exceed that quota, and
    the quotient is the rate. Envoy keeps a Retry-After that is present, and adds its own otherwise.
    """
    outcome = tightest([outcome for answer in decision.answers for outcome in answer.outcomes])
    if outcome is None:
        return {}
    rule, verdict = outcome.rule, outcome.verdict
    # Rounded up, so that a client never returns too early.
    seconds = whole_seconds(verdict.more_after)
    headers = {
        "RateLimit-Policy": f'"{rule.name}";q={rule.limit.burst};w={whole_seconds(rule.limit.capacity)}',
        "RateLimit": f'"{rule.name}";r={verdict.remaining};t={seconds}',
    }
    if not decision.admitted:
        headers["Retry-After"] = str(seconds)
    return headers


def whole_seconds(microseconds: int) -> int:
    """Microseconds as whole seconds, rounded up."""
    return -(-microseconds // MICROSECONDS)
