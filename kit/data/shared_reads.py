"""Shared reads: calls that look up rows of one kind at the same time read them by one statement.

Nobody waits for a statement to fill, and a statement begins after each of its calls asked, so a row is never older than the
question.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, TypeVar

from kit.runtime.batches import Batcher

from .database import DATABASE_AWAY, Database, Transaction

K = TypeVar("K")
R = TypeVar("R")

_MOST = 64
"""Calls that share a statement, whose rows are in memory together."""

_PATIENCE_SECONDS = 0.01


class SharedRead(Generic[K, R]):
    """Finds a row by its key, together with others.

    Calls that ask for one key at the same time get the same object, so rows must be immutable.
    """

    def __init__(
        self,
        db: Database,
        read: Callable[[Transaction, Sequence[K]], Awaitable[Mapping[K, R]]],
        *,
        most: int = _MOST,
        patience_seconds: float = _PATIENCE_SECONDS,
    ) -> None:
        """`read` gets different keys, sends a single statement, and returns the rows that there are.

        At most so many calls share a statement. One that takes longer than `patience_seconds` delays no other call.
        """
        self._db = db
        self._read = read
        self._calls = Batcher(
            self._read_all,
            most=most,
            shared=DATABASE_AWAY,
            patience_seconds=patience_seconds,
            leaves_at_once=True,
        )

    async def find(self, key: K) -> R | None:
        """None if there is no such row. Raises what the statement raises, and DependencyAway like `Database.single`.

        A caller that is cancelled leaves at once; the statement goes on for the others, within its own bound.
        """
        return await self._calls.add(key)

    async def _read_all(self, keys: Sequence[K]) -> Sequence[R | None]:
        async with self._db.single() as tx:
            rows = await self._read(tx, list(dict.fromkeys(keys)))
        return [rows.get(key) for key in keys]
