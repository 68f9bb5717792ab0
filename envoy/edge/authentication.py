"""Access tokens at the edge: one jwt_authn rule per method, from the contract's policies.

The filter stands behind the transcoder, so that one rule on the gRPC path covers the JSON path, gRPC-Web and native gRPC alike.
The services verify every token again; the edge keeps strangers from costing them anything.

Key rotation: Envoy does not fetch the key set again when a token has an unknown `kid`. It refuses that token until it renews its
copy, 5 s before `keys_cache_seconds` end. So auth must publish a key for longer than that before the key signs: it publishes 15
minutes ahead, and the cache holds 5. When the copy is too old and the set cannot be fetched, calls that need a token get 503, not
401, because the token may be valid.

Remembered tokens: Envoy verifies a token's signature once, and then looks at its end alone, with a skew of a minute. It does not
forget a token when its key leaves the set. The services do: they refuse tokens of a withdrawn key, and revoked ones, at once.
"""

from __future__ import annotations

from edge.clusters import JWKS_CLUSTER
from edge.config import Config, extension, seconds, typed
from edge.settings import Authentication
from mesh.contract import Access, Contract, Method

JWKS_METHOD = "/storymesh.auth.v1.KeyService/GetJwks"

FILTER = "envoy.filters.http.jwt_authn"
PAYLOAD = "payload"
"""Key of the verified claims in the filter's dynamic metadata."""

_PROVIDER = "auth"

_REMEMBERED = 4096
"""Verified tokens that each worker thread remembers, the latest used: some 2 KB each."""


def jwt_authn(settings: Authentication, contract: Contract, *, subject_header: str = "") -> Config:
    """The jwt_authn filter. Paths without a rule need a token, so a new path is closed until the contract opens it.

    With `subject_header` it writes the person's id into that header of the request.
    """
    provider = _provider(settings)
    if subject_header:
        provider["claim_to_headers"] = [{"header_name": subject_header, "claim_name": "sub"}]
    rules = [rule for method in contract.exposed for rule in _rules(method)]
    return extension(
        FILTER,
        "extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        providers={_PROVIDER: provider},
        rules=[*rules, {"match": {"prefix": "/"}, "requires": {"provider_name": _PROVIDER}}],
        bypass_cors_preflight=True,
    )


def without_token() -> Config:
    """Per-route configuration of a route that Envoy answers itself, with nothing to protect."""
    return {FILTER: typed("extensions.filters.http.jwt_authn.v3.PerRouteConfig", disabled=True)}


def _rules(method: Method) -> list[Config]:
    match = {"path": method.path}
    if method.access is Access.PUBLIC:
        return [{"match": match}]
    return [{"match": match, "requires": {"provider_name": _PROVIDER}}]


def _provider(settings: Authentication) -> Config:
    return {
        "issuer": settings.issuer,
        "audiences": [settings.audience],
        "require_expiration": True,
        "clock_skew_seconds": settings.clock_skew_seconds,
        # Stated, because the default also accepts ?access_token=, which ends up in logs and browser histories.
        "from_headers": [{"name": "authorization", "value_prefix": "Bearer "}],
        "forward": True,
        "payload_in_metadata": PAYLOAD,
        # A client sends the same token with every call.
        "jwt_cache_config": {"jwt_cache_size": _REMEMBERED},
        "remote_jwks": {
            "http_uri": {
                "uri": "http://edge.internal/.well-known/jwks.json",
                "cluster": JWKS_CLUSTER,
                "timeout": "2s",
            },
            "cache_duration": seconds(settings.keys_cache_seconds),
            # Fetched ahead, without holding the listener back: public methods must work while auth is starting.
            "async_fetch": {"fast_listener": True, "failed_refetch_duration": "1s"},
            "retry_policy": {
                "retry_back_off": {"base_interval": "0.1s", "max_interval": "1s"},
                "num_retries": 2,
            },
        },
    }
