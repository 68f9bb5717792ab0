"""How much of a request the edge takes in before anything behind it begins."""

from __future__ import annotations

from edge.config import Config, extension, typed
from edge.settings import Sizes

FILTER = "envoy.filters.http.buffer"


def whole_requests(sizes: Sizes) -> Config:
    """Counts the whole body, JSON or gRPC. The transcoder alone counts what lies in its buffer, which a large string passes by."""
    return extension(FILTER, "extensions.filters.http.buffer.v3.Buffer", max_request_bytes=sizes.request_body_bytes)


def without_waiting() -> Config:
    """Per-route configuration of a route whose answer does not depend on the body."""
    return {FILTER: typed("extensions.filters.http.buffer.v3.BufferPerRoute", disabled=True)}
