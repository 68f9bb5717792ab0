"""Dynamic metadata of an answer: which rule decided, and how. Envoy hands it to the access log and to its local replies."""

from __future__ import annotations

from mesh.edge_protocol import RATE_LIMIT_BANNED, RATE_LIMIT_UNSATISFIABLE

from ..model.decisions import Decision, Outcome
from ..model.overrides import OverrideKind
from ..model.rules import Rule

ADMITTED, REFUSED, SHADOW = "admitted", "refused", "shadow"


def of(decision: Decision, deciding: Outcome | None, admitted: bool) -> tuple[Outcome | None, str]:
    """The outcome to name, and how it decided. A call that only shadow mode let pass names the rule that would have refused."""
    if not admitted:
        unmatched = any(answer.denied_unmatched for answer in decision.answers)
        return (None if unmatched else deciding), REFUSED
    for answer in decision.answers if decision.trying else ():
        for outcome in answer.outcomes:
            if outcome.exceeded:
                return outcome, SHADOW
            # A rule that only passes is named if no limit is.
            deciding = deciding or outcome
    return deciding, ADMITTED


def fields(rule: Rule | None, how: str, *, permanent: bool) -> dict[str, str]:
    """The metadata. It names rules and never values of descriptors, which may be addresses and users."""
    told = {"verdict": how}
    if rule is not None:
        told["rule"] = rule.name
    if how == REFUSED and rule is not None and rule.group == OverrideKind.BAN:
        told["reason"] = RATE_LIMIT_BANNED
    elif permanent:
        told["reason"] = RATE_LIMIT_UNSATISFIABLE
    return told
