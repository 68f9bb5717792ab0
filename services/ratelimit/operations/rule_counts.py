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

from ..model.decisions import Decision
from ..model.rules import Rule, RuleSet

log = logging.getLogger(__name__)

ADMITTED, REFUSED, SHADOW = "admitted", "refused", "shadow"
_LOG_EVERY_SECONDS = 60.0


class RuleCounts:
    """Plain numbers, because a counter of OpenTelemetry costs several microseconds for each call."""

    def __init__(self, rules: Callable[[], RuleSet], clock: Callable[[], float] = monotonic) -> None:
        self._rules = rules
        self._clock = clock
        self._counts: Counter[tuple[str, str, str]] = Counter()
        self._unmatched: Counter[str] = Counter()
        self._in_shadow: dict[tuple[str, str], tuple[float, int]] = {}
        """By domain and rule: when the log told of it last, and the calls since."""

    def add(self, decision: Decision) -> None:
        """Count a decision. An admission counts where the call as a whole passed, because otherwise nothing was debited."""
        admitted = decision.admitted
        counts, name = self._counts, decision.domain
        for answer in decision.answers:
            for outcome in answer.outcomes:
                rule = outcome.rule
                if not outcome.exceeded:
                    if admitted:
                        counts[name, rule.name, ADMITTED] += 1
                elif rule.shadow or decision.shadow:
                    counts[name, rule.name, SHADOW] += 1
                    self._tell(name, rule.name)
                else:
                    counts[name, rule.name, REFUSED] += 1
            if answer.denied_unmatched:
                self._unmatched[name] += 1
                if decision.shadow:
                    self._tell(name, "")

    def of(self, rule: Rule, verdict: str) -> int:
        return self._counts[rule.domain, rule.name, verdict]

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
        return [
            Observation(self.of(rule, verdict), {"domain": rule.domain, "rule": rule.name, "verdict": verdict})
            for rule in self._rules().rules
            for verdict in (ADMITTED, REFUSED, SHADOW)
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
