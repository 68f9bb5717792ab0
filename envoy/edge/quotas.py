"""Classes of which the edge decides by itself, with tokens that the limiter hands it by the quota protocol (RLQS).

The calls of each address, and those of each person, are a bucket in Envoy. Its first call passes, and Envoy reports it at once; the
limiter answers with tokens. While the limiter is away what was assigned is spent, and 15 s after the last answer calls pass.

What Envoy 1.40 does not do: it reports each bucket every 5 s whatever is configured, keeps any number of buckets until the limiter
lets go of them, gives each filter one bucket a call, and adds no headers to calls that pass.
"""

from __future__ import annotations

from collections.abc import Iterable

from edge.clusters import RATE_LIMIT_CLUSTER
from edge.config import Config, extension, header, seconds, typed
from edge.limits import CLIENT_NETWORK_HEADER
from edge.settings import OnFailure, RateLimit, SettingsError
from mesh.contract import Access, Contract, Method
from mesh.edge_protocol import EDGE_HEADER_PREFIX

USER_HEADER = f"{EDGE_HEADER_PREFIX}user"
"""Carries the person's id between the edge's filters: the filter can take a bucket's values from headers alone."""

_REPORTED_SECONDS = 5
"""Built into Envoy. Only after a report does the limiter know that calls were refused, so a client may come back that late."""

_PACKAGE = "extensions.filters.http.rate_limit_quota.v3"
_HEADER_INPUT = "type.matcher.v3.HttpRequestHeaderMatchInput"


def decides(method: Method, settings: RateLimit) -> bool:
    """Whether the edge decides about calls of the method by itself."""
    return method.rate_limit_class in settings.quota_classes


def require_fit(settings: RateLimit, classes: Iterable[str]) -> None:
    """Raises SettingsError for a class that does not exist, or that the first call of each bucket would be refused."""
    known = tuple(classes)
    if unknown := sorted(set(settings.quota_classes) - set(known)):
        raise SettingsError(
            f"rate_limit.quota_classes: the contract has no rate-limit class {', '.join(unknown)}; it has {', '.join(known)}"
        )
    denied = [
        each for each in settings.quota_classes if settings.on_failure.get(each, OnFailure.DENY) is OnFailure.DENY
    ]
    if denied:
        raise SettingsError(
            f"rate_limit.quota_classes: {', '.join(denied)} is denied while the limiter does not answer, but here calls pass "
            "before it has answered; take it out, or allow it in rate_limit.on_failure"
        )


def filters(contract: Contract, settings: RateLimit) -> list[Config]:
    """A filter for addresses and one for people, as each gives a call one bucket; none without classes."""
    methods = [method for method in contract.exposed if decides(method, settings)]
    if not methods:
        return []
    signed_in = [method for method in methods if method.access is not Access.PUBLIC]
    return [
        _filter(key, from_header, limited, settings)
        for key, from_header, limited in (
            ("client_ip", CLIENT_NETWORK_HEADER, methods),
            ("user", USER_HEADER, signed_in),
        )
        if limited
    ]


def _filter(key: str, from_header: str, methods: Iterable[Method], settings: RateLimit) -> Config:
    found = {method.path: _on_match(method.rate_limit_class, key, from_header) for method in methods}
    return extension(
        f"envoy.filters.http.rate_limit_quota.{key}",
        f"{_PACKAGE}.RateLimitQuotaFilterConfig",
        rlqs_server={"envoy_grpc": {"cluster_name": RATE_LIMIT_CLUSTER}},
        domain=settings.domain,
        # Exactly: the path of a gRPC call has no query, or the request is refused before.
        bucket_matchers={"matcher_tree": {"input": _header_input(":path"), "exact_match_map": {"map": found}}},
    )


def _on_match(rate_limit_class: str, key: str, from_header: str) -> Config:
    return {
        "action": {
            "name": "bucket",
            "typed_config": typed(
                f"{_PACKAGE}.RateLimitQuotaBucketSettings",
                bucket_id_builder={
                    "bucket_id_builder": {
                        # The limiter reads the class from the key. A second entry would cost each call a sixth more.
                        f"class={rate_limit_class} {key}": {"custom_value": _header_input(from_header)},
                    }
                },
                # Required; Envoy 1.40 takes 5 s whatever it says.
                reporting_interval=seconds(_REPORTED_SECONDS),
                # Without no_assignment_behavior and expired_assignment_behavior, calls pass before an assignment and after its end.
                deny_response_settings={
                    "response_headers_to_add": [header("retry-after", str(_REPORTED_SECONDS))],
                },
            ),
        }
    }


def _header_input(name: str) -> Config:
    return {"name": "header", "typed_config": typed(_HEADER_INPUT, header_name=name)}
