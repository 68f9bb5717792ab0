"""What a channel of delivery is to the loop that delivers. A further channel is a module beside this one and `email`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Protocol
from uuid import UUID

from ..adapters.smtp import Handover
from ..model.deliveries import Delivery, Outcome
from .facts import Reading

HandOver = Callable[[Handover], Awaitable[None]]
"""Hands the content over and keeps the handover up to date. Raises TryAgain, Refused, OutcomeUnknown or Undeliverable."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A delivery of which nothing is left to do but the handover."""

    hand_over: HandOver
    address_digest: bytes | None = None
    """The keyed digest of the address, for a channel with suppressions: while it is suppressed, the handover does not begin."""
    suppressed: Callable[[], Awaitable[None]] | None = None
    """Asked if it is suppressed. Raises Undeliverable, unless this delivery goes there all the same."""


class Undeliverable(Exception):
    """Raised when the channel itself knows the outcome: by `prepare` before anything is handed over, or by the handover."""

    def __init__(self, outcome: Outcome) -> None:
        super().__init__(outcome.reason)
        self.outcome = outcome


class Waits(Exception):
    """Raised when the delivery is to be tried at a later time, which is recorded already."""


class StoryPages(Protocol):
    """Where stories are read, asked for when a mail goes, so that no link is stored. Both raise MeshError."""

    async def page_of(self, story_id: UUID) -> str | None:
        """The path of a story's page; empty if its owner took the link back, None if the story is gone."""
        ...

    async def pages_of(self, story_ids: Collection[UUID]) -> Mapping[UUID, str]:
        """The same of up to 100 stories by one call; those that are gone are missing."""
        ...


class DeliveryChannel(Protocol):
    """One way on which deliveries go."""

    async def prepare(self, delivery: Delivery, reading: Reading) -> Prepared:
        """Do all that can be done before the handover: find the address, check it, render.

        Raises Undeliverable, and MeshError while a peer cannot answer. An attempt that breaks off here has sent nothing.
        """
        ...
