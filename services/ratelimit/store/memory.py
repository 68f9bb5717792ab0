"""Token buckets in the memory of one process, with the semantics of those in Redis."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ..model import Call, State, Taken, take_in_order

_SWEEP_AT_LEAST = 1024


class MemoryBucketStore:
    """Buckets that end with the process, and that no other process sees."""

    def __init__(self, now: Callable[[], int]) -> None:
        """`now` returns microseconds since 1970."""
        self._now = now
        self._states: dict[str, State] = {}
        self._sweep_at = _SWEEP_AT_LEAST

    def __len__(self) -> int:
        """The number of buckets that it keeps."""
        return len(self._states)

    def take(self, calls: Sequence[Call], *, seconds: float) -> list[Taken]:
        """Decide the calls as `BucketStore` says; `seconds` are not needed."""
        at = self._now()
        results = take_in_order(calls, self._states, at=at)
        if len(self._states) > self._sweep_at:
            # A bucket that is full needs no state. Sweep again only when the state has doubled, so that a call pays for a few keys.
            self._states = {key: state for key, state in self._states.items() if over_at(state) > at}
            self._sweep_at = max(2 * len(self._states), _SWEEP_AT_LEAST)
        return results

    def forget(self, keys: Sequence[str], *, seconds: float) -> int:
        """Fill the buckets with these keys."""
        at = self._now()
        return sum(over_at(self._states.pop(key, 0)) > at for key in keys)


def over_at(state: State) -> int:
    """The instant from which a state says no more than none does."""
    return state[0] if isinstance(state, tuple) else state
