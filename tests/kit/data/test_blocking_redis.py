"""Redis for a thread that may block: no command takes longer than it may, however slow Redis is and whatever it is slow at."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, suppress

import pytest
from redis.exceptions import RedisError

from kit.data import redis as kit_redis
from kit.data.blocking_redis import BlockingRedis

Behaviour = Callable[[socket.socket, threading.Event], None]
LONG = 30.0
"""Seconds that a bound which does not hold would let a command take, at least."""


class SlowRedis:
    """A server in place of Redis, whose connections are dealt with as the test says."""

    def __init__(self) -> None:
        self.behaviour: Behaviour = never_answer
        self._ending = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self._listener.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with connection, suppress(OSError):
            self.behaviour(connection, self._ending)

    def close(self) -> None:
        self._ending.set()
        self._listener.close()


def short_answers(words: bytes) -> bytes:
    """One for each command. This is no cluster."""
    if b"CLUSTER" in words:
        return b"-ERR This instance has cluster support disabled\r\n"
    return b"+OK\r\n" * (words.count(b"\r\n*") + words.startswith(b"*"))


def never_answer(connection: socket.socket, ending: threading.Event) -> None:
    while connection.recv(65_536) and not ending.is_set():
        pass


def answer_handshakes_slowly(connection: socket.socket, ending: threading.Event) -> None:
    """Each answer comes in the time of the whole, all together do not."""
    while (words := connection.recv(65_536)) and not ending.wait(0.2):
        connection.sendall(short_answers(words))


def drip(connection: socket.socket, ending: threading.Event) -> None:
    """Part after part of an answer comes in time."""
    while words := connection.recv(65_536):
        if b"GET" not in words:
            connection.sendall(short_answers(words))
            continue
        connection.sendall(b"$300\r\n")
        for _ in range(300):
            if ending.wait(0.1):
                return
            connection.sendall(b"x")


def read_nothing_after_the_first_command(connection: socket.socket, ending: threading.Event) -> None:
    while (words := connection.recv(65_536)) and b"GET" not in words:
        connection.sendall(short_answers(words))
    connection.sendall(b"$1\r\nx\r\n")
    ending.wait()


@pytest.fixture
def slow() -> Iterator[SlowRedis]:
    with closing(SlowRedis()) as server:
        yield server


@pytest.fixture
async def connection(slow: SlowRedis) -> AsyncIterator[BlockingRedis]:
    async with kit_redis.connect(f"redis://a-user:a-password@127.0.0.1:{slow.port}/3") as client:
        with closing(BlockingRedis(client)) as opened:
            yield opened


@pytest.mark.parametrize("behaviour", [never_answer, answer_handshakes_slowly, drip], ids=lambda each: each.__name__)
def test_a_command_takes_no_longer_than_it_may(
    slow: SlowRedis, connection: BlockingRedis, behaviour: Behaviour
) -> None:
    slow.behaviour = behaviour
    began = time.monotonic()
    with pytest.raises(RedisError):
        connection.command("GET", "a", seconds=0.5)
    assert time.monotonic() - began < LONG / 3


def test_a_redis_that_reads_nothing_holds_a_command_no_longer_than_it_may(
    slow: SlowRedis, connection: BlockingRedis
) -> None:
    """The connection was opened by a command that had more time."""
    slow.behaviour = read_nothing_after_the_first_command
    assert connection.command("GET", "a", seconds=LONG) == b"x"
    began = time.monotonic()
    with pytest.raises(RedisError):
        connection.command("SET", "a", bytes(32 << 20), seconds=0.2)
    assert time.monotonic() - began < LONG / 3
