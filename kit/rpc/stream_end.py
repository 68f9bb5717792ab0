"""The end of a stream that its client has read before, in a word for the edge."""

from __future__ import annotations

from typing import Any

from grpc.aio import ServicerContext

ENDED = "x-storymesh-ended"
"""The edge answers server-sent events with 204 then, upon which an EventSource does not come back; native clients do not see it."""


async def say_ended(context: ServicerContext[Any, Any]) -> None:
    """Before the first message, which may as well repeat the end."""
    await context.send_initial_metadata(((ENDED, "1"),))
