"""Pages of what administrators list. Every administrator sees the same lists, so page tokens need no signature."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from kit.data.paging import DEFAULT_SIZE
from kit.errors import InvalidArgument, Violation
from kit.runtime import base64url

from ..model.administration import Offender, RecordedChange
from ..model.overrides import Override
from ..model.rules import Rule
from ..store.administration import AdminStore
from .overrides import Overrides
from .refusals import Offenders
from .reload import LoadedRules

T = TypeVar("T")

_MINUTES = 10

_PLACE = re.compile(r"\d{1,6}")
_MADE = re.compile(r"\d{1,18}:[0-9a-f-]{36}")
_CHANGE = re.compile(r"\d{1,15}-\d{1,15}")


@dataclass(frozen=True)
class ListPage(Generic[T]):
    items: tuple[T, ...]
    next_token: str
    """Empty on the last page."""


@dataclass(frozen=True)
class RulePage:
    """A page of rules, and what is known of all."""

    rules: tuple[Rule, ...]
    loaded: LoadedRules
    next_token: str


class Listing:
    """Lists rules in force, changes, grants and bans, and who is refused."""

    def __init__(
        self, loaded: Callable[[], LoadedRules], admin: AdminStore, overrides: Overrides, offenders: Offenders
    ) -> None:
        self._loaded = loaded
        self._admin = admin
        self._overrides = overrides
        self._offenders = offenders

    def rules(self, page_size: int, page_token: str) -> RulePage:
        """Raises InvalidArgument for a foreign page token, also one of rules that are in force no more."""
        loaded = self._loaded()
        rules = (*loaded.rules.rules, *loaded.rules.leases)
        page = _sliced(f"rules of {loaded.digest}", rules, page_size, page_token)
        return RulePage(page.items, loaded, page.next_token)

    async def changes(self, page_size: int, page_token: str) -> ListPage[RecordedChange]:
        """Changes, newest first. Raises InvalidArgument for a foreign page token, RedisError and OSError."""
        size = page_size or DEFAULT_SIZE
        found = await self._admin.changes(size + 1, _position("changes", page_token, _CHANGE))
        return ListPage(tuple(found[:size]), _token("changes", found[size - 1].id) if len(found) > size else "")

    async def overrides(self, page_size: int, page_token: str) -> ListPage[Override]:
        """Grants and bans, newest first. Raises InvalidArgument for a foreign page token, RedisError and OSError.

        A page goes on after the last one that was shown, whatever was made or lifted meanwhile.
        """
        after = _position("overrides", page_token, _MADE)
        at, _, last = after.partition(":")
        found = [
            each for each in await self._overrides.all() if not after or (each.made_at, str(each.id)) < (int(at), last)
        ]
        size = page_size or DEFAULT_SIZE
        page = tuple(found[:size])
        more = len(found) > size
        return ListPage(page, _token("overrides", f"{page[-1].made_at}:{page[-1].id}") if more else "")

    async def offenders(self, minutes: int, page_size: int, page_token: str) -> ListPage[tuple[Offender, int]]:
        """Whose calls were refused how often. Raises InvalidArgument for a foreign page token, RedisError and OSError."""
        found = await self._offenders.most(minutes or _MINUTES)
        return _sliced(f"offenders of {minutes}", found, page_size, page_token)


def _sliced(scope: str, items: Sequence[T], page_size: int, page_token: str) -> ListPage[T]:
    begin = int(_position(scope, page_token, _PLACE) or 0)
    end = begin + (page_size or DEFAULT_SIZE)
    return ListPage(tuple(items[begin:end]), _token(scope, str(end)) if end < len(items) else "")


def _token(scope: str, position: str) -> str:
    return base64url.encode(f"{scope} {position}".encode())


def _position(scope: str, token: str, form: re.Pattern[str]) -> str:
    """The position in a token of this scope; empty without a token."""
    if not token:
        return ""
    try:
        told, _, position = base64url.decode(token).decode().rpartition(" ")
    except ValueError:
        told = position = ""
    if told != scope or not form.fullmatch(position):
        raise InvalidArgument(
            [Violation("page_token", "is not a token that this list handed out", "PAGE_TOKEN_INVALID")]
        )
    return position
