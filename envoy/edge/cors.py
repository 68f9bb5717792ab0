"""CORS headers: which pages of other origins may call from a browser (the Fetch standard, CORS protocol).

Envoy's own CORS filter skips routes that Envoy answers itself: refusals, documents and preflights. So expressions set the
headers: the first filter on every answer, and the local replies on answers that are sent before any filter runs.
"""

from __future__ import annotations

import json

from edge.config import Config, header
from edge.settings import Cors

_REQUEST_HEADERS = (
    "authorization",
    "cache-control",
    "content-type",
    "grpc-timeout",
    "last-event-id",
    "traceparent",
    "tracestate",
    "x-grpc-web",
    "x-user-agent",
)
# A page may read cache-control, content-length and content-type without being told (CORS-safelisted).
_RESPONSE_HEADERS = (
    "accept-encoding",
    "allow",
    "grpc-message",
    "grpc-status",
    "grpc-status-details-bin",
    "ratelimit",
    "ratelimit-policy",
    "retry-after",
    "www-authenticate",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
    "x-request-id",
    "x-trace-id",
)


def on_every_answer(settings: Cors) -> list[Config]:
    """Headers to add to every answer. Empty when no origin is allowed."""
    if not settings.origins:
        return []
    exposed = header("access-control-expose-headers", _if(_known(settings), ", ".join(_RESPONSE_HEADERS)))
    if _any_origin(settings):
        return [header("access-control-allow-origin", "*"), exposed]
    return [
        header("access-control-allow-origin", f"%CEL({_known(settings)} ? request.headers['origin'] : '')%"),
        exposed,
        # Sent also without an origin and for an unknown one: a cache must not give that answer to an allowed page.
        header("vary", "Origin", action="ADD_IF_ABSENT"),
    ]


def on_preflights(settings: Cors, verbs: str) -> list[Config]:
    """Headers to add to the answer to OPTIONS, besides those of every answer. The contract says which methods a path allows."""
    if not settings.origins:
        return []
    asked = f"{_known(settings)} && 'access-control-request-method' in request.headers"
    return [
        header("access-control-allow-methods", _if(asked, verbs)),
        header("access-control-allow-headers", _if(asked, ", ".join(_REQUEST_HEADERS))),
        header("access-control-max-age", _if(asked, str(settings.max_age_seconds))),
    ]


def _any_origin(settings: Cors) -> bool:
    return "*" in settings.origins


def _known(settings: Cors) -> str:
    sent = "'origin' in request.headers"
    return sent if _any_origin(settings) else f"{sent} && request.headers['origin'] in {json.dumps(settings.origins)}"


def _if(condition: str, value: str) -> str:
    """A conditional header as an expression. An empty value adds no header."""
    return f"%CEL({condition} ? {json.dumps(value)} : '')%"
