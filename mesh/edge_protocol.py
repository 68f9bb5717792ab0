"""What the edge and the services say to each other besides the contract: names that one side writes and the other reads."""

from __future__ import annotations

EDGE_HEADER_PREFIX = "x-storymesh-"
"""Of request headers that the edge alone may set: it takes them off every request that arrives."""

CLIENT_ADDRESS_HEADER = f"{EDGE_HEADER_PREFIX}client-address"
"""A request header: the client's address, as far as the edge trusts the proxies in front of it; `x-forwarded-for` is a claim."""

STREAM_ENDED_HEADER = f"{EDGE_HEADER_PREFIX}ended"
"""A response header: the stream tells nothing new, because the client has read its end before.

The edge answers server-sent events with 204 then, upon which an EventSource does not come back. Native clients do not see it.
"""

ERROR_DOMAIN = "storymesh"
"""The `domain` of every ErrorInfo, whoever refuses the call."""

TOKEN_ISSUER = "storymesh"
TOKEN_AUDIENCE = "storymesh"
"""The `iss` and `aud` of access tokens, unless settings say otherwise: the edge and every service verify them."""

CLOCK_SKEW_SECONDS = 30
"""How far apart the clocks of two processes may be when a token begins or ends."""
