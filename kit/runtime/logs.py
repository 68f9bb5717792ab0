"""Logs as ECS JSON lines on standard output, each with the trace it belongs to."""

from __future__ import annotations

import logging
import sys
from time import monotonic
from typing import TextIO

import ecs_logging
from opentelemetry import trace

_SILENCE_SECONDS = 60.0


class _Formatter(ecs_logging.StdlibFormatter):
    def __init__(self, service: str, environment: str) -> None:
        super().__init__(extra={"service.name": service, "service.environment": environment})

    def format(self, record: logging.LogRecord) -> str:
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            record.__dict__["trace.id"] = trace.format_trace_id(span.trace_id)
            record.__dict__["span.id"] = trace.format_span_id(span.span_id)
        return super().format(record)


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
