"""Counts what each rule decided, for metrics and for the log of shadow mode.

Labels are the names of rules and domains in force, never values of descriptors, so that no caller can add time series.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable
from time import monotonic

from opentelemetry.metrics import CallbackOptions, Observation

from kit.runtime.metrics import Metrics

from ..model.decisions import Decision, Outcome
from ..model.rules import Rule, RuleSet

log = logging.getLogger(__name__)

VERDICTS = ADMITTED, REFUSED, SHADOW = "admitted", "refused", "shadow"
_LOG_EVERY_SECONDS = 60.0


class RuleCounts:
    """Plain numbers, because a counter of OpenTelemetry costs several microseconds for each call."""

    def __init__(self, rules: Callable[[], RuleSet], clock: Callable[[], float] = monotonic) -> None:
        self._rules = rules
        self._clock = clock
        self._counts: dict[tuple[str, str], dict[str, int]] = {}
        """By the names of domain and rule, then by verdict."""
        self._unmatched: Counter[str] = Counter()
        self._in_shadow: dict[tuple[str, str], tuple[float, int]] = {}
        """By domain and rule: when the log told of it last, and the calls since."""

    def add(self, decision: Decision) -> None:
        """Count a decision. An admission counts where the call as a whole passed, because otherwise nothing was debited."""
        if not decision.trying:
            self._add_counted([each for answer in decision.answers for each in answer.outcomes])
            return
        admitted, name = decision.admitted, decision.domain
        for answer in decision.answers:
            for outcome in answer.outcomes:
                rule = outcome.rule
                if not outcome.exceeded:
                    if admitted:
                        self._of(rule)[ADMITTED] += 1
                elif rule.shadow or decision.shadow:
                    self._of(rule)[SHADOW] += 1
                    self._tell(name, rule.name)
                else:
                    self._of(rule)[REFUSED] += 1
            if answer.denied_unmatched:
                self._unmatched[name] += 1
                if decision.shadow:
                    self._tell(name, "")

    def add_admitted(self, rules: Iterable[Rule], calls: int) -> None:
        """Count so many calls that passed, each with these rules, of which none is in shadow mode."""
        for rule in rules:
            self._of(rule)[ADMITTED] += calls

    def _add_counted(self, outcomes: list[Outcome]) -> None:
        """The same where every rule has counted and none is in shadow mode: almost every call, so it is made to cost little."""
        refusing = [rule for rule, verdict in outcomes if verdict is not None and verdict.wait > 0]
        if refusing:
            for rule in refusing:
                self._of(rule)[REFUSED] += 1
        else:
            for rule, _ in outcomes:
                self._of(rule)[ADMITTED] += 1

    def _of(self, rule: Rule) -> dict[str, int]:
        counts = self._counts.get(rule.counted_as)
        if counts is None:
            counts = self._counts[rule.counted_as] = dict.fromkeys(VERDICTS, 0)
        return counts

    def of(self, rule: Rule, verdict: str) -> int:
        return self._counts.get(rule.counted_as, {}).get(verdict, 0)

    def show_in(self, metrics: Metrics) -> None:
        """Show the counts of the rules in force."""
        metrics.meter.create_observable_counter(
            "storymesh_rate_limit_decisions",
            [self._observe],
            description="Calls by rule: admitted, refused, or refused but for shadow mode.",
        )
        metrics.meter.create_observable_counter(
            "storymesh_rate_limit_unmatched",
            [self._observe_unmatched],
            description="Descriptors that no rule matches, in domains that deny these.",
        )

    def _observe(self, _options: CallbackOptions) -> Iterable[Observation]:
        # A counter that first appears with a 1 shows no increase, so each begins with 0.
        # Grants and bans are told together, however many there are.
        rules = {rule.counted_as: rule for rule in self._rules().rules}
        return [
            Observation(self.of(rule, verdict), {"domain": domain, "rule": name, "verdict": verdict})
            for (domain, name), rule in rules.items()
            for verdict in VERDICTS
        ]

    def _observe_unmatched(self, _options: CallbackOptions) -> Iterable[Observation]:
        domains = {"", *(each.domain for each in self._rules().domains)}
        return [Observation(self._unmatched[domain], {"domain": domain}) for domain in sorted(domains)]

    def _tell(self, domain: str, rule: str) -> None:
        """Log the first call that shadow mode let pass, then at most once a minute how many there were."""
        now = self._clock()
        told_at, calls = self._in_shadow.get((domain, rule), (float("-inf"), 0))
        calls += 1
        if now - told_at >= _LOG_EVERY_SECONDS:
            which = f"rule {rule} of domain {domain}" if rule else f"domain {domain}, in which no rule matched,"
            log.info("shadow mode: %s would have refused %d calls since it was last told", which, calls)
            told_at, calls = now, 0
        self._in_shadow[domain, rule] = told_at, calls
