"""The process's logging configuration, which all tests of a worker share."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def restored_logging() -> Iterator[None]:
    """Restore the handlers, filters and level of every logger afterwards: `logs.configure` is for a whole process."""
    names = [None, *logging.root.manager.loggerDict, "grpc._cython.cygrpc", "asyncio"]
    before = [(each, each.handlers[:], each.filters[:], each.level) for each in map(logging.getLogger, names)]
    try:
        yield
    finally:
        for logger, handlers, filters, level in before:
            logger.handlers[:], logger.filters[:] = handlers, filters
            logger.setLevel(level)
