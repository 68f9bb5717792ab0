"""Servers stopped by SIGSTOP: their kernel still accepts connections, but they never answer."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from local.harness import Servers


@contextmanager
def standing_still(servers: Servers, component: str) -> Iterator[None]:
    """Stop all processes of the component during the block, and continue them afterwards."""
    process = psutil.Process(servers.pid(component))
    stopped = [process, *process.children(recursive=True)]
    for each in stopped:
        _send(each, signal.SIGSTOP)
    try:
        yield
    finally:
        for each in stopped:
            _send(each, signal.SIGCONT)


def _send(process: psutil.Process, number: signal.Signals) -> None:
    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        return
