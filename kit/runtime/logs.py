"""Logs as ECS JSON lines on standard output, each with the trace it belongs to."""

from __future__ import annotations

import json
import logging
import sys
import time
from functools import lru_cache
from time import monotonic
from traceback import format_tb
from typing import Any, TextIO

from opentelemetry import trace

_SILENCE_SECONDS = 60.0
_ECS_VERSION = "1.6.0"

_OF_EVERY_RECORD = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "taskName"}
"""What the module logging itself puts into a record; all else in it comes from `extra`."""

_WRITTEN = frozenset(
    {"@timestamp", "message", "log.level", "ecs.version", "log", "process", "service", "trace", "span"}
)
"""The first names of what the formatter itself writes."""

_PLACES = 512

_as_json = json.JSONEncoder(separators=(",", ":"), default=repr).encode


class _Formatter(logging.Formatter):
    """Writes a record as one line. By hand: the library ecs-logging takes longer for it than most calls take for their answer."""

    def __init__(self, service: str, environment: str) -> None:
        super().__init__()
        self._service = {"name": service, "environment": environment}
        # Of one place in the code, called in one thread, all of this is the same in each line.
        self._parts_of = lru_cache(_PLACES)(self._parts)

    def format(self, record: logging.LogRecord) -> str:
        message = _as_json(record.getMessage())
        before, after = self._parts_of(
            *(record.levelname, record.name, record.filename, record.lineno, record.funcName),
            *(record.process, record.processName, record.thread, record.threadName),
        )
        at = f"{_second(int(record.created))}.{int(record.msecs):03d}Z"
        line = f'{{"@timestamp":"{at}","message":{message},{before}{message}}},{after}'
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            trace_id, span_id = trace.format_trace_id(span.trace_id), trace.format_span_id(span.span_id)
            line += f',"trace":{{"id":"{trace_id}"}},"span":{{"id":"{span_id}"}}'
        given = record.__dict__
        further = {name: value for name in given.keys() - _OF_EVERY_RECORD if (value := given[name]) is not None}
        if record.exc_info or record.stack_info:
            further = {"error": _error(record), **further}
        if not further:
            return line + "}"
        nested: dict[str, Any] = {}
        for name, value in further.items():
            _put(nested, name, value)
        if nested.keys().isdisjoint(_WRITTEN):
            return f"{line},{_as_json(nested)[1:]}"
        # Some belong into an object that the line has already.
        whole: dict[str, Any] = json.loads(line + "}")
        for name, value in further.items():
            _put(whole, name, value)
        return _as_json(whole)

    def _parts(self, *place: object) -> tuple[str, str]:
        """The line from its level on, before and after the message as `log.original`."""
        level, logger, file, number, function, pid, process, thread, thread_name = place
        origin = {"file": {"name": file, "line": number}, "function": function}
        before = {
            "log.level": str(level).lower(),
            "ecs.version": _ECS_VERSION,
            "log": {"logger": logger, "origin": origin},
        }
        after = {
            "process": {"pid": pid, "name": process, "thread": {"id": thread, "name": thread_name}},
            "service": self._service,
        }
        # Open where `original` follows, and without the brackets of an object of its own.
        return f'{_as_json(before)[1:-2]},"original":', _as_json(after)[1:-1]


@lru_cache(2)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))


def _error(record: logging.LogRecord) -> dict[str, str]:
    kind, error, traceback = record.exc_info or (None, None, None)
    told = {"type": kind.__name__ if kind else "", "message": str(error) if error else ""}
    told["stack_trace"] = "".join(format_tb(traceback)) if traceback else record.stack_info or ""
    return {name: text for name, text in told.items() if text}


def _put(line: dict[str, Any], name: str, value: object) -> None:
    """Nests a dotted name, so that each object of ECS stands in a line once."""
    place = line
    *objects, field = _parts(name)
    for each in objects:
        inner = place.get(each)
        if not isinstance(inner, dict):
            inner = place[each] = {}
        place = inner
    place[field] = value


@lru_cache(1024)
def _parts(name: str) -> tuple[str, ...]:
    return tuple(name.split("."))


class _NoForeignBytes(logging.Filter):
    """Takes off what a client sent that is no UTF-8, which may be a token with a stray byte, and says so once a minute at most.

    gRPC's Python layer logs such a value in full, with a traceback, each time that it is read.
    """

    def __init__(self) -> None:
        super().__init__()
        self._next = 0.0

    def filter(self, record: logging.LogRecord) -> bool:
        if not (record.exc_info and isinstance(record.exc_info[1], UnicodeDecodeError)):
            return True
        record.msg, record.args, record.exc_info = "a call carries bytes that are not UTF-8", (), None
        record.levelno, record.levelname = logging.WARNING, "WARNING"
        due, now = self._next, monotonic()
        if now >= due:
            self._next = now + _SILENCE_SECONDS
        return now >= due


def without_foreign_bytes() -> None:
    """Applies to those who log what arrives before our own code has seen it."""
    for logger in ("grpc._cython.cygrpc", "asyncio"):
        logging.getLogger(logger).addFilter(_NoForeignBytes())


def configure(service: str, environment: str, level: str, *, stream: TextIO | None = None) -> None:
    """Once per process, before anything logs. Without a stream, standard output is the log."""
    handler = logging.StreamHandler(stream or sys.stdout)
    handler.setFormatter(_Formatter(service, environment))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    without_foreign_bytes()
    # These speak of every connection and request; the request log says it once already. At DEBUG, some would quote what is sent.
    for chatty in ("httpx2", "httpcore2", "openai", "alembic.runtime.plugins", "aiosmtplib"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
