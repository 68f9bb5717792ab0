"""Answers that send browsers on, in a word for the edge."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from grpc.aio import ServicerContext

from mesh.edge_protocol import REDIRECT_HEADER


async def redirect(context: ServicerContext[Any, Any], url: str, *, kept_for: timedelta) -> None:
    """Name the URL of a method with the option `redirects`, and how long a browser may keep the answer. Before the response.

    No cache that several people share keeps it: who may follow the URL is decided for each caller.
    """
    age = f"private, max-age={int(kept_for.total_seconds())}"
    await context.send_initial_metadata(((REDIRECT_HEADER, url), ("cache-control", age)))
