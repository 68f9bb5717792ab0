"""Deliveries of notices: their states, the outcomes of attempts, and the pauses between them. Pure: no clock, no store."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID


class Channel(StrEnum):
    """The ways on which a notice reaches a person. The database stores these names."""

    IN_APP = "IN_APP"
    """Written in the transaction of the decision; has steps, but no row in `deliveries`."""
    EMAIL = "EMAIL"
    WEBHOOK = "WEBHOOK"
    """One delivery for each of the person's webhooks; the delivery's target is the webhook's id."""
    SYSTEM_WEBHOOK = "SYSTEM_WEBHOOK"
    """The same for each webhook of the installation: it tells administrators' programs, and does not reach the person."""


WEBHOOKS = frozenset({Channel.WEBHOOK, Channel.SYSTEM_WEBHOOK})
RECOGNISES_REPETITIONS = WEBHOOKS
"""Channels whose receivers tell a repetition by its id, so that a delivery of unknown outcome is made again until it is known."""


class DeliveryState(StrEnum):
    """The states of a delivery. The database stores these names."""

    QUEUED = "QUEUED"
    """To be tried, or tried again: nobody has taken it."""
    SENDING = "SENDING"
    """Its content is being handed over. If its lease ends in this state, the worker has died and the outcome is unknown."""
    SENT = "SENT"
    UNKNOWN = "UNKNOWN"
    """The outcome was open when the connection broke or the worker died, and it is not sent once more."""
    FAILED = "FAILED"
    """Refused for good, or impossible to send."""
    SUPPRESSED = "SUPPRESSED"
    """Not to be sent, by the person's wish or for want of somebody to send it to."""
    EXPIRED = "EXPIRED"
    """Worth nothing any more before anybody took it."""


SUPERSEDED = "SUPERSEDED"
"""Reason of a delivery that is not sent because a later one of its series makes it worthless."""

UNFINISHED = (DeliveryState.QUEUED, DeliveryState.SENDING)


class Decision(StrEnum):
    """What a step says was decided. Beside these a step names the state in which the delivery then is."""

    ADDED = "ADDED"
    """The notice stands in the person's inbox inside the application."""
    DEDUPLICATED = "DEDUPLICATED"
    """The event came again, and changed nothing."""
    HELD = "HELD"
    """It waits for a time that follows from the person's preferences; the detail says why."""
    DEFERRED = "DEFERRED"
    """The attempt came to nothing; another one follows."""
    ADDRESS_SUPPRESSED = "ADDRESS_SUPPRESSED"
    """The address gets no mail from now on."""
    SUPPRESSION_LIFTED = "SUPPRESSION_LIFTED"
    """An administrator lifted the suppression that this mail had brought about."""
    RESENT = "RESENT"
    """Somebody had a delivery sent again that had ended without arriving, as far as known."""


