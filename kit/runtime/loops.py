"""Work that a process repeats in the background: one form of loop, and the wait that ends early.

Loops of another form stay written out: reading a stream until it ends (an inbox, NOTIFY, the feed of revocations, whose log tells
changes and not each failure); the renewal of an inbox's leases, in a thread so that a held-up event loop does not stop it; the
renewal of a story's lease, which ends the attempt when it is lost.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

Work = Callable[[], Awaitable[object]]
"""One round. It answers True when more of it is due: the next round begins without a pause then."""

Retry = Callable[[int], float]
"""Seconds to wait after so many failures in a row."""


async def every(
    seconds: float,
    stopping: asyncio.Event,
    work: Work,
    *,
    failure: str,
    retry: Retry | None = None,
    wake: asyncio.Event | None = None,
    at_once: bool = True,
) -> None:
    """Runs `work`, and runs it again `seconds` after it has ended, until `stopping` is set.

    A round that raises is logged as a warning of the work's own module, `failure` and the error, and the loop goes on: after
    `seconds` too, or after what `retry` says. `wake` ends a pause early; set during a round, it saves the pause after it.
    With `at_once=False` a pause comes first. A pause ends as soon as `stopping` is set; a round is never broken off but by
    the cancellation of the caller's task, which is passed on.
    """
    log = logging.getLogger(work.__module__)
    failures = 0
    if not at_once:
        await pause(seconds, stopping)
    while not stopping.is_set():
        if wake:
            wake.clear()
        more, wait = False, seconds
        try:
            more = await work() is True
            failures = 0
        except Exception as error:
            failures += 1
            wait = retry(failures) if retry else seconds
            log.warning("%s: %s", failure, error)
        if not more:
            await pause(wait, stopping, *([wake] if wake else ()))


async def pause(seconds: float, *events: asyncio.Event) -> None:
    """Returns after the time or as soon as one of the events is set."""
    waits = [asyncio.create_task(event.wait()) for event in events]
    try:
        await asyncio.wait(waits, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for wait in waits:
            wait.cancel()
