"""A connection to Redis for a thread that may block, where an event loop would cost more than the command."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

import redis as blocking
import redis.asyncio as asynchronous
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import NoScriptError
from redis.exceptions import TimeoutError as NoAnswer
from redis.retry import Retry

from .liveness import DependencyAway
from .redis import liveness

_SILENT_SECONDS = 0.1
"""A Redis that let a command wait for so long is silent; one that missed a nearer deadline may only be slow."""

_PAUSE_SECONDS = 0.25
"""Commands are refused for so long after a silence: else each of them would wait for a silent Redis in turn."""

_CLASSES: dict[type, Any] = {
    asynchronous.SSLConnection: blocking.SSLConnection,
    asynchronous.UnixDomainSocketConnection: blocking.UnixDomainSocketConnection,
}


class BlockingRedis:
    """One connection to the Redis of a client of `kit.data.redis.connect`, opened with the first command, for one thread at a time.

    Every command names the seconds within which it must be answered, connecting included. Raises redis.exceptions.RedisError, or an
    OSError, DependencyAway included: that one at once, while the client's liveness is watched and Redis is silent, and for a moment
    after a command without an answer.
    """

    def __init__(self, client: asynchronous.Redis) -> None:
        pool = client.connection_pool
        options = pool.connection_kwargs | {"retry": Retry(NoBackoff(), 0), "health_check_interval": 0}
        of_kind = next((ours for theirs, ours in _CLASSES.items() if issubclass(pool.connection_class, theirs)), None)
        self._connection: Any = (of_kind or blocking.Connection)(**options)
        self._require = liveness(client).require
        self._refuse_until = 0.0

    def command(self, *words: str | bytes | int, seconds: float) -> Any:
        """Send a command, and return its answer. A connection that was cut in the meantime, as by a restart, is opened again."""
        self._require()
        began = monotonic()
        if began < self._refuse_until:
            raise DependencyAway("redis")
        deadline = began + seconds
        packed = self._connection.pack_command(*words)
        try:
            if self._connection.is_connected:
                try:
                    return self._answer(packed, deadline)
                except NotConnected:
                    self._connection.disconnect()
            self._connect(deadline)
            return self._answer(packed, deadline)
        except NoAnswer:
            now = monotonic()
            if now - began >= _SILENT_SECONDS:
                self._refuse_until = now + _PAUSE_SECONDS
            raise
        except (NotConnected, OSError):
            self._connection.disconnect()
            raise

    def script(self, source: str) -> Callable[..., Any]:
        """A Lua script, to be called with `keys`, `arguments` and `seconds`. Redis is told its source again when it forgot it."""
        digest = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()

        def run(keys: Sequence[str], arguments: Sequence[bytes], *, seconds: float) -> Any:
            deadline = monotonic() + seconds
            try:
                return self.command("EVALSHA", digest, len(keys), *keys, *arguments, seconds=seconds)
            except NoScriptError:
                left = deadline - monotonic()
                return self.command("EVAL", source, len(keys), *keys, *arguments, seconds=left)

        return run

    def close(self) -> None:
        self._connection.disconnect()

    def _connect(self, deadline: float) -> None:
        self._connection.socket_connect_timeout = self._connection.socket_timeout = _left(deadline)
        self._connection.connect()

    def _answer(self, packed: Sequence[bytes], deadline: float) -> Any:
        self._connection.send_packed_command(packed, check_health=False)
        return self._connection.read_response(timeout=_left(deadline))


def _left(deadline: float) -> float:
    left = deadline - monotonic()
    if left <= 0:
        raise NoAnswer("no answer in time")
    return left
