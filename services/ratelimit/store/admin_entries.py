"""How both stores for administrators bound and write what they keep."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from ipaddress import ip_network
from typing import Any
from uuid import UUID

from kit.runtime.clock import from_unix_milliseconds, milliseconds, unix_milliseconds

from ..model import Limit
from ..model.administration import Act, Change, Offender, RecordedChange
from ..model.matching import DescriptorEntry
from ..model.overrides import Override, OverrideKind

MOST_CHANGES = 1000
KEEP_CHANGES = timedelta(days=30)

MOST_OVERRIDES = 1000

KEEP_CALLS = timedelta(hours=1)

MOST_OFFENDERS = 1000
WINDOW = timedelta(minutes=10)
KEEP_REFUSALS = timedelta(minutes=90)


def windows(now: datetime, minutes: int) -> list[int]:
    """The numbers of the windows that so many minutes before now touch."""
    at, window = unix_milliseconds(now), milliseconds(WINDOW)
    return list(range((at - minutes * 60_000) // window, at // window + 1))


def offender_of(told: Any) -> Offender:
    domain, rule, entries = told
    return Offender(domain, rule, tuple((key, value) for key, value in entries))


def largest(counts: Mapping[Offender, int]) -> list[tuple[Offender, int]]:
    return sorted(counts.items(), key=lambda each: (-each[1], each[0]))


def packed_override(override: Override) -> bytes:
    limit = override.limit
    return json.dumps(
        {
            "id": str(override.id),
            "kind": override.kind,
            "domain": override.domain,
            "match": [
                [entry.key, entry.value, str(entry.network) if entry.network else None] for entry in override.match
            ],
            "limit": [limit.requests, limit.period_seconds, limit.burst] if limit else None,
            "made_at": override.made_at,
            "ends_at": override.ends_at,
            "actor_id": str(override.actor_id),
            "reason": override.reason,
        }
    ).encode()


def unpacked_override(packed: bytes) -> Override:
    told = json.loads(packed)
    return Override(
        UUID(told["id"]),
        OverrideKind(told["kind"]),
        told["domain"],
        tuple(
            DescriptorEntry(key, value, network=ip_network(network) if network else None)
            for key, value, network in told["match"]
        ),
        Limit(*told["limit"]) if told["limit"] else None,
        told["made_at"],
        told["ends_at"],
        UUID(told["actor_id"]),
        told["reason"],
    )


def packed_change(change: Change) -> bytes:
    return json.dumps([change.act, str(change.actor_id), change.reason, change.subject]).encode()


def recorded_change(identifier: str, packed: bytes) -> RecordedChange:
    act, actor_id, reason, subject = json.loads(packed)
    made_at = from_unix_milliseconds(position_of(identifier)[0])
    return RecordedChange(identifier, Change(Act(act), UUID(actor_id), reason, subject), made_at)


def position_of(identifier: str) -> tuple[int, int]:
    """The two numbers of an id of a Redis stream: milliseconds, and the place within one."""
    at, _, number = identifier.partition("-")
    return int(at), int(number)
