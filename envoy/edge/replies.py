"""Local replies: Envoy's own answers in the form of the services' errors, a `google.rpc.Status`.

A JSON client gets it as the body. A gRPC or gRPC-Web client gets HTTP status 200 without a body, with the code in `grpc-status`,
the message in `grpc-message` and the whole status in `grpc-status-details-bin`. Envoy's own texts are not sent, because they name
hosts and causes. The exception is the transcoder's complaint about the caller's own request.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from urllib.parse import quote

from google.rpc import code_pb2

from edge import cors
from edge.bodies import METADATA
from edge.config import Config, extension, header
from edge.observability import FORMER_METHOD
from edge.requests import REFUSAL_METADATA, REFUSALS
from edge.settings import Cors
from edge.statuses import NOT_IN_TIME, UNREACHABLE, details, details_with_delay
from edge.transcoding import is_compressed
from mesh.edge_protocol import ERROR_DOMAIN, RATE_LIMIT_BANNED, RATE_LIMIT_METADATA, RATE_LIMIT_UNSATISFIABLE

_ENVOYS_WORDS = "%LOCAL_REPLY_BODY%"
# gRPC percent-encodes a message's bytes outside printable ASCII, and the percent sign itself.
_PRINTABLE = "".join(map(chr, range(0x20, 0x7F))).replace("%", "")


@dataclass(frozen=True)
class Reply:
    """One kind of local reply: when it applies, and its content. Without a status, Envoy's own stays."""

    when: Config
    status: int | None
    code: int
    reason: str
    message: str
    headers: dict[str, str] = field(default_factory=dict)
    field: str = ""
    """Path of the field at fault; the message is its violation."""
    retry_info: bool = False
    """Adds a RetryInfo: the delay of the header `retry-after`, else one second."""


def local_replies(settings: Cors) -> Config:
    """The `local_reply_config`. The first matching mapper applies; those for gRPC stand before those for JSON."""
    mappers = [mapper for reply in _replies() for mapper in _mappers(reply)]
    for mapper in mappers:
        # A malformed request is answered before any filter runs, so the headers that filters add are added here.
        mapper["headers_to_add"] += cors.on_every_answer(settings)
    return {"mappers": mappers}


