"""Keyset pages, newest first: a page token names the last row seen, so that new rows never shift a page (AIP-158)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar
from uuid import UUID

from kit.errors import InvalidArgument, Violation
from kit.identity.signing import Signer

DEFAULT_SIZE = 20


class Identified(Protocol):
    @property
    def id(self) -> UUID: ...


T = TypeVar("T", bound=Identified)


def _id_of(item: Identified) -> UUID:
    return item.id


@dataclass(frozen=True, slots=True)
class Page(Generic[T]):
    items: tuple[T, ...]
    next_token: str
    """Empty on the last page."""


@dataclass(frozen=True, slots=True)
class PageRequest:
    size: int
    before: UUID | None
    """Only rows with a smaller id, or whatever `place` names: ids are UUIDv7, so this is also the order of creation."""


class Pages:
    """Turns page tokens into positions and back. A token is bound to its query, including the caller."""

    def __init__(self, signer: Signer) -> None:
        self._signer = signer

    def request(self, query: str, page_size: int, page_token: str) -> PageRequest:
        """Raises InvalidArgument for a token that was not handed out for this query."""
        size = page_size or DEFAULT_SIZE
        if not page_token:
            return PageRequest(size, None)
        position = self._signer.open(f"page:{query}", page_token)
        if position is None:
            raise InvalidArgument(
                [Violation("page_token", "is not a token that this list handed out", "PAGE_TOKEN_INVALID")]
            )
        return PageRequest(size, UUID(position))

    def page(self, query: str, size: int, rows: Sequence[T], *, place: Callable[[T], UUID] = _id_of) -> Page[T]:
        """`rows` holds one more than `size` when there is a next page. `place` gives the UUID by which they are sorted."""
        items = tuple(rows[:size])
        more = len(rows) > size
        return Page(items, self._signer.sign(f"page:{query}", str(place(items[-1]))) if more else "")
