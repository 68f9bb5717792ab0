"""The events of an inbox that wait for the next batch of their handler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from uuid import UUID

from .envelope import Undecodable, from_bytes
from .handlers import BatchHandler, Handler
from .inbox_outcomes import Item
from .inbox_stream import InboxEntry

_MOST = 100
"""Events that wait or are handled in batches: more would hold a transaction, its locks and its memory for long."""


@dataclass(eq=False)
class Lane:
    """The events of one handler, of which one batch at a time is handled."""

    handler: BatchHandler
    waiting: list[Item] = field(default_factory=list)
    handling: list[Item] = field(default_factory=list)

    def begin(self) -> list[Item]:
        """The next batch: all that waits, up to the second copy of an event, which the batch after it finds recorded."""
        seen: set[UUID] = set()
        for _, event in self.waiting:
            if event.id in seen:
                break
            seen.add(event.id)
        self.handling, self.waiting = self.waiting[: len(seen)], self.waiting[len(seen) :]
        return self.handling


class InboxBatches:
    """The lanes of one consumer."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        together = {type_: each for type_, each in handlers.items() if isinstance(each, BatchHandler)}
        lanes = {handler: Lane(handler) for handler in together.values()}
        self._lanes = {type_: lanes[handler] for type_, handler in together.items()}
        self.lanes = tuple(lanes.values())
        self.everything = len(together) == len(handlers)
        """Whether every event of the inbox may go together with others."""

    @property
    def free(self) -> int:
        """How many more may wait."""
        return _MOST - sum(len(lane.waiting) + len(lane.handling) for lane in self.lanes)

    def __contains__(self, entry: InboxEntry) -> bool:
        return any(entry.id == other.id for lane in self.lanes for other, _ in (*lane.waiting, *lane.handling))

    def add(self, entry: InboxEntry) -> Lane | None:
        """The lane in which the entry waits from now on. None if it is to be handled by itself.

        What comes from a dead worker may have killed it, and what failed before may fail again: neither shall befall others.
        """
        if not self.lanes or entry.claimed or entry.failures:
            return None
        try:
            event = from_bytes(entry.data)
        except Undecodable:
            return None
        if lane := self._lanes.get(event.type):
            lane.waiting.append((entry, event))
        return lane

    def due(self) -> Sequence[Lane]:
        """Lanes whose next batch may begin."""
        return [lane for lane in self.lanes if lane.waiting and not lane.handling]

    def withdraw(self) -> list[InboxEntry]:
        """Takes out all that wait, and returns them."""
        entries = []
        for lane in self.lanes:
            entries += [entry for entry, _ in lane.waiting]
            lane.waiting = []
        return entries

    def remove(self, entry: InboxEntry) -> bool:
        """Takes out an entry that waits. False if it does not."""
        for lane in self.lanes:
            for item in lane.waiting:
                if item[0].id == entry.id:
                    lane.waiting.remove(item)
                    return True
        return False
