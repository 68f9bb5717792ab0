"""Which pages of other origins may call from a browser (the Fetch standard, CORS protocol).

Envoy's own filter overlooks the routes that Envoy answers itself, which are the refusals, the documents and the preflights. So
expressions set the headers: on every answer by the first filter, and again on replies that are sent before there are filters.
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
# Of those a page may read without being told: cache-control, content-length and content-type (CORS-safelisted).
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
    """Headers to add to an answer, whatever it is; none when no page may call."""
    if not settings.origins:
        return []
    exposed = header("access-control-expose-headers", _if(_known(settings), ", ".join(_RESPONSE_HEADERS)))
    if _any_origin(settings):
        return [header("access-control-allow-origin", "*"), exposed]
    return [
        header("access-control-allow-origin", f"%CEL({_known(settings)} ? request.headers['origin'] : '')%"),
        exposed,
        # Also without an origin, and for a strange one: a cache must not give that answer to a page that is known.
        header("vary", "Origin"),
    ]


def on_preflights(settings: Cors, verbs: str) -> list[Config]:
    """Headers to add to the answer to OPTIONS, beside those of every answer. What it allows is what the contract has there."""
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
    """An empty value adds no header."""
    return f"%CEL({condition} ? {json.dumps(value)} : '')%"
