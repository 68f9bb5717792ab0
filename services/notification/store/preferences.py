"""What people have chosen to be told. A person without a row has the defaults."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Integer, bindparam, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.engine.row import RowMapping

from kit.data.database import Transaction

from ..model.deliveries import Channel
from ..model.local_time import DailyRange
from ..model.preferences import Preferences, Timing
from ..tables import preferences

_CLASS = 0x70726566
"""The first of the two numbers of our advisory locks; those of erasures have one number."""

# Built once, because every mail runs them.
_LOCK = select(func.pg_advisory_xact_lock(bindparam("class", type_=Integer), bindparam("number", type_=Integer)))
_FIND = select(preferences).where(preferences.c.user_id == bindparam("person"))


async def lock(tx: Transaction, user_id: UUID) -> None:
    """Hold off other changes of the person's preferences, and other verdicts that follow from them, until the transaction ends.

    A lock of the person instead of the row, which most people do not have.
    """
    await tx.execute(_LOCK, {"class": _CLASS, "number": (user_id.int & 0xFFFFFFFF) - (1 << 31)})


async def find(tx: Transaction, user_id: UUID) -> Preferences:
    row = (await tx.execute(_FIND, {"person": user_id})).mappings().one_or_none()
    return _preferences(row) if row else Preferences(user_id)


async def save(tx: Transaction, changed: Preferences, now: datetime) -> None:
    """Store the preferences of the person, whom the caller has locked."""
    values = _values(changed, now)
    statement = insert(preferences).values(values)
    await tx.execute(statement.on_conflict_do_update(index_elements=["user_id"], set_=values))


def _values(person: Preferences, now: datetime) -> dict[str, Any]:
    choices: dict[str, dict[str, str]] = {}
    for (kind, channel), timing in person.choices.items():
        choices.setdefault(kind, {})[channel] = timing
    return {
        "user_id": person.user_id,
        "language": person.language,
        "time_zone": person.time_zone,
        "paused": person.paused,
        "paused_until": person.paused_until,
        "quiet_start": person.quiet_hours.start if person.quiet_hours else None,
        "quiet_end": person.quiet_hours.end if person.quiet_hours else None,
        "digest_time": person.digest_time,
        "digest_weekday": person.digest_weekday,
        "mails_per_day": person.mails_per_day,
        "choices": choices,
        "changed_at": now,
    }


def _preferences(row: RowMapping) -> Preferences:
    return Preferences(
        user_id=row["user_id"],
        language=row["language"],
        time_zone=row["time_zone"],
        paused=row["paused"],
        paused_until=row["paused_until"],
        quiet_hours=DailyRange(row["quiet_start"], row["quiet_end"]) if row["quiet_start"] is not None else None,
        digest_time=row["digest_time"],
        digest_weekday=row["digest_weekday"],
        mails_per_day=row["mails_per_day"],
        choices={
            (kind, Channel(channel)): Timing(timing)
            for kind, timings in row["choices"].items()
            for channel, timing in timings.items()
            # A later version may have stored others.
            if channel in _CHANNELS and timing in _TIMINGS
        },
    )


_CHANNELS = frozenset(Channel)
_TIMINGS = frozenset(Timing)
