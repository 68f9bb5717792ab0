"""Detects the durable steps of a process where its libraries call Postgres, Redis and the mail server."""

from __future__ import annotations

import functools
import re
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiosmtplib
import aiosmtplib.protocol
import psycopg
import redis.asyncio.connection
import redis.commands.core
import redis.exceptions

from .failpoints import Failpoints


def install(failpoints: Failpoints) -> None:
    """Wraps the libraries until the process ends."""
    _watch_postgres(failpoints)
    _watch_redis(failpoints)
    _watch_smtp(failpoints)


_ID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}")
_WORD = re.compile(r"[a-z]{3,10}")

_CHANGE = re.compile(
    r"\b(INSERT INTO|(?<!DO )(?<!FOR )(?<!KEY )UPDATE|DELETE FROM)\s+(\w+)(?:\s+SET\s+(.*?)(?:\s+WHERE\b|$))?",
    re.DOTALL,
)
_COLUMN = re.compile(r"(\w+)\s*=")


def _change(query: Any) -> str:
    """The label of a statement, naming what it changes; empty when it only reads."""
    text = query.decode() if isinstance(query, bytes) else str(query)
    found = [
        f"{verb} {table}({','.join(sorted(set(_COLUMN.findall(columns))))})".removesuffix("()")
        for verb, table, columns in _CHANGE.findall(text)
    ]
    return ", ".join(found)


def _watch_postgres(failpoints: Failpoints) -> None:
    cursor: Any = psycopg.AsyncCursor
    connection: Any = psycopg.AsyncConnection
    commit, rollback = connection.commit, connection.rollback

    def watched(execute: Any) -> Any:
        @functools.wraps(execute)
        async def watched_execute(self: Any, query: Any, *arguments: Any, **options: Any) -> Any:
            change = _change(query)
            if change and self.connection.autocommit:
                failpoints.begins(change)
            result = await execute(self, query, *arguments, **options)
            if change:
                # In pipeline mode the count is -1: it is not known yet.
                changed = self.rowcount != 0
                if self.connection.autocommit:
                    failpoints.ends(change, changed=changed)
                elif changed:
                    self.connection.changes = (
                        *getattr(self.connection, "changes", ()),
                        change,
                    )
            return result

        return watched_execute

    @functools.wraps(commit)
    async def watched_commit(self: Any) -> None:
        changes, self.changes = getattr(self, "changes", ()), ()
        label = f"COMMIT {', '.join(changes)}"
        if changes:
            failpoints.begins(label)
        await commit(self)
        if changes:
            failpoints.ends(label)

    @functools.wraps(rollback)
    async def watched_rollback(self: Any) -> None:
        self.changes = ()
        await rollback(self)

    cursor.execute, cursor.executemany = (
        watched(cursor.execute),
        watched(cursor.executemany),
    )
    connection.commit, connection.rollback = watched_commit, watched_rollback


_CALLED = re.compile(r"""redis\.p?call\(\s*['"](\w+)['"]""")

_NO_STEPS = frozenset(
    b"TIME AUTH HELLO SELECT CLIENT PING INFO SUBSCRIBE UNSUBSCRIBE PUBLISH SCRIPT MULTI EXEC DISCARD WATCH UNWATCH "
    b"GET MGET HGET HMGET HGETALL EXISTS TTL PTTL XLEN XRANGE XREVRANGE XREAD XPENDING XINFO ZCARD ZRANGE ZSCORE".split()
)
_TAKES = frozenset((b"XREADGROUP", b"XAUTOCLAIM"))
"""Commands that are steps only if their answer is not empty."""
_SCRIPTS = frozenset((b"EVALSHA", b"EVAL", b"FCALL"))

_Command = Sequence[bytes]


@dataclass
class _Sent:
    """Commands that were sent to Redis in one write."""

    commands: list[_Command]
    label: str
    """Empty when none of them can change anything."""
    detail: str
    answered: int = 0
    changed: bool = False

    @property
    def take(self) -> bool:
        return all(command[0].upper() in _TAKES for command in self.commands)

    def answer(self, answer: Any) -> bool:
        """Records the next answer. True when it was the last one."""
        command = self.commands[self.answered]
        self.answered += 1
        self.changed |= _changed(command[0].upper(), answer)
        return self.answered == len(self.commands)


_FAILED = object()


def _changed(name: bytes, answer: Any) -> bool:
    if answer is _FAILED or name in _NO_STEPS:
        return False
    if name == b"XAUTOCLAIM":
        return any(answer[1:])
    if name in _TAKES:
        return bool(answer)
    # A script that returns nil may have changed something.
    return answer is None or answer not in (0, []) if name in _SCRIPTS else True


@dataclass
class _Wire:
    """The commands on one connection that wait for their answers."""

    writer: Any = None
    sent: deque[_Sent] = field(default_factory=deque)


