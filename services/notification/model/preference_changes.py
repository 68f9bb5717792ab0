"""Changes of a person's preferences, and the rules that need more than the field itself. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import datetime, time
from typing import Any

from kit.errors import InvalidArgument, Violation

from .deliveries import Channel
from .local_time import DailyRange, zone_names
from .preferences import DIGESTED, KindDefaults, Preferences, Timing


@dataclass(frozen=True, slots=True)
class ChosenTiming:
    kind: str
    channel: Channel
    timing: Timing | None
    """None: the kind's default from now on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceChange:
    """New values of the fields that `changed` names. The others' values do not count."""

    changed: frozenset[str]
    language: str = ""
    time_zone: str = "UTC"
    paused: bool = False
    pause_end_time: datetime | None = None
    quiet_hours: DailyRange | None = None
    digest_time: time = time(8)
    digest_day: int = 0
    mails_per_day: int = 0
    choices: tuple[ChosenTiming, ...] = field(default=())

    def of(
        self, preferences: Preferences, kinds: Mapping[str, KindDefaults], languages: Collection[str]
    ) -> Preferences:
        """The preferences after the change. Raises InvalidArgument."""
        violations = list(self._violations(preferences, kinds, languages))
        if violations:
            raise InvalidArgument(violations[:_MOST_VIOLATIONS])
        changed = self.changed
        paused = self.paused if "paused" in changed else preferences.paused
        # A pause without an end is one of its own, not one with the end of an earlier one.
        former_end = None if "paused" in changed else preferences.paused_until
        end = self.pause_end_time if "pause_end_time" in changed else former_end
        plain: dict[str, Any] = {name: getattr(self, name) for name in changed & _PLAIN}
        plain |= {"digest_weekday": self.digest_day} if "digest_day" in changed else {}
        return replace(
            preferences,
            paused=paused,
            paused_until=end if paused else None,
            choices=self._choices(preferences.choices),
            **plain,
        )

    def _choices(self, former: Mapping[tuple[str, Channel], Timing]) -> Mapping[tuple[str, Channel], Timing]:
        if "choices" not in self.changed:
            return former
        if not self.choices:
            return {}
        chosen = {(each.kind, each.channel): each.timing for each in self.choices}
        return {key: timing for key, timing in {**former, **chosen}.items() if timing is not None}

    def _violations(
        self, preferences: Preferences, kinds: Mapping[str, KindDefaults], languages: Collection[str]
    ) -> Iterator[Violation]:
        for name in sorted(self.changed - CHANGEABLE):
            yield Violation("update_mask", f"{name[:64]} is no field that can be changed", "FIELD_UNKNOWN")
        if "language" in self.changed and self.language not in ("", *languages):
            yield Violation("language", "must be one of " + ", ".join(sorted(languages)), "LANGUAGE_UNSUPPORTED")
        if "time_zone" in self.changed and self.time_zone not in zone_names():
            yield Violation("time_zone", "must be a name of the IANA time zone database", "TIME_ZONE_UNKNOWN")
        paused = self.paused if "paused" in self.changed else preferences.paused
        if "pause_end_time" in self.changed and self.pause_end_time and not paused:
            yield Violation("pause_end_time", "needs paused", "PAUSE_INCOMPLETE")
        if "choices" in self.changed:
            yield from self._violations_of_choices(kinds)

    def _violations_of_choices(self, kinds: Mapping[str, KindDefaults]) -> Iterator[Violation]:
        times = Counter((each.kind, each.channel) for each in self.choices)
        for number, each in enumerate(self.choices):
            path, kind = f"choices[{number}]", kinds.get(each.kind)
            if kind is None or each.channel not in kind.timings:
                yield Violation(
                    path, "must be a kind and a channel that GetNotificationPreferences lists", "KIND_UNKNOWN"
                )
            elif kind.security:
                yield Violation(f"{path}.kind", "is about security, which is always sent", "KIND_NOT_CHANGEABLE")
            elif each.timing is not None and each.timing.is_digest and each.channel not in DIGESTED:
                yield Violation(f"{path}.timing", "must be OFF or AT_ONCE for this channel", "TIMING_NOT_OFFERED")
            elif times[each.kind, each.channel] > 1:
                yield Violation(path, "must name a kind and channel once", "CHOSEN_TWICE")


_MOST_VIOLATIONS = 20
"""As many as the trailers hold, in which the details travel."""

CHANGEABLE = frozenset(each.name for each in fields(PreferenceChange)) - {"changed"}
_PLAIN = frozenset({"language", "time_zone", "quiet_hours", "digest_time", "mails_per_day"})
"""Fields that preferences hold under the same name and as they are."""
