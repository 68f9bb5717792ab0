"""Logs as ECS JSON lines on standard output, each with the trace it belongs to."""

from __future__ import annotations

import logging
import sys
from typing import TextIO

import ecs_logging
from opentelemetry import trace


class _Formatter(ecs_logging.StdlibFormatter):
    def __init__(self, service: str, environment: str) -> None:
        super().__init__(extra={"service.name": service, "service.environment": environment})

    def format(self, record: logging.LogRecord) -> str:
        span = trace.get_current_span().get_span_context()
        if span.is_valid:
            record.__dict__["trace.id"] = trace.format_trace_id(span.trace_id)
            record.__dict__["span.id"] = trace.format_span_id(span.span_id)
        return super().format(record)


def configure(service: str, environment: str, level: str, *, stream: TextIO | None = None) -> None:
    """Once per process, before anything logs. Without a stream, standard output is the log."""
    handler = logging.StreamHandler(stream or sys.stdout)
    handler.setFormatter(_Formatter(service, environment))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # These speak of every connection and request; the request log says it once already. At DEBUG, some would quote what is sent.
    for chatty in ("httpx", "httpcore", "httpx2", "httpcore2", "openai", "alembic.runtime.plugins", "aiosmtplib"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
