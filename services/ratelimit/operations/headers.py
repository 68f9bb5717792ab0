"""The header fields by which a client learns its limits: draft-ietf-httpapi-ratelimit-headers-10, and Retry-After (RFC 9110)."""

from __future__ import annotations

from ..model import MICROSECONDS
from .buckets import Decision, tightest


def of(decision: Decision) -> dict[str, str]:
    """Of the most restrictive rule; empty when no bucket was asked.

    The policy's quota and window are the burst and the time in which it comes back: what remains never exceeds that quota, and
    their ratio is the rate. Envoy leaves a Retry-After alone that it finds, and adds its own otherwise.
    """
    outcome = tightest([outcome for answer in decision.answers for outcome in answer.outcomes])
    if outcome is None:
        return {}
    rule, verdict = outcome.rule, outcome.verdict
    # Rounded up: never earlier than the moment it speaks of.
    seconds = whole_seconds(verdict.more_after)
    headers = {
        "RateLimit-Policy": f'"{rule.name}";q={rule.limit.burst};w={whole_seconds(rule.limit.capacity)}',
        "RateLimit": f'"{rule.name}";r={verdict.remaining};t={seconds}',
    }
    if not decision.admitted:
        headers["Retry-After"] = str(seconds)
    return headers


def whole_seconds(microseconds: int) -> int:
    """Rounded up."""
    return -(-microseconds // MICROSECONDS)
