"""The protocol between the edge and the services besides the contract: names and values that both sides use."""

from __future__ import annotations

EDGE_HEADER_PREFIX = "x-storymesh-"
"""Prefix of request headers that only the edge sets; it removes them from every incoming request."""

CLIENT_ADDRESS_HEADER = f"{EDGE_HEADER_PREFIX}client-address"
"""A request header with the client's address, as reported by trusted proxies; `x-forwarded-for` can be forged by the client."""

STREAM_ENDED_HEADER = f"{EDGE_HEADER_PREFIX}ended"
"""A response header that says that the client has already read the end of the stream.

For server-sent events the edge then answers 204, which stops an EventSource from reconnecting. Native clients do not get it.
"""

REDIRECT_HEADER = f"{EDGE_HEADER_PREFIX}redirect"
"""A response header with the URL to which a method with the option `redirects` sends browsers. Clients do not get it."""

ERROR_DOMAIN = "storymesh"
"""The `domain` of every ErrorInfo, from the edge and from services."""

TOKEN_ISSUER = "storymesh"
TOKEN_AUDIENCE = "storymesh"
"""Default `iss` and `aud` of access tokens; the edge and every service verify them."""

CLOCK_SKEW_SECONDS = 30
"""Tolerated difference between the clocks of two processes when a token's times are checked."""

RATE_LIMIT_DOMAIN = "storymesh"
"""The domain of the limiter's rules for the mesh: for the edge's calls, and for what services ask leases and reservations of."""

RATE_LIMIT_METADATA = "envoy.filters.http.ratelimit"
"""The namespace into which Envoy puts the limiter's dynamic metadata: the rule that decided, its verdict, perhaps a reason."""

RATE_LIMIT_UNSATISFIABLE = "RATE_LIMIT_UNSATISFIABLE"
"""The permanent reason of a refusal that no wait ends: a block, no rule, or a cost above what the limit ever holds."""

RATE_LIMIT_BANNED = "RATE_LIMIT_BANNED"
"""The permanent reason of a refusal by a ban, which ends after the answer's `Retry-After`."""
