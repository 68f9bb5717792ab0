"""Notifications inside the application: what they are about, who acted, how they are grouped, and how they change."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from . import Kind
from .acting import acting

ACTORS_SHOWN = 3
"""The actors of a grouped notification that are shown by name to programs; the title names fewer."""

_TEXT_LENGTH = 300


class TargetType(StrEnum):
    ACCOUNT = "ACCOUNT"
    STORY = "STORY"
    SESSION = "SESSION"
    WEBHOOK = "WEBHOOK"


@dataclass(frozen=True, slots=True)
class Target:
    """What a notification is about."""

    type: TargetType
    id: UUID


@dataclass(frozen=True, slots=True)
class Actor:
    """A person who did what a notification tells of."""

    id: UUID
    name: str


@dataclass(frozen=True, slots=True)
class ShortText:
    """The words of a notification: what the whole letter says in a line and a sentence or two."""

    title: str
    """One line. With an actor it is what follows the names, such as "liked your post"."""
    body: str = ""
    language: str = ""
    """The language of both, as a BCP 47 tag. Empty: unknown, as with texts of the former version."""

    def cut(self) -> ShortText:
        """The text with a body of at most 300 characters."""
        body = self.body if len(self.body) <= _TEXT_LENGTH else self.body[: _TEXT_LENGTH - 1].rstrip() + "…"
        return replace(self, body=body)


@dataclass(frozen=True, slots=True)
class Notification:
    id: UUID
    user_id: UUID
    type: Kind
    text: ShortText
    target: Target
    created_at: datetime
    read_at: datetime | None = None
    grouped: bool = False
    """Joins the unread notification of the same person, type and target instead of standing beside it."""
    actors: tuple[Actor, ...] = ()
    """The latest first, at most ACTORS_SHOWN."""
    actor_count: int = 0
    latest_id: UUID | None = None
    """A UUIDv7 of the last occurrence, which gives the place in the list; None: the id gives it."""
    updated_at: datetime | None = None
    """The time of the last occurrence; None: the first was the only one."""

    @property
    def title(self) -> str:
        """The line to show, with the actors at its beginning."""
        if not self.actor_count:
            return self.text.title
        names = [actor.name for actor in self.actors]
        return f"{acting(names, self.actor_count, self.text.language)} {self.text.title}"

    @property
    def place(self) -> UUID:
        """The place in the list, which is in the order of the last occurrences."""
        return self.latest_id or self.id

    def joined(
        self, text: ShortText, actor: Actor | None, *, is_new: bool, occurrence: UUID, now: datetime
    ) -> Notification:
        """The notification after it has happened once more. `is_new`: the actor is not among those counted already."""
        others = tuple(each for each in self.actors if actor is None or each.id != actor.id)
        return replace(
            self,
            text=text,
            actors=((actor, *others) if actor else others)[:ACTORS_SHOWN],
            actor_count=self.actor_count + (actor is not None and is_new),
            latest_id=occurrence,
            updated_at=now,
        )


def first_sentences(letter: str) -> str:
    """The first paragraph after the greeting of a letter that the former version stored as the body of a notification."""
    paragraphs = letter.split("\n\n")
    greeted = len(paragraphs) > 1 and paragraphs[0].startswith("Hello") and "\n" not in paragraphs[0]
    return paragraphs[1] if greeted else letter


class ChangeKind(StrEnum):
    """How a person's notifications have changed. The database stores these names."""

    ADDED = "ADDED"
    UPDATED = "UPDATED"
    """It was grouped with another occurrence, or an actor was erased."""
    READ = "READ"
    DELETED = "DELETED"
    ALL_READ = "ALL_READ"
    EXPIRED = "EXPIRED"
    """Those whose last occurrence is before `before_at` are not kept any more."""


@dataclass(frozen=True, slots=True)
class Change:
    """One change. The changes of a person are numbered 1, 2, 3 and so on, so that a missing one shows."""

    number: int
    mark: UUID | None
    kind: ChangeKind
    unread: int
    """The number of unread notifications after it."""
    occurred_at: datetime
    notification_id: UUID | None = None
    before_at: datetime | None = None
    notification: Notification | None = None
    """Of ADDED and UPDATED the notification as it is by now; None if it has been deleted since."""

    @property
    def head(self) -> Head:
        """The state after it."""
        return Head(ChangePosition(self.number, self.mark), self.unread)


@dataclass(frozen=True, slots=True)
class ChangePosition:
    """The place right after a change."""

    number: int
    mark: UUID | None
    """Random for each change: another one means that the database was restored from a backup, and its number given again.

    None at the beginning, of a change that was pruned, and of those from before there were marks.
    """


@dataclass(frozen=True, slots=True)
class Head:
    """The state after a person's latest change."""

    position: ChangePosition
    unread: int

    @property
    def number(self) -> int:
        return self.position.number


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A watch begins here: changes before it are not told."""


@dataclass(frozen=True, slots=True)
class Heartbeat:
    pass


@dataclass(frozen=True, slots=True)
class Reconnect:
    after: timedelta


Step = Snapshot | Change | Heartbeat | Reconnect


@dataclass(frozen=True, slots=True)
class Told:
    """A step of a watch with what goes with each: the token that resumes after it, and the unread count."""

    step: Step
    resume_token: str
    unread: int
