"""Writes times: as clocks in the reader's time zone show them, with the name of the zone, in the language of the letter."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from zoneinfo import ZoneInfo

from babel import Locale, UnknownLocaleError
from babel.dates import format_date, format_time, get_timezone_name

from ..local_time import zone_of

_LOCALES: Mapping[str, str] = {"en": "en_GB"}
"""The locale of a language whose own is not meant: with the day before the month and 24 hours, an English time reads the same way
everywhere. Other languages are their own."""

_UTC = "UTC"


class Moments:
    """Writes times for one reader. A zone that is unknown, or is not in the database any more, is UTC, and the text says so."""

    def __init__(self, time_zone: str, language: str, now: datetime) -> None:
        """`time_zone` is an IANA name; `now` tells which times are of today."""
        self._zone = zone_of(time_zone)
        self._locale = _locale(language)
        self._now = now

    def moment(self, time: datetime) -> str:
        """The day, the time of day and the zone, such as "29 November 2026, 19:05 (Central European Standard Time)"."""
        local = time.astimezone(self._zone)
        return f"{format_date(local, 'long', locale=self._locale)}, {self._clock(local)}"

    def clock(self, time: datetime) -> str:
        """The time of day and the zone; with the day if that is not today's."""
        local = time.astimezone(self._zone)
        is_today = local.date() == self._now.astimezone(self._zone).date()
        return self._clock(local) if is_today else self.moment(time)

    def _clock(self, local: datetime) -> str:
        return f"{format_time(local, 'short', locale=self._locale)} ({_name(local, self._zone, self._locale)})"


def _name(local: datetime, zone: ZoneInfo, locale: Locale) -> str:
    """The zone's name at that time, which tells the two hours of a clock change apart."""
    return _UTC if zone.key == _UTC else get_timezone_name(local, locale=locale)


def _locale(language: str) -> Locale:
    try:
        return Locale.parse(_LOCALES.get(language, language))
    except (UnknownLocaleError, ValueError):
        return Locale.parse(_LOCALES["en"])
