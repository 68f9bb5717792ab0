"""What a servicer is told of a call that kit's own transport serves: all that needs no sending."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import grpc

_NO_DEADLINE = float(2**63 - 1)

if TYPE_CHECKING:
    # Generic to the type checker only.
    _ServicerContext = grpc.aio.ServicerContext[Any, Any]
else:
    _ServicerContext = grpc.aio.ServicerContext

Metadata = Sequence[tuple[str, str | bytes]]


class Metadatum(NamedTuple):
    """As grpcio hands it over: some instrumentation reads the names."""

    key: str
    value: str | bytes


class ServedCall(_ServicerContext):
    """One call as grpcio's context shows it. A transport adds how messages and headers are sent."""

    def __init__(self, metadata: Metadata, peer: str, remaining: float | None) -> None:
        """`remaining`: seconds until the caller's deadline, if there is one."""
        self.metadata = metadata
        self._peer = peer
        self._deadline = None if remaining is None else time.monotonic() + remaining
        self._code: grpc.StatusCode | None = None
        self._details = ""
        self._trailing: Metadata = ()
        self._cancelled = self._done = False
        self._callbacks: list[Callable[[Any], None]] = []

    def finish(self) -> None:
        self._done = True
        for callback in self._callbacks:
            callback(self)

    async def read(self) -> NoReturn:
        raise RuntimeError("the one message of the call has been read")

    async def abort(self, code: grpc.StatusCode, details: str = "", trailing_metadata: Any = ()) -> NoReturn:
        self._code, self._details = code, details
        self._trailing = trailing_metadata or self._trailing
        raise grpc.aio.AbortError("Locally aborted.")

    async def abort_with_status(self, status: grpc.Status) -> NoReturn:
        await self.abort(status.code, status.details or "", status.trailing_metadata)

    def set_trailing_metadata(self, trailing_metadata: Any) -> None:
        self._trailing = trailing_metadata

    def trailing_metadata(self) -> Any:
        return self._trailing

    def invocation_metadata(self) -> Any:
        return tuple(map(Metadatum._make, self.metadata))

    def set_code(self, code: grpc.StatusCode) -> None:
        self._code = code

    def code(self) -> Any:
        return self._code

    def set_details(self, details: str) -> None:
        self._details = details

    def details(self) -> str:
        return self._details

    def set_compression(self, compression: grpc.Compression) -> None:
        """Nothing: answers go out as they are."""

    def disable_next_message_compression(self) -> None:
        """Nothing: see above."""

    def peer(self) -> str:
        return self._peer

    def peer_identities(self) -> None:
        return None

    def peer_identity_key(self) -> None:
        return None

    def auth_context(self) -> Mapping[str, Iterable[bytes]]:
        return {}

    def time_remaining(self) -> float:
        return _NO_DEADLINE if self._deadline is None else max(0.0, self._deadline - time.monotonic())

    def add_done_callback(self, callback: Callable[[Any], None]) -> None:
        if self._done:
            callback(self)
        else:
            self._callbacks.append(callback)

    def cancelled(self) -> bool:
        return self._cancelled

    def done(self) -> bool:
        return self._done
