"""Deliveries and steps as administrators see them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from .deliveries import UNFINISHED, Channel, Decision, DeliveryState


@dataclass(frozen=True, slots=True)
class DeliveryRecord:
    """A delivery without its content."""

    id: UUID
    event_id: UUID
    channel: str
    target: str
    user_id: UUID | None
    kind: str
    state: DeliveryState
    reason: str
    answer: str
    attempts: int
    due_at: datetime
    expires_at: datetime
    created_at: datetime
    changed_at: datetime
    address_digest: bytes | None
    """Of the address to which the mail went last; None before the first attempt, and of other channels."""

    @property
    def unfinished(self) -> bool:
        return self.state in UNFINISHED


@dataclass(frozen=True, slots=True)
class DeliveryQuery:
    """Which deliveries are asked for; None: no limit by this."""

    user_id: UUID | None = None
    event_id: UUID | None = None
    state: DeliveryState | None = None
    since: datetime | None = None
    before: datetime | None = None
    target: str = ""
    """A webhook's id; empty: no limit by this."""

    def __str__(self) -> str:
        """What a page token is bound to."""
        return f"deliveries:{self.user_id}:{self.event_id}:{self.state}:{self.since}:{self.before}:{self.target}"


@dataclass(frozen=True, slots=True)
class StepRecord:
    """A step of a notice."""

    channel: str
    target: str
    user_id: UUID | None
    occurred_at: datetime
    decision: str
    detail: str


@dataclass(frozen=True, slots=True)
class FinalDecision:
    """What became of a notice on one channel, when nothing more follows."""

    channel: str
    target: str
    decision: str
    detail: str
    decided_at: datetime


@dataclass(frozen=True, slots=True)
class Explanation:
    """All that is known of a notice."""

    event_id: UUID
    user_id: UUID | None
    begun_at: datetime
    steps: tuple[StepRecord, ...]
    final: tuple[FinalDecision, ...]
    deliveries: tuple[DeliveryRecord, ...]


_FINAL = frozenset({Decision.ADDED, *DeliveryState}) - frozenset(UNFINISHED)
"""Steps that tell what became of a notice. The others tell what happened on the way."""


def final_decisions(steps: Sequence[StepRecord], deliveries: Sequence[DeliveryRecord]) -> tuple[FinalDecision, ...]:
    """The one final decision of each channel and target; none for a delivery that is still to be tried.

    A delivery's own row decides. Where there is none, as inside the application, the last step does that is not on the way.
    """
    rows = {(each.channel, each.target): each for each in deliveries}
    last = {(each.channel, each.target): each for each in steps if each.decision in _FINAL}
    final = []
    for way in sorted({*rows, *last}, key=lambda way: (_ORDER.get(way[0], len(_ORDER)), way)):
        row, step = rows.get(way), last.get(way)
        if row is not None and not row.unfinished:
            detail = " ".join(filter(None, (row.reason, row.answer)))
            final.append(FinalDecision(*way, row.state, detail, row.changed_at))
        elif row is None and step is not None:
            final.append(FinalDecision(*way, step.decision, step.detail, step.occurred_at))
    return tuple(final)


_ORDER: dict[str, int] = {Channel.IN_APP: 0, Channel.EMAIL: 1}
