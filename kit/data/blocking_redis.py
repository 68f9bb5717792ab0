"""Redis for a thread that may block, where an event loop would cost more than the command."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

import redis.asyncio as asynchronous
from redis.backoff import NoBackoff
from redis.crc import key_slot
from redis.exceptions import AskError, MovedError, NoScriptError, ReadOnlyError, ResponseError
from redis.exceptions import ConnectionError as NotConnected
from redis.exceptions import TimeoutError as NoAnswer
from redis.retry import Retry

from .liveness import DependencyAway
from .redis import liveness
from .redis_line import Line

_SILENT_SECONDS = 0.1
"""A Redis that let a command wait for so long is silent; one that missed a nearer deadline may only be slow."""

_PAUSE_SECONDS = 0.25
"""Commands are refused for so long after a silence: else each of them would wait for a silent Redis in turn."""

_MOST_STEPS = 8
"""Nodes that are asked for one command."""

_Word = str | bytes | int
_Address = tuple[str, int]


class BlockingRedis:
    """The Redis of a client of `kit.data.redis.connect`, for one thread at a time; connections are opened when they are needed.

    Every command names the seconds within which it must be answered, connecting included. Raises redis.exceptions.RedisError, or an
    OSError, DependencyAway included: that one at once, while the client's liveness is watched and Redis is silent, and for a moment
    after a command without an answer.

    A Redis Cluster is known by what its nodes say of it: a command goes to the node that has its keys, and any node tells which
    one that is. After a failover, a primary that has become a replica is left: its name may lead to the new one.
    """

    def __init__(self, client: asynchronous.Redis) -> None:
        pool = client.connection_pool
        self._options = pool.connection_kwargs | {"retry": Retry(NoBackoff(), 0), "health_check_interval": 0}
        self._kind = pool.connection_class
        self._given: _Address = self._options.get("host", ""), self._options.get("port", 0)
        self._lines: dict[_Address, Line] = {}
        self._nodes: list[_Address] = []
        """Of a cluster. Empty for any other Redis."""
        self._owners: dict[int, _Address] = {}
        """The nodes that have hash slots, as far as it is known."""
        self._require = liveness(client).require
        self._refuse_until = 0.0

    def command(self, *words: _Word, seconds: float, key: str | None = None) -> Any:
        """Send a command, and return its answer. A connection that was cut in the meantime, as by a restart, is opened again.

        `key` is one of the command's keys, which must all be in one hash slot.
        """
        if not self._nodes:
            # The liveness is that of one node.
            self._require()
        began = monotonic()
        if began < self._refuse_until:
            raise DependencyAway("redis")
        try:
            return self._ask(words, key, began + seconds)
        except NoAnswer:
            now = monotonic()
            if now - began >= _SILENT_SECONDS:
                self._refuse_until = now + _PAUSE_SECONDS
            raise
        except ReadOnlyError:
            # A failover takes a while: do not open a connection in vain for every command until it is over.
            self._refuse_until = monotonic() + _PAUSE_SECONDS
            raise

    def script(self, source: str) -> Callable[..., Any]:
        """A Lua script, to be called with `keys`, `arguments` and `seconds`. Redis is told its source again when it forgot it."""
        digest = hashlib.sha1(source.encode(), usedforsecurity=False).hexdigest()

        def run(keys: Sequence[str], arguments: Sequence[bytes], *, seconds: float) -> Any:
            deadline, key = monotonic() + seconds, keys[0]
            try:
                return self.command("EVALSHA", digest, len(keys), *keys, *arguments, seconds=seconds, key=key)
            except NoScriptError:
                seconds_left = deadline - monotonic()
                return self.command("EVAL", source, len(keys), *keys, *arguments, seconds=seconds_left, key=key)

        return run

    def close(self) -> None:
        for line in self._lines.values():
            line.close()

    def _ask(self, words: Sequence[_Word], key: str | None, deadline: float) -> Any:
        node, asking = self._first_node(key), False
        failed: set[_Address] = set()
        for _ in range(_MOST_STEPS):
            line = self._line(node)
            was_open = line.is_open
            try:
                return self._ask_node(node, line, words, deadline, asking=asking)
            except AskError as elsewhere:
                # MovedError is one, and holds from now on; a plain one holds for this command, while its slot is on the move.
                asking = not isinstance(elsewhere, MovedError)
                node = elsewhere.host or node[0], elsewhere.port
                if not asking:
                    self._owners[elsewhere.slot_id] = node
                if node in failed:
                    raise NotConnected("the node that has the keys cannot be reached") from elsewhere
            except NoAnswer:
                self._leave(node)
                raise
            except (NotConnected, OSError, ReadOnlyError):
                line.close()
                if was_open:
                    continue
                failed.add(node)
                self._leave(node)
                others = [each for each in self._nodes if each not in failed]
                if not others:
                    raise
                node, asking = others[0], False
        raise NotConnected("the nodes of the cluster do not agree on one that has the keys")

    def _first_node(self, key: str | None) -> _Address:
        if not self._nodes:
            return self._given
        owner = self._owners.get(key_slot(key.encode())) if key else None
        return owner or self._nodes[0]

    def _ask_node(self, node: _Address, line: Line, words: Sequence[_Word], deadline: float, *, asking: bool) -> Any:
        if not line.is_open:
            self._learn(node, line, deadline)
        if asking:
            line.ask(["ASKING"], deadline)
        return line.ask(words, deadline)

    def _line(self, node: _Address) -> Line:
        if node not in self._lines:
            at = {} if node == self._given else {"host": node[0], "port": node[1]}
            self._lines[node] = Line(self._kind, self._options | at)
        return self._lines[node]

    def _learn(self, node: _Address, line: Line, deadline: float) -> None:
        """Have a node tell the others, for the time when it is gone. A Redis that is no cluster answers with an error."""
        try:
            slots = line.ask(["CLUSTER", "SLOTS"], deadline)
        except ResponseError:
            return
        told = [((host or b"").decode() or node[0], port) for _, _, *nodes in slots for host, port, *_ in nodes]
        self._nodes = list(dict.fromkeys([node, *told, self._given]))
        for gone in self._lines.keys() - set(self._nodes):
            self._lines.pop(gone).close()

    def _leave(self, node: _Address) -> None:
        """Ask the other nodes of a cluster first, until this one is said to have keys again."""
        self._owners = {slot: owner for slot, owner in self._owners.items() if owner != node}
        if node in self._nodes:
            self._nodes.remove(node)
            self._nodes.append(node)
