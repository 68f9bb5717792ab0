"""Routes: one per exposed method, the documents that Envoy serves itself, and refusals with the right status for the rest.

A JSON request is routed twice. First by its URL: documents, refusals and answers to OPTIONS match here, and otherwise a route
without a cluster that names the path. Then, after the transcoder, by the path of its gRPC method, which native gRPC has at once. A
path that neither step matches ends in the last route, a 404. A trailing slash makes no difference, as for the transcoder.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Sequence

from edge import cors, quotas
from edge.authentication import JWKS_METHOD, without_token
from edge.config import Config, header, seconds, typed
from edge.limits import CLIENT_NETWORK_HEADER, rate_limits, without_local_limit
from edge.observability import hidden_url, method_tracing, path_tracing
from edge.route_tree import by_beginning
from edge.scripts import DOCUMENTS, PAGES, REDIRECTS, STREAMS, VERBS, running
from edge.settings import Settings
from edge.sizes import without_waiting
from edge.transcoding import is_compressed, without_transcoding
from mesh.contract import Binding, Contract, Method
from mesh.edge_protocol import EDGE_HEADER_PREFIX

# Failures in which the service has not seen the request: a retry is safe for any method.
_NEVER_ARRIVED = "connect-failure,refused-stream,reset-before-request"
# Adds failures with an unknown outcome: a retry is safe only for methods without side effects.
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
                "matcher": by_beginning(
                    [
                        *(_preflight(method, settings) for method in contract.exposed),
                        *(_method(method, settings) for method in contract.exposed),
                        *_documents(settings),
                        *_templates(contract, settings),
                        *(_below_secrets(prefix, settings) for prefix in contract.hidden_below),
                        _unknown(),
                    ]
                ),
            }
        ],
    }


def _method(method: Method, settings: Settings) -> Config:
    timeouts = settings.timeouts
    deadline: list[Config] = []
    if method.streams:
        limits = {
            # The response timeout would cut the stream; the idle timeout between two messages applies instead.
            "timeout": "0s",
            "idle_timeout": seconds(timeouts.stream_idle_seconds),
            "max_stream_duration": {
                "max_stream_duration": seconds(timeouts.stream_seconds),
                "grpc_timeout_header_max": seconds(timeouts.stream_seconds),
            },
        }
    else:
        # Passes the edge's own deadline to the service, so that it stops when nobody waits any more.
        deadline = [header("grpc-timeout", f"{timeouts.unary_seconds * 1000:.0f}m", action="ADD_IF_ABSENT")]
        limits = {
            "timeout": seconds(timeouts.unary_seconds),
            "max_stream_duration": {"grpc_timeout_header_max": seconds(timeouts.unary_seconds)},
        }
    route: Config = {
        "name": f"{method.service}/{method.name}",
        # gRPC calls are POST, transcoded ones too. gRPC's library fails other methods as if the service had failed.
        "match": {"path": method.path, "headers": [_method_is("POST")]},
        "route": {
            "cluster": method.area,
            # The service gets a fixed authority: the client's Host header does not concern it.
            "host_rewrite_literal": method.area,
            **limits,
            "retry_policy": _retries(method),
            "rate_limits": []
            if quotas.decides(method, settings.rate_limit)
            else rate_limits(method, settings.rate_limit),
        },
        "request_headers_to_add": deadline,
        "request_headers_to_remove": [CLIENT_NETWORK_HEADER, quotas.USER_HEADER],
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
    if method.answers_pages:
        return running(PAGES)
    if method.redirects:
        return running(REDIRECTS)
    return running(DOCUMENTS) if method.path == JWKS_METHOD else {}


def _retries(method: Method) -> Config:
    repeatable = method.reads and not method.streams
    return {
        "retry_on": _REPEATABLE if repeatable else _NEVER_ARRIVED,
        "num_retries": 2,
        "retry_back_off": {"base_interval": "0.025s", "max_interval": "0.25s"},
        # Retries avoid the host that just failed while there are others.
        "retry_host_predicate": [
            {
                "name": "envoy.retry_host_predicates.previous_hosts",
                "typed_config": typed("extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate"),
            }
        ],
        # Dead hosts have the fewest requests, so LEAST_REQUEST picks them again and again; many attempts cost almost nothing.
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
    """Per-route configuration of a path that Envoy answers itself: no token, no transcoding, no body."""
    return {**without_token(), **without_transcoding(), **without_waiting()}


def _templates(contract: Contract, settings: Settings) -> Iterable[Config]:
    """Routes of the contract's path templates, with refusals that are more exact than the transcoder's.

    A wrong method gets 405 with `allow`, an unreadable media type 415. Paths with a verb of the contract come first, because the
    transcoder takes a last segment with an unknown verb for an id with a colon in it.
    """
    for template, methods in sorted(_by_template(contract).items(), key=lambda each: ":" not in each[0]):
        for route in _of_template(template, methods, settings):
            if any(binding.answers_page for _, binding in methods):
                route["typed_per_filter_config"] |= running(PAGES)
            if any(method.redirects for method, _ in methods):
                route["typed_per_filter_config"] |= running(REDIRECTS)
            if any(binding.hidden_below for _, binding in methods):
                route["tracing"]["custom_tags"].append(hidden_url(template))
            yield route
    for document in ("/health", "/openapi.yaml", "/docs"):
        yield from _other_methods(document, _DOCUMENT_VERBS, settings)


def _of_template(template: str, methods: Sequence[tuple[Method, Binding]], settings: Settings) -> Iterable[Config]:
    bodies = [binding.verb for _, binding in methods if binding.takes_body]
    json_bodies = [binding.verb for _, binding in methods if binding.takes_body and not binding.takes_any_body]
    for name, verbs_, header_ in (
        ("media type", json_bodies, _media_type_is_not_json()),
        ("content coding", bodies, is_compressed()),
    ):
        if verbs_:
            yield _refusal(f"{template} {name}", template, 415, [_method_is(*verbs_), header_], settings)
    verbs = {binding.verb for _, binding in methods}
    # The key set is a document, although a service answers it, and so is a page.
    documents = any(method.path == JWKS_METHOD or method.answers_pages for method, _ in methods)
    head = {"HEAD"} if documents and "GET" in verbs else set()
    yield from _other_methods(template, sorted(verbs | head), settings)
    yield _untranscoded(template, [method for method, _ in methods], settings)


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
    """The route that answers CORS preflights of gRPC-Web calls."""
    name = f"{method.service}/{method.name}"
    return _options(f"{name} options", {"path": method.path}, ["POST"], name, settings)


def _options(name: str, match: Config, allowed: Sequence[str], template: str, settings: Settings) -> Config:
    """The route that answers OPTIONS (RFC 9110, 9.3.7), with CORS headers when it is a preflight."""
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
    """The route of a JSON request until the transcoder rewrites its path or refuses it."""
    route = _nowhere(template, {"safe_regex": {"regex": _path_pattern(template)}})
    if ":" in template:
        route["typed_per_filter_config"] |= running(VERBS)
    for method in methods:
        route["typed_per_filter_config"] |= _script(method)
    return {**route, "tracing": path_tracing(template, settings.tracing)}


def _below_secrets(prefix: str, settings: Settings) -> Config:
    """The route of unknown paths below those that hold a secret: a link that was copied with too much is a page, and not traced."""
    route = _nowhere(f"{prefix}...", {"prefix": prefix, "case_sensitive": False})
    route["typed_per_filter_config"] |= without_waiting() | running(PAGES)
    tracing = path_tracing(f"{prefix}...", settings.tracing)
    tracing["custom_tags"].append(hidden_url(f"{prefix}..."))
    return {**route, "tracing": tracing}


def _unknown() -> Config:
    """The last route: 404 at once, without waiting for the body, which may never end."""
    unknown = _nowhere("unknown", {"prefix": "/"})
    unknown["typed_per_filter_config"] |= without_waiting()
    return unknown


def _nowhere(name: str, match: Config) -> Config:
    """A route that names its cluster by a header that no client can send, so that Envoy answers 404."""
    return {
        "name": name,
        "match": match,
        "route": {"cluster_header": f"{EDGE_HEADER_PREFIX}nowhere", "cluster_not_found_response_code": "NOT_FOUND"},
        "typed_per_filter_config": without_token(),
    }


def _path_pattern(template: str) -> str:
    """The regular expression of a path template as the transcoder matches it. Each variable spans one segment."""
    literals = re.split(r"\{[^}]*\}", template)
    return "[^/]+".join(re.escape(literal) for literal in literals) + "/?"


def _method_is(*verbs: str) -> Config:
    one = {"exact": verbs[0]} if len(verbs) == 1 else {"safe_regex": {"regex": "|".join(verbs)}}
    return {"name": ":method", "string_match": one}


def _media_type_is_not_json() -> Config:
    """Matches any other content type, but not an absent one: a call without fields needs no body and so no type."""
    return {
        "name": "content-type",
        "string_match": {"safe_regex": {"regex": f"({_JSON})?"}, "ignore_case": False},
        "treat_missing_header_as_empty": True,
        "invert_match": True,
    }
