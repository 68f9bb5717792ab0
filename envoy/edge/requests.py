"""The request filter: an allow-list of headers and checks of form, before any other filter.

All clients' calls share one connection to each process of a service, and gRPC's library fails on bytes that it does not expect: a
malformed `grpc-timeout` fails others' later calls (grpc#34721), a query that is not UTF-8 ends the whole server, and each odd
header is logged in full. So only listed headers pass, with values in printable ASCII. `grpc-encoding` is not among them: a gRPC
server answers a compressed message with an error when no encoding was named, and unpacks nothing.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from google.rpc import code_pb2

from edge import lua
from edge.config import Config, extension
from mesh.contract import Contract

_PSEUDO_HEADERS = (":authority", ":method", ":path", ":scheme")
_FOR_THE_SERVICES = (
    "authorization",
    "content-type",
    "grpc-timeout",
    "traceparent",
    "tracestate",
    "user-agent",
    "webhook-id",
    "webhook-signature",
    "webhook-timestamp",
    "x-request-id",
    "x-user-agent",
)
_FOR_THE_EDGES_OWN_FILTERS = (
    "accept",
    "access-control-request-headers",
    "access-control-request-method",
    "content-encoding",
    "last-event-id",
    "origin",
    "x-forwarded-proto",
    "x-grpc-web",
)
PASSES = (*_PSEUDO_HEADERS, *_FOR_THE_SERVICES, *_FOR_THE_EDGES_OWN_FILTERS)
"""The allow-list of request headers. The edge's later filters may add others."""

REFUSAL_METADATA = "storymesh.refusal"
"""Namespace of the filter's dynamic metadata: `name` is the refusal it answered with."""

_SCRIPT = Path(__file__).with_suffix(".lua").read_text()


@dataclass(frozen=True)
class EdgeRefusal:
    """One reason to refuse a request. The message repeats nothing that the client sent."""

    status: int
    code: int
    reason: str
    message: str
    headers: dict[str, str] = field(default_factory=dict)


def _malformed(message: str) -> EdgeRefusal:
    return EdgeRefusal(400, code_pb2.INVALID_ARGUMENT, "REQUEST_MALFORMED", message)


REFUSALS: dict[str, EdgeRefusal] = {
    "path": _malformed("A path may hold printable ASCII only; other characters have to be percent-encoded."),
    "query": _malformed("This method takes its fields from the body; the path must not have a query."),
    "timeout": _malformed("The header grpc-timeout has to be 1 to 8 digits and one of the units H, M, S, m, u and n."),
    "compression": EdgeRefusal(
        415,
        code_pb2.UNIMPLEMENTED,
        "GRPC_ENCODING_NOT_SUPPORTED",
        "Compressed messages are not taken; the header grpc-encoding may be identity or left out.",
        headers={"grpc-accept-encoding": "identity"},
    ),
    "connect": EdgeRefusal(
        405,
        code_pb2.UNIMPLEMENTED,
        "METHOD_NOT_ALLOWED",
        "The edge is no proxy for other hosts.",
        headers={"allow": "DELETE, GET, PATCH, POST"},
    ),
}
"""Refusals by the name that the Lua script uses."""


def judged(contract: Contract) -> Config:
    """The filter. It is a Lua script, because Envoy's mutations remove headers by name and cannot keep an allow-list."""
    told = lua.constants(
        PASSES=dict.fromkeys(PASSES, True),
        TAKES_BODY=dict.fromkeys(_body_verbs(contract), True),
        STATUSES={name: str(refusal.status) for name, refusal in REFUSALS.items()},
        REFUSAL_METADATA=REFUSAL_METADATA,
    )
    return extension(
        "envoy.filters.http.lua",
        "extensions.filters.http.lua.v3.Lua",
        default_source_code={"inline_string": told + _SCRIPT},
    )


def without_trailers() -> list[Config]:
    """A mutation that removes all request trailers: gRPC uses none, and its library fails on odd bytes in them too."""
    return [{"remove_on_match": {"key_matcher": {"safe_regex": {"regex": ".*"}}}}]


def _body_verbs(contract: Contract) -> Iterable[str]:
    """HTTP methods whose fields come from the body alone. gRPC's own POST is among them."""
    bindings = [binding for method in contract.exposed for binding in method.bindings]
    return sorted({"POST", *(each.verb for each in bindings)} - {each.verb for each in bindings if not each.takes_body})