def _replies() -> Iterator[Reply]:
    for kind, answer in REFUSALS.items():
        yield Reply(
            when=_noted(REFUSAL_METADATA, "name", kind),
            status=answer.status,
            code=answer.code,
            reason=answer.reason,
            message=answer.message,
            headers=answer.headers,
        )
    yield Reply(
        when=_noted(METADATA, "refusal", "frame"),
        status=400,
        code=code_pb2.INVALID_ARGUMENT,
        reason="REQUEST_MALFORMED",
        message="The body of this call has to be one whole message in gRPC's frame.",
    )
    yield Reply(
        when=_noted(METADATA, "refusal", "compressed"),
        status=415,
        code=code_pb2.UNIMPLEMENTED,
        reason="GRPC_ENCODING_NOT_SUPPORTED",
        message="Compressed messages are not taken; send them as they are.",
        headers={"grpc-accept-encoding": "identity"},
    )
    invalid_token = 'Bearer realm="storymesh", error="invalid_token"'
    yield Reply(
        when=_details("== 'jwt_authn_access_denied{Jwt_is_missing}'"),
        status=401,
        code=code_pb2.UNAUTHENTICATED,
        reason="TOKEN_MISSING",
        message="This call needs an access token in the header authorization: Bearer.",
        headers={"www-authenticate": 'Bearer realm="storymesh"'},
    )
    yield Reply(
        when=_details("== 'jwt_authn_access_denied{Jwt_is_expired}'"),
        status=401,
        code=code_pb2.UNAUTHENTICATED,
        reason="TOKEN_EXPIRED",
        message="The access token has expired; refresh it.",
        headers={"www-authenticate": invalid_token},
    )
    yield Reply(
        when=_details("== 'jwt_authn_access_denied{Jwks_remote_fetch_is_failed}'"),
        status=503,
        code=code_pb2.UNAVAILABLE,
        reason="TOKEN_KEYS_UNAVAILABLE",
        message="Access tokens cannot be verified at the moment; try again.",
        retry_info=True,
    )
    yield Reply(
        when=_details(".startsWith('jwt_authn_access_denied')"),
        status=401,
        code=code_pb2.UNAUTHENTICATED,
        reason="TOKEN_INVALID",
        message="The access token is not valid here.",
        headers={"www-authenticate": invalid_token},
    )
    yield Reply(
        when=_details(".startsWith('rate_limiter_error')"),
        status=503,
        code=code_pb2.UNAVAILABLE,
        reason="RATE_LIMITER_UNAVAILABLE",
        message="This call cannot be admitted at the moment; try again.",
        retry_info=True,
    )
    yield Reply(
        when=_all(_status("EQ", 400), _details(".contains('grpc_json_transcode')")),
        status=400,
        code=code_pb2.INVALID_ARGUMENT,
        reason="REQUEST_MALFORMED",
        message=_ENVOYS_WORDS,
    )
    for refusal, at_fault in (("json", ""), ("field", f"%DYNAMIC_METADATA({METADATA}:field)%")):
        yield Reply(
            when=_noted(METADATA, "refusal", refusal),
            status=400,
            code=code_pb2.INVALID_ARGUMENT,
            reason="REQUEST_MALFORMED",
            message=_ENVOYS_WORDS,
            field=at_fault,
        )
    yield Reply(
        when=_details("== 'low_version'"),
        status=426,
        code=code_pb2.UNIMPLEMENTED,
        reason="HTTP_VERSION_NOT_SUPPORTED",
        message="This version of HTTP is not served; use HTTP/1.1 or HTTP/2.",
    )
    yield Reply(
        when=_details("== 'upgrade_failed'"),
        status=400,
        code=code_pb2.UNIMPLEMENTED,
        reason="UPGRADE_NOT_SUPPORTED",
        message="The connection cannot be upgraded; HTTP/2 is spoken without, and a watch is a stream of server-sent events.",
    )
    yield Reply(
        when=_all(_status("EQ", 415), {"header_filter": {"header": is_compressed()}}),
        status=415,
        code=code_pb2.INVALID_ARGUMENT,
        reason="CONTENT_ENCODING_NOT_SUPPORTED",
        message="The request body must not be compressed; send it without the header content-encoding.",
        headers={"accept-encoding": "identity"},
    )
    yield Reply(
        when=_noted(RATE_LIMIT_METADATA, "reason", RATE_LIMIT_UNSATISFIABLE),
        status=429,
        code=code_pb2.RESOURCE_EXHAUSTED,
        reason=RATE_LIMIT_UNSATISFIABLE,
        message="This call is over a limit at any time: it is blocked, or costs more than the limit ever holds.",
    )
    yield Reply(
        when=_noted(RATE_LIMIT_METADATA, "reason", RATE_LIMIT_BANNED),
        status=429,
        code=code_pb2.RESOURCE_EXHAUSTED,
        reason=RATE_LIMIT_BANNED,
        message="Calls from here, or of this account, are refused for some time; the header retry-after says for how long.",
        retry_info=True,
    )
    for status, code, reason, message in (
        (400, code_pb2.INVALID_ARGUMENT, "REQUEST_MALFORMED", "The request is not well-formed HTTP."),
        (404, code_pb2.NOT_FOUND, "PATH_NOT_FOUND", "There is no such path or method; /docs shows what there is."),
        (
            405,
            code_pb2.UNIMPLEMENTED,
            "METHOD_NOT_ALLOWED",
            "This path does not take this method; see the header allow.",
        ),
        (408, code_pb2.DEADLINE_EXCEEDED, "REQUEST_TIMEOUT", "The call took too long."),
        (413, code_pb2.INVALID_ARGUMENT, "REQUEST_TOO_LARGE", "The request body is too large."),
        (415, code_pb2.INVALID_ARGUMENT, "UNSUPPORTED_MEDIA_TYPE", "The request body has to be application/json."),
        (431, code_pb2.INVALID_ARGUMENT, "HEADERS_TOO_LARGE", "The request headers are too large."),
        (
            501,
            code_pb2.UNIMPLEMENTED,
            "TRANSFER_ENCODING_NOT_SUPPORTED",
            "The only transfer-encoding that a request may have is chunked.",
        ),
    ):
        yield Reply(when=_status("EQ", status), status=status, code=code, reason=reason, message=message)
    yield Reply(
        when=_status("EQ", 429),
        status=429,
        code=code_pb2.RESOURCE_EXHAUSTED,
        reason="RATE_LIMITED",
        message="Too many calls; the header retry-after says when to try again.",
        retry_info=True,
    )
    yield Reply(
        when=_status("EQ", 504),
        status=504,
        code=code_pb2.DEADLINE_EXCEEDED,
        reason="DEADLINE_EXCEEDED",
        message=NOT_IN_TIME,
    )
    yield Reply(
        when=_any(_status("EQ", 502), _status("EQ", 503)),
        status=503,
        code=code_pb2.UNAVAILABLE,
        reason="SERVICE_UNAVAILABLE",
        message=UNREACHABLE,
        retry_info=True,
    )
    yield Reply(
        when=_status("GE", 500),
        status=500,
        code=code_pb2.INTERNAL,
        reason="INTERNAL",
        message="internal error",
    )
    # Direct responses with 2xx are local replies too and stay unchanged.
    yield Reply(
        when=_status("GE", 400),
        status=None,
        code=code_pb2.INVALID_ARGUMENT,
        reason="REQUEST_MALFORMED",
        message="The request cannot be served.",
    )


