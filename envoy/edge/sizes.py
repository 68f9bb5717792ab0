"""The buffer filter: bounds and collects a request's body before the filters behind it run."""

from __future__ import annotations

from edge.config import Config, extension, typed
from edge.settings import Sizes

FILTER = "envoy.filters.http.buffer"


def whole_requests(sizes: Sizes) -> Config:
    """The filter. It counts the whole body: the transcoder counts only its own buffer, which a large string bypasses."""
    return extension(FILTER, "extensions.filters.http.buffer.v3.Buffer", max_request_bytes=sizes.request_body_bytes)


def without_waiting() -> Config:
    """Per-route configuration that does not wait for the body, for routes whose answer does not depend on it."""
    return {FILTER: typed("extensions.filters.http.buffer.v3.BufferPerRoute", disabled=True)}