def _watch_redis(failpoints: Failpoints) -> None:
    scripts: dict[bytes, str] = {}
    script: Any = redis.commands.core.AsyncScript
    connection: Any = redis.asyncio.connection.AbstractConnection
    make, send, receive = (
        script.__init__,
        connection.send_packed_command,
        connection.read_response,
    )

    @functools.wraps(make)
    def watched_make(self: Any, *arguments: Any, **options: Any) -> None:
        make(self, *arguments, **options)
        called = dict.fromkeys(name.upper() for name in _CALLED.findall(self.script))
        scripts[self.sha.encode()] = "+".join(name for name in called if name.encode() not in _NO_STEPS)

    def wire(self: Any) -> _Wire:
        found: _Wire | None = self.__dict__.get("failpoints_wire")
        if found is None or found.writer is not self._writer:
            # A new connection: commands sent on the old one will not be answered.
            found = self.__dict__["failpoints_wire"] = _Wire(self._writer)
        return found

    @functools.wraps(send)
    async def watched_send(self: Any, command: Any, check_health: bool = True) -> None:
        raw = command if isinstance(command, bytes) else b"".join(command)
        sent = _sent(_commands(raw), scripts)
        if sent.label and failpoints.begins(sent.label, sent.detail, parts=len(sent.commands), take=sent.take):
            await send(self, _packed(sent.commands[: len(sent.commands) // 2]), check_health)
            await receive(self)
            failpoints.halfway()
        await send(self, raw, check_health)
        wire(self).sent.append(sent)

    @functools.wraps(receive)
    async def watched_receive(self: Any, *arguments: Any, **options: Any) -> Any:
        try:
            answer = await receive(self, *arguments, **options)
        except redis.exceptions.ResponseError:
            answered(self, _FAILED)
            raise
        answered(self, answer)
        return answer

    def answered(self: Any, answer: Any) -> None:
        sent = wire(self).sent
        # Without a command that waits, it is a message of pub/sub.
        if sent and sent[0].answer(answer):
            last = sent.popleft()
            if last.label:
                failpoints.ends(last.label, last.detail, changed=last.changed)

    script.__init__ = watched_make
    connection.send_packed_command = watched_send
    connection.read_response = watched_receive


def _commands(raw: bytes) -> list[_Command]:
    """Decodes RESP: each command is an array of strings, each with its length before it."""
    found: list[_Command] = []
    position = 0

    def number() -> int:
        nonlocal position
        end = raw.index(b"\r\n", position)
        value = int(raw[position + 1 : end])
        position = end + 2
        return value

    while position < len(raw):
        command = []
        for _ in range(number()):
            size = number()
            command.append(raw[position : position + size])
            position += size + 2
        found.append(command)
    return found


def _packed(commands: Iterable[_Command]) -> bytes:
    return b"".join(
        b"*%d\r\n%s"
        % (
            len(command),
            b"".join(b"$%d\r\n%s\r\n" % (len(part), part) for part in command),
        )
        for command in commands
    )


def _sent(commands: list[_Command], scripts: dict[bytes, str]) -> _Sent:
    labels, details = [], []
    for command in commands:
        name = command[0].upper()
        if name in _NO_STEPS:
            continue
        if name in _SCRIPTS:
            count = int(command[2])
            keys, rest = command[3 : 3 + count], command[3 + count :]
            words = [part for part in map(_shown, rest) if _WORD.fullmatch(part)]
            changes = scripts.get(command[1], "script")
            if not changes:
                continue
            labels.append(" ".join([changes, *map(_shown, keys), *words]))
        else:
            words = [part for part in map(_shown, command[1:]) if ":" in part]
            labels.append(" ".join([name.decode(), *words[:1]]))
            rest = command[2:]
        details.append(" ".join(map(_shown, rest))[:60])
    return _Sent(commands, _ID.sub("<id>", "; ".join(labels)), "; ".join(details))


def _shown(part: bytes) -> str:
    text = part.decode(errors="replace")
    return text if text.isprintable() else "..."


def _watch_smtp(failpoints: Failpoints) -> None:
    client: Any = aiosmtplib.SMTP
    protocol: Any = aiosmtplib.protocol.SMTPProtocol
    connect, write, read_response = client.connect, protocol.write, protocol.read_response

    @functools.wraps(connect)
    async def watched_connect(self: Any, *arguments: Any, **options: Any) -> Any:
        failpoints.begins("SMTP connect")
        answer = await connect(self, *arguments, **options)
        failpoints.ends("SMTP connect")
        return answer

    @functools.wraps(write)
    def watched_write(self: Any, data: bytes) -> None:
        self.hands_over = data.endswith(b"\r\n.\r\n")
        if self.hands_over and failpoints.begins("SMTP data", parts=2):
            write(self, data[: len(data) // 2])
            failpoints.halfway()
        write(self, data)

    @functools.wraps(read_response)
    async def watched_read_response(self: Any, *arguments: Any, **options: Any) -> Any:
        answer = await read_response(self, *arguments, **options)
        if getattr(self, "hands_over", False):
            failpoints.ends("SMTP data")
        return answer

    client.connect, protocol.write, protocol.read_response = watched_connect, watched_write, watched_read_response
