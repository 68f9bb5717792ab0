"""Routes: one per exposed method, the documents that Envoy serves itself, and refusals with the right status for the rest.

A JSON request is routed twice. First by its URL, where documents, refusals and the answers to OPTIONS can match, else a route that
knows the path's name and leads nowhere; then, after the transcoder, by the path of its gRPC method, where native gRPC arrives too.
A path that neither step knows ends in the last route, a 404. A trailing slash makes no difference, as to the transcoder.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from edge import cors
from edge.authentication import JWKS_METHOD, without_token
from edge.config import Config, header, seconds, typed
from edge.limits import CLIENT_NETWORK_HEADER, rate_limits, without_local_limit
from edge.observability import method_tracing, path_tracing
from edge.scripts import DOCUMENTS, STREAMS, VERBS, running
from edge.settings import Settings
from edge.sizes import without_waiting
from edge.transcoding import is_compressed, without_transcoding
from mesh.contract import Binding, Contract, Method
from mesh.edge_protocol import EDGE_HEADER_PREFIX

# Failures in which the service has not seen the request, so that repeating any method is safe.
_NEVER_ARRIVED = "connect-failure,refused-stream,reset-before-request"
# Also failures of which nobody knows how far the call came: for methods without side effects only.
_REPEATABLE = f"{_NEVER_ARRIVED},reset,unavailable"

_JSON = r"(?i)application/json[ \t]*(;.*)?"
_LARGEST_DOCUMENT = 1_048_576
_DOCUMENT_VERBS = ("GET", "HEAD")


def route_configuration(settings: Settings, contract: Contract) -> Config:
    """The routes of the public listener."""
    return {
        "name": "edge",
        "max_direct_response_body_size_bytes": _LARGEST_DOCUMENT,
        "virtual_hosts": [
            {
                "name": "edge",
                "domains": ["*"],
                "routes": [
                    *(_preflight(method, settings) for method in contract.exposed),
                    *(_method(method, settings) for method in contract.exposed),
                    *_documents(settings),
                    *_templates(contract, settings),
                    _unknown(),
                ],
            }
        ],
    }


def _method(method: Method, settings: Settings) -> Config:
    timeouts = settings.timeouts
    deadline: list[Config] = []
    if method.streams:
        limits = {
            # The whole-answer timeout would cut the stream; the time between two messages is what matters.
            "timeout": "0s",
            "idle_timeout": seconds(timeouts.stream_idle_seconds),
            "max_stream_duration": {
                "max_stream_duration": seconds(timeouts.stream_seconds),
                "grpc_timeout_header_max": seconds(timeouts.stream_seconds),
            },
        }
    else:
        # The service learns how long the edge will wait, so that it can stop when nobody is waiting any more.
        deadline = [header("grpc-timeout", f"{timeouts.unary_seconds * 1000:.0f}m", action="ADD_IF_ABSENT")]
        limits = {
            "timeout": seconds(timeouts.unary_seconds),
            "max_stream_duration": {"grpc_timeout_header_max": seconds(timeouts.unary_seconds)},
        }
    route: Config = {
        "name": f"{method.service}/{method.name}",
        # What the transcoder makes of a request too. gRPC's library ends a call by any other verb as if the service had failed.
        "match": {"path": method.path, "headers": [_method_is("POST")]},
        "route": {
            "cluster": method.area,
            # What the client calls the edge is no matter of the service's.
            "host_rewrite_literal": method.area,
            **limits,
            "retry_policy": _retries(method),
            "rate_limits": rate_limits(method, settings.rate_limit),
        },
        "request_headers_to_add": deadline,
        "request_headers_to_remove": [CLIENT_NETWORK_HEADER],
        "tracing": method_tracing(method, settings.tracing),
        "typed_per_filter_config": _script(method),
    }
    if method.path == JWKS_METHOD:
        age = f"public, max-age={settings.authentication.keys_cache_seconds:g}"
        cache = f"%CEL('grpc-status' in response.headers ? 'no-store' : '{age}')%"
        route["response_headers_to_add"] = [header("cache-control", cache)]
    return route


def _script(method: Method) -> Config:
    if method.resumable:
        return running(STREAMS)
    return running(DOCUMENTS) if method.path == JWKS_METHOD else {}


def _retries(method: Method) -> Config:
    repeatable = method.reads and not method.streams
    return {
        "retry_on": _REPEATABLE if repeatable else _NEVER_ARRIVED,
        "num_retries": 2,
        "retry_back_off": {"base_interval": "0.025s", "max_interval": "0.25s"},
        # A second try at the host that just failed would be wasted while there are others.
        "retry_host_predicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": typed("extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"),
            }
        ],
        # The dead have the fewest requests, so the balancer picks them over and over; a pick costs next to nothing.
        "host_selection_retry_max_attempts": 100,
    }


def _documents(settings: Settings) -> list[Config]:
    files = settings.files
    health = _document("/health", {"inline_string": '{"status":"SERVING"}'}, "application/json", settings)
    health["typed_per_filter_config"] |= without_local_limit()
    return [
        health,
        _document("/openapi.yaml", {"filename": str(files.openapi)}, "application/yaml", settings),
        _document("/docs", {"filename": str(files.docs)}, "text/html; charset=utf-8", settings),
    ]


def _document(path: str, body: Config, content_type: str, settings: Settings) -> Config:
    return {
        "name": path,
        "match": {"safe_regex": {"regex": _path_pattern(path)}, "headers": [_method_is(*_DOCUMENT_VERBS)]},
        "direct_response": {"status": 200, "body": body},
        "response_headers_to_add": [header("content-type", content_type), header("cache-control", "no-cache")],
        "typed_per_filter_config": _answered_here(),
        "tracing": path_tracing(path, settings.tracing),
    }


def _answered_here() -> Config:
    """Per-route configuration of what Envoy answers by itself: it needs no token, no method and no body."""
    return {**without_token(), **without_transcoding(), **without_waiting()}


def _templates(contract: Contract, settings: Settings) -> Iterable[Config]:
    """The paths of the contract, each first with what the transcoder would answer less exactly.

    A wrong method is 405 with `allow`, a body that it cannot read is 415. Paths with a verb of the contract come first: to the
    transcoder, a last segment with any other is an id with a colon in it.
    """
    for template, methods in sorted(_by_template(contract).items(), key=lambda each: ":" not in each[0]):
        bodies = [binding.verb for _, binding in methods if binding.takes_body]
        if bodies:
            for name, header_ in (("media type", _media_type_is_not_json()), ("content coding", is_compressed())):
                yield _refusal(f"{template} {name}", template, 415, [_method_is(*bodies), header_], settings)
        verbs = {binding.verb for _, binding in methods}
        # The key set is a document that happens to come from a service.
        head = {"HEAD"} if any(method.path == JWKS_METHOD for method, _ in methods) else set()
        yield from _other_methods(template, sorted(verbs | head), settings)
        yield _untranscoded(template, [method for method, _ in methods], settings)
    for document in ("/health", "/openapi.yaml", "/docs"):
        yield from _other_methods(document, _DOCUMENT_VERBS, settings)


def _by_template(contract: Contract) -> dict[str, list[tuple[Method, Binding]]]:
    bindings: dict[str, list[tuple[Method, Binding]]] = defaultdict(list)
    for method in contract.exposed:
        for binding in method.bindings:
            bindings[binding.template].append((method, binding))
    return bindings


def _other_methods(template: str, allowed: Sequence[str], settings: Settings) -> Iterable[Config]:
    yield _options(
        f"{template} options", {"safe_regex": {"regex": _path_pattern(template)}}, allowed, template, settings
    )
    refusal = _refusal(f"{template} method", template, 405, [{**_method_is(*allowed), "invert_match": True}], settings)
    refusal["response_headers_to_add"] = [header("allow", ", ".join(allowed))]
    yield refusal


def _preflight(method: Method, settings: Settings) -> Config:
    """What a browser asks before gRPC-Web."""
    name = f"{method.service}/{method.name}"
    return _options(f"{name} options", {"path": method.path}, ["POST"], name, settings)


def _options(name: str, match: Config, allowed: Sequence[str], template: str, settings: Settings) -> Config:
    """RFC 9110, 9.3.7; with the headers of a preflight when it is one."""
    verbs = ", ".join(allowed)
    return {
        "name": name,
        "match": {**match, "headers": [_method_is("OPTIONS")]},
        "direct_response": {"status": 204},
        "response_headers_to_add": [header("allow", verbs), *cors.on_preflights(settings.cors, verbs)],
        "typed_per_filter_config": _answered_here(),
        "tracing": path_tracing(template, settings.tracing),
    }


def _refusal(name: str, template: str, status: int, headers: list[Config], settings: Settings) -> Config:
    return {
        "name": name,
        "match": {"safe_regex": {"regex": _path_pattern(template)}, "headers": headers},
        "direct_response": {"status": status},
        "typed_per_filter_config": _answered_here(),
        "tracing": path_tracing(template, settings.tracing),
    }


def _untranscoded(template: str, methods: Iterable[Method], settings: Settings) -> Config:
    """Where JSON requests stand until the transcoder has given them their methods' paths, or has refused them."""
    route = _nowhere(template, {"safe_regex": {"regex": _path_pattern(template)}})
    if ":" in template:
        route["typed_per_filter_config"] |= running(VERBS)
    for method in methods:
        route["typed_per_filter_config"] |= _script(method)
    return {**route, "tracing": path_tracing(template, settings.tracing)}


