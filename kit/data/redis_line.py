"""One connection to Redis for a thread that may block. Each command has a deadline that all waiting together keeps to."""

from __future__ import annotations

import math
import select
import ssl
from collections.abc import Mapping, Sequence
from time import monotonic
from typing import Any

import hiredis
import redis as blocking
from redis.asyncio import SSLConnection as AsynchronousSSLConnection
from redis.asyncio import UnixDomainSocketConnection as AsynchronousUnixConnection
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import RedisError
from redis.exceptions import TimeoutError as NoAnswer

_READ_BYTES = 65_536
_INCOMPLETE = object()


class _Timely:
    """Bounds what redis-py reads by a deadline: each of its reads alone may take as long as the timeout of a socket."""

    deadline = math.inf

    def read_response(self, *arguments: Any, **options: Any) -> Any:
        options.setdefault("timeout", left(self.deadline))
        return super().read_response(*arguments, **options)  # type: ignore[misc]  # of the connection that this is mixed into


class _Connection(_Timely, blocking.Connection):
    pass


class _TlsConnection(_Timely, blocking.SSLConnection):
    pass


class _UnixConnection(_Timely, blocking.UnixDomainSocketConnection):
    pass


_KINDS: dict[type, type[Any]] = {AsynchronousSSLConnection: _TlsConnection, AsynchronousUnixConnection: _UnixConnection}


class Line:
    """Opened by the first command. A command that fails without an answer closes it, so that no answer is taken for another's.

    redis-py opens it, which knows of TLS and of users. Commands go over its socket directly: redis-py would count the timeout anew
    for each part of an answer, and call the system eight times for one command instead of three.
    """

    def __init__(self, kind: type, options: Mapping[str, Any]) -> None:
        """`kind` is the class of redis.asyncio's connections, `options` are theirs."""
        ours = next((ours for theirs, ours in _KINDS.items() if issubclass(kind, theirs)), _Connection)
        self._connection = ours(**options)
        self._socket: Any = None

    @property
    def is_open(self) -> bool:
        return self._socket is not None

    def ask(self, words: Sequence[str | bytes | int], deadline: float) -> Any:
        """Send a command, and return its answer. `deadline` is an instant of `time.monotonic`.

        Raises what Redis answers as an error, ConnectionError or OSError without a connection, and redis-py's TimeoutError.
        """
        packed = hiredis.pack_command(tuple(words))  # type: ignore[arg-type]  # typed for a command of one word
        try:
            if self._socket is None:
                self._open(deadline)
            self._send(packed, deadline)
            answer = self._receive(deadline)
        except BaseException:
            self.close()
            raise
        if isinstance(answer, RedisError):
            raise answer
        return answer

    def close(self) -> None:
        self._socket = None
        self._connection.disconnect()

    def _open(self, deadline: float) -> None:
        connection = self._connection
        connection.deadline = deadline
        connection.socket_connect_timeout = connection.socket_timeout = left(deadline)
        connection.connect()
        self._socket = connection._sock
        self._socket.setblocking(False)
        self._reader = hiredis.Reader(
            protocolError=NotConnected, replyError=connection._parser.parse_error, notEnoughData=_INCOMPLETE
        )
        self._readable, self._writable = select.poll(), select.poll()
        self._readable.register(self._socket, select.POLLIN)
        self._writable.register(self._socket, select.POLLOUT)

    def _send(self, packed: bytes, deadline: float) -> None:
        unsent = memoryview(packed)
        while unsent:
            try:
                unsent = unsent[self._socket.send(unsent) :]
            except (BlockingIOError, ssl.SSLWantWriteError):
                _wait(self._writable, deadline)
            except ssl.SSLWantReadError:
                _wait(self._readable, deadline)

    def _receive(self, deadline: float) -> Any:
        # No answer is there yet: to try first would be a call of the system in vain.
        _wait(self._readable, deadline)
        while True:
            try:
                read = self._socket.recv(_READ_BYTES)
            except (BlockingIOError, ssl.SSLWantReadError):
                _wait(self._readable, deadline)
                continue
            except ssl.SSLWantWriteError:
                _wait(self._writable, deadline)
                continue
            if not read:
                raise NotConnected("Redis has closed the connection")
            self._reader.feed(read)
            answer = self._reader.gets()
            if answer is not _INCOMPLETE:
                return answer


def left(deadline: float) -> float:
    """The seconds until then. Raises redis-py's TimeoutError if there are none."""
    seconds = deadline - monotonic()
    if seconds <= 0:
        raise NoAnswer("no answer in time")
    return seconds


def _wait(poll: select.poll, deadline: float) -> None:
    if not poll.poll(math.ceil(left(deadline) * 1000)):
        raise NoAnswer("no answer in time")