@dataclass(frozen=True, slots=True)
class Step:
    """What was decided about a notice on a channel, when, and why."""

    event_id: UUID
    channel: Channel
    user_id: UUID | None
    occurred_at: datetime
    decision: Decision | DeliveryState
    detail: str = ""
    target: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What a decision makes of a notice on one channel: a row in this state. What a person wishes is asked at each attempt."""

    state: DeliveryState
    reason: str = ""


@dataclass(frozen=True, slots=True)
class NewDelivery:
    """A delivery as a decision writes it."""

    id: UUID
    event_id: UUID
    channel: Channel
    target: str
    user_id: UUID | None
    kind: str
    state: DeliveryState
    reason: str
    attempts: int
    unknowns: int
    urgent: bool
    event: bytes | None
    due_at: datetime
    expires_at: datetime
    created_at: datetime
    series: UUID | None = None
    """What it shares with those that a later one makes worthless."""
    occurred_at: datetime | None = None
    """When the event happened: its place in the series."""
    unsettled: int = 0

    def claimed(self) -> NewDelivery:
        """As a row that its writer holds: its first attempt has begun, and after its lease it is due for others."""
        return replace(self, attempts=self.attempts + 1, unsettled=1, due_at=self.due_at + FIRST_PAUSE)

    def attempt(self) -> Delivery:
        """The attempt that has begun. For a delivery that was `claimed`."""
        return Delivery(
            id=self.id,
            event_id=self.event_id,
            channel=self.channel,
            target=self.target,
            user_id=self.user_id,
            kind=self.kind,
            reason=self.reason,
            answer="",
            attempts=self.attempts,
            failures=0,
            unknowns=self.unknowns,
            setbacks=0,
            unsettled=self.unsettled,
            event=self.event or b"",
            created_at=self.created_at,
            expires_at=self.expires_at,
        )


@dataclass(frozen=True, slots=True)
class Delivery:
    """A delivery that this worker has claimed."""

    id: UUID
    event_id: UUID
    channel: str
    target: str
    """Which one of the channel's addresses of the person; empty where there is only one."""
    user_id: UUID | None
    """None if only an address is known, as with codes."""
    kind: str
    """A Kind, unless a later version wrote the row."""
    reason: str
    answer: str
    attempts: int
    """The number of the attempt: the fence of whatever is recorded about it."""
    failures: int
    """Attempts that ended in an error that nobody foresaw."""
    unknowns: int
    """Attempts of unknown outcome."""
    setbacks: int
    """Attempts that failed for whatever reason; not those that waited for their turn, were handed back, or whose worker died."""
    unsettled: int
    """Claims since the last outcome, this one included: the workers before this one died."""
    event: bytes
    created_at: datetime
    expires_at: datetime

    @property
    def life(self) -> timedelta:
        return self.expires_at - self.created_at


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of an attempt. QUEUED: another one follows."""

    state: DeliveryState
    reason: str = ""
    """UPPER_SNAKE, permanent."""
    answer: str = ""
    """The numbers of the other side's reply; never its words, which often quote addresses."""
    retry_after: timedelta | None = None
    """The pause before the next attempt, if the other side or a limit names one."""
    setback: bool = True
    """Whether the attempt failed, so that the pauses grow. Not if it only waits for its turn."""
    unforeseen: bool = False
    unknown: bool = False


Pause = Callable[[int, timedelta], timedelta]
"""The pause after so many failures of a delivery with this life."""

LONGEST_PAUSE = timedelta(minutes=30)
"""RFC 5321, 4.5.4.1: at least 30 minutes, but that is meant for hosts, and our mail server has a queue of its own."""

FIRST_PAUSE = timedelta(seconds=1)
_PARTS_OF_A_LIFE = 20


def growing_pause(jitter: Callable[[], float]) -> Pause:
    """Doubles from a second to half an hour, or to a twentieth of a shorter life; `jitter` gives numbers from 0 to 1.

    A code that lives for ten minutes is so tried at least every thirty seconds, also when its server was away for the half of them.
    The jitter takes up to a half, so that what failed together does not come back together.
    """

    def pause(failures: int, life: timedelta) -> timedelta:
        longest = min(LONGEST_PAUSE, life / _PARTS_OF_A_LIFE).total_seconds()
        seconds = min(FIRST_PAUSE.total_seconds() * 2.0 ** min(max(failures - 1, 0), 20), longest)
        return timedelta(seconds=seconds * (1 - jitter() / 2))

    return pause


_LONGEST_WAIT_FOR_A_TURN = timedelta(seconds=15)
"""The longest pause of a delivery that a rate limit puts off, unless the limit names a longer one."""


def wait_before_next(delivery: Delivery, outcome: Outcome, pause: Pause, *, died: bool) -> timedelta:
    """The pause before the next attempt. It grows by failures alone; if the worker `died`, by those that did one after another."""
    count = delivery.setbacks + 1
    if died:
        count = delivery.unsettled
    elif not outcome.setback:
        # Longer for what has waited for its turn often: a backlog would otherwise ask all the time.
        count = delivery.attempts - delivery.setbacks
    wait = pause(count, delivery.life)
    if outcome.retry_after is None:
        return wait
    return max(outcome.retry_after, min(wait, _LONGEST_WAIT_FOR_A_TURN))
