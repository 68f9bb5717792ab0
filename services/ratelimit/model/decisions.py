"""Decisions about calls: what each rule says, and what follows for the call."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from . import Verdict
from .rules import Action, Entries, Rule


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A description of a call, and the tokens that it costs; 0 hits only ask."""

    entries: Entries
    hits: int = 1


class Outcome(NamedTuple):
    """What one rule says of a call. Without a verdict the rule does not count: it passes or blocks."""

    rule: Rule
    verdict: Verdict | None

    @property
    def exceeded(self) -> bool:
        """Whether the rule refuses, or would if it were not in shadow mode."""
        return self.rule.action is Action.BLOCK if self.verdict is None else self.verdict.wait > 0

    @property
    def admits(self) -> bool:
        return self.rule.shadow or not self.exceeded

    @property
    def permanent(self) -> bool:
        """Whether the rule refuses a call like this one at any time."""
        if self.verdict is None:
            return self.exceeded and not self.rule.ends_at
        return self.exceeded and self.verdict.never


class Answer(NamedTuple):
    """The outcomes for one descriptor. Empty if no rule matches, or if Redis is down and the matching rules are open."""

    outcomes: tuple[Outcome, ...] = ()
    denied_unmatched: bool = False

    @property
    def admitted(self) -> bool:
        return not self.denied_unmatched and all(outcome.admits for outcome in self.outcomes)


class Decision(NamedTuple):
    """One answer per descriptor, in order. The call passes if all admit it, or if its domain is in shadow mode."""

    answers: tuple[Answer, ...]
    domain: str = ""
    shadow: bool = False
    trying: bool = False
    """Whether the domain or any of the rules is in shadow mode."""

    @property
    def admitted(self) -> bool:
        return self.shadow or all(answer.admitted for answer in self.answers)

    @property
    def permanent(self) -> bool:
        """Whether no wait helps: the call is blocked, no rule matches it, or it costs more than a limit holds."""
        return not self.shadow and any(
            answer.denied_unmatched or any(each.permanent and not each.admits for each in answer.outcomes)
            for answer in self.answers
        )


def tightest(outcomes: Sequence[Outcome]) -> Outcome | None:
    """The outcome that a client must obey: the longest refusal, else the bucket with the fewest tokens.

    Rules in shadow mode ask nothing of a client, nor do those that only pass.
    """
    if len(outcomes) == 1:
        return outcomes[0] if outcomes[0].rule.asks else None
    return min([each for each in outcomes if each.rule.asks], key=_looseness, default=None)


def _looseness(outcome: Outcome) -> tuple[bool, bool, int]:
    verdict = outcome.verdict
    if verdict is None:
        return outcome.admits, False, 0
    if verdict.wait > 0:
        return False, not verdict.never, -verdict.wait
    return True, True, verdict.remaining