def _unknown() -> Config:
    """Whatever is left is answered at once: its body, which may never end, is not waited for."""
    unknown = _nowhere("unknown", {"prefix": "/"})
    unknown["typed_per_filter_config"] |= without_waiting()
    return unknown


def _nowhere(name: str, match: Config) -> Config:
    """No client can send the header that would name a cluster, and without one Envoy answers 404."""
    return {
        "name": name,
        "match": match,
        "route": {"cluster_header": f"{EDGE_HEADER_PREFIX}nowhere", "cluster_not_found_response_code": "NOT_FOUND"},
        "typed_per_filter_config": without_token(),
    }


def _path_pattern(template: str) -> str:
    """The regular expression of every path that the transcoder takes for a template whose variables each span one segment."""
    literals = re.split(r"\{[^}]*\}", template)
    return "[^/]+".join(re.escape(literal) for literal in literals) + "/?"


def _method_is(*verbs: str) -> Config:
    return {"name": ":method", "string_match": {"safe_regex": {"regex": "|".join(verbs)}}}


def _media_type_is_not_json() -> Config:
    """True for any other type, and false for none: a call without fields needs no body and so no type."""
    return {
        "name": "content-type",
        "string_match": {"safe_regex": {"regex": f"({_JSON})?"}, "ignore_case": False},
        "treat_missing_header_as_empty": True,
        "invert_match": True,
    }
