"""Header fields that tell a client its limits: draft-ietf-httpapi-ratelimit-headers-10, and Retry-After (RFC 9110)."""

from __future__ import annotations

from ..model import MICROSECONDS
from ..model.rules import Rule


def of(rule: Rule, *, admits: bool, remaining: int, seconds: int, permanent: bool = False) -> dict[str, str]:
    """The fields of a call whose most restrictive rule this is: the tokens that remain, and when there is more.

    The policy's quota and window are the burst and the time in which it refills, or a quota and its period: what remains never
    exceeds that quota, and the quotient is the rate. Envoy shows the same quota, remainder and time in its x-ratelimit-* fields.
    A call that can never pass gets no Retry-After, which would be a promise.

    They follow from these values alone: serialised, they are kept for the next call with the same ones.
    """
    if rule.limit is None:
        return {}
    fields = {
        "RateLimit-Policy": f'"{rule.name}";q={rule.limit.burst};w={rule.limit.window_seconds}',
        "RateLimit": f'"{rule.name}";r={remaining};t={seconds}',
    }
    if not admits and not permanent:
        fields["Retry-After"] = str(seconds)
    return fields


def whole_seconds(microseconds: int) -> int:
    """Microseconds as whole seconds, rounded up."""
    return -(-microseconds // MICROSECONDS)
