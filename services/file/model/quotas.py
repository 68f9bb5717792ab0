"""Quotas of what a person stores and uploads, as arithmetic."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

DAY = timedelta(days=1)
_SHORTEST_WAIT = timedelta(seconds=1)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a person may have and do."""

    stored_bytes: int
    """Of files that are pending, checked or ready."""
    files: int
    """Such files."""
    bytes_a_day: int
    """Of files created within 24 hours; those deleted, rejected or expired meanwhile count."""
    files_a_day: int
    """Such files."""


@dataclass(frozen=True, slots=True)
class Usage:
    """What a person has, before another file."""

    stored_bytes: int
    files: int
    bytes_of_day: int
    files_of_day: int


@dataclass(frozen=True, slots=True)
class Exceeded:
    """A quota that a file does not fit into."""

    quota: str
    limit: int
    daily: bool


def exceeded(usage: Usage, size: int, limits: Limits) -> Exceeded | None:
    """The first quota that a file of this size would exceed."""
    if usage.files + 1 > limits.files:
        return Exceeded("files", limits.files, daily=False)
    if usage.stored_bytes + size > limits.stored_bytes:
        return Exceeded("bytes", limits.stored_bytes, daily=False)
    if usage.files_of_day + 1 > limits.files_a_day:
        return Exceeded("files_a_day", limits.files_a_day, daily=True)
    if usage.bytes_of_day + size > limits.bytes_a_day:
        return Exceeded("bytes_a_day", limits.bytes_a_day, daily=True)
    return None


def wait_for_day(day: Sequence[tuple[datetime, int]], size: int, limits: Limits, now: datetime) -> timedelta | None:
    """The time until a file of this size fits into the quotas of a day; None if no wait helps.

    `day` holds when each file of the last 24 hours was created and its bytes, oldest first.
    """
    if size > limits.bytes_a_day or not limits.files_a_day:
        return None
    files, stored = len(day), sum(each for _, each in day)
    for created_at, each in day:
        files, stored = files - 1, stored - each
        if files + 1 <= limits.files_a_day and stored + size <= limits.bytes_a_day:
            return max(created_at + DAY - now, _SHORTEST_WAIT)
    return _SHORTEST_WAIT
