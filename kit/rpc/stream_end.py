"""The end of a stream that its client has read before, in a word for the edge."""

from __future__ import annotations

from typing import Any

from grpc.aio import ServicerContext

from mesh.edge_protocol import STREAM_ENDED_HEADER


async def say_ended(context: ServicerContext[Any, Any]) -> None:
    """Before the first message, which may as well repeat the end."""
    await context.send_initial_metadata(((STREAM_ENDED_HEADER, "1"),))