def _mappers(reply: Reply) -> Iterator[Config]:
    if reply.message != _ENVOYS_WORDS:
        yield _for_grpc(reply)
    yield _for_json(reply)


def _for_json(reply: Reply) -> Config:
    all_details: list[Config] = [
        {
            "@type": "type.googleapis.com/google.rpc.ErrorInfo",
            "reason": reply.reason,
            "domain": ERROR_DOMAIN,
            "metadata": {},
        }
    ]
    if reply.field:
        violation = {"field": reply.field, "description": reply.message, "reason": "TYPE"}
        all_details.append({"@type": "type.googleapis.com/google.rpc.BadRequest", "field_violations": [violation]})
    if reply.retry_info:
        all_details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retry_delay": "%RESP(retry-after)%s"})
    return {
        "filter": reply.when,
        **({"status_code": reply.status} if reply.status else {}),
        "headers_to_add": _headers(reply, reply.headers),
        "body_format_override": {
            "json_format": {"code": reply.code, "message": reply.message, "details": all_details},
        },
    }


def _for_grpc(reply: Reply) -> Config:
    # An unknown method is UNIMPLEMENTED in gRPC; NOT_FOUND means a missing resource.
    code = code_pb2.UNIMPLEMENTED if reply.status == 404 else reply.code
    encode = details_with_delay if reply.retry_info else details
    headers = {
        **reply.headers,
        "grpc-status": str(code),
        # Set here, because Envoy derives the code for gRPC-Web from the HTTP status when it converts a body.
        "grpc-message": quote(reply.message, safe=_PRINTABLE).replace("%", "%%"),
        "grpc-status-details-bin": encode(code, reply.message, reply.reason),
    }
    return {
        "filter": _all(_is_grpc(), reply.when),
        # gRPC-Web libraries accept only 200 as a gRPC answer; native gRPC always uses it.
        "status_code": 200,
        "headers_to_add": _headers(reply, headers),
        "body": {"inline_string": ""},
        "body_format_override": {"text_format_source": {"inline_string": _ENVOYS_WORDS}},
    }


def _headers(reply: Reply, headers: dict[str, str]) -> list[Config]:
    added = [header(key, value) for key, value in headers.items()]
    if reply.retry_info:
        # Kept when it is set already: the limiter's value is more exact.
        added.append(header("retry-after", "1", action="ADD_IF_ABSENT"))
    return added


def _is_grpc() -> Config:
    """Matches requests that the client sent as gRPC: the content type without the header that the transcoder adds."""
    return _all(
        {"header_filter": {"header": {"name": "content-type", "string_match": {"prefix": "application/grpc"}}}},
        {"header_filter": {"header": {"name": FORMER_METHOD, "present_match": True, "invert_match": True}}},
    )


def _details(expression: str) -> Config:
    """Matches on Envoy's response code details, which are more exact than the status."""
    return {
        "extension_filter": extension(
            "envoy.access_loggers.extension_filters.cel",
            "extensions.access_loggers.filters.cel.v3.ExpressionFilter",
            expression=f"response.code_details{' ' if expression.startswith('=') else ''}{expression}",
        )
    }


def _noted(namespace: str, key: str, value: str) -> Config:
    """Matches on a value that a filter wrote to the request's dynamic metadata."""
    return {
        "metadata_filter": {
            "matcher": {
                "filter": namespace,
                "path": [{"key": key}],
                "value": {"string_match": {"exact": value}},
            },
            "match_if_key_not_found": False,
        }
    }


def _status(operator: str, status: int) -> Config:
    return {
        "status_code_filter": {
            "comparison": {"op": operator, "value": {"default_value": status, "runtime_key": "edge.unused"}}
        }
    }


def _all(*filters: Config) -> Config:
    return {"and_filter": {"filters": list(filters)}}


def _any(*filters: Config) -> Config:
    return {"or_filter": {"filters": list(filters)}}
