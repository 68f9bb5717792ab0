"""Servers that stand still: they take connections, for their kernel does, and never answer."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import psutil

from local.harness import Servers


@contextmanager
def standing_still(servers: Servers, component: str) -> Iterator[None]:
    """Stops the component with all its processes, and lets them go on afterwards."""
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
