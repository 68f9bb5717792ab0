"""What Envoy says when it answers by itself: the same `google.rpc.Status` that the services' errors become.

A JSON client gets it as the body. A native gRPC client gets the code as `grpc-status`, the message as `grpc-message` and the whole
in `grpc-status-details-bin`, where its library looks for details. Envoy's own words stay inside, because they name hosts and
causes; the one exception is the transcoder's complaint about the caller's own request.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import dataclass, field

from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2

from edge.config import Config, extension, header

DOMAIN = "storymesh"
_ENVOYS_WORDS = "%LOCAL_REPLY_BODY%"


@dataclass(frozen=True)
class Reply:
    """One kind of answer: when it is given, and what it says. Without a status, the one that Envoy chose stays."""

    when: Config
    status: int | None
    code: int
    reason: str
    message: str
    headers: dict[str, str] = field(default_factory=dict)
    retry_info: bool = False


def local_replies() -> Config:
    """`local_reply_config`: the first mapper that matches speaks, those for native gRPC before those for JSON."""
    return {"mappers": [mapper for reply in _replies() for mapper in (_for_grpc(reply), _for_json(reply))]}


def _replies() -> Iterator[Reply]:
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
        headers={"retry-after": "1"},
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
        headers={"retry-after": "1"},
        retry_info=True,
    )
    yield Reply(
        when=_all(_status("EQ", 400), _details(".contains('grpc_json_transcode')")),
        status=400,
        code=code_pb2.INVALID_ARGUMENT,
        reason="REQUEST_MALFORMED",
        message=_ENVOYS_WORDS,
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
        message="The service did not answer in time.",
    )
    yield Reply(
        when=_any(_status("EQ", 502), _status("EQ", 503)),
        status=503,
        code=code_pb2.UNAVAILABLE,
        reason="SERVICE_UNAVAILABLE",
        message="The service cannot be reached at the moment; try again.",
        headers={"retry-after": "1"},
        retry_info=True,
    )
    yield Reply(
        when=_status("GE", 500),
        status=500,
        code=code_pb2.INTERNAL,
        reason="INTERNAL",
        message="internal error",
    )
    # Direct responses with 2xx are local replies too, and stay as they are.
    yield Reply(
        when=_status("GE", 400),
        status=None,
        code=code_pb2.INVALID_ARGUMENT,
        reason="REQUEST_MALFORMED",
        message="The request cannot be served.",
    )


def _for_json(reply: Reply) -> Config:
    details: list[Config] = [
        {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reply.reason, "domain": DOMAIN, "metadata": {}}
    ]
    if reply.retry_info:
        # The limiter's own header where it sent one, else what this reply sets.
        details.append({"@type": "type.googleapis.com/google.rpc.RetryInfo", "retry_delay": "%RESP(retry-after)%s"})
    return {
        "filter": reply.when,
        **({"status_code": reply.status} if reply.status else {}),
        "headers_to_add": [header(key, value) for key, value in reply.headers.items()],
        "body_format_override": {
            "json_format": {"code": reply.code, "message": reply.message, "details": details},
        },
    }


def _for_grpc(reply: Reply) -> Config:
    # An unknown method is UNIMPLEMENTED over gRPC, where NOT_FOUND speaks of a resource.
    code = code_pb2.UNIMPLEMENTED if reply.status == 404 else reply.code
    status = status_pb2.Status(code=code, message=reply.message)
    packed = any_pb2.Any()
    packed.Pack(error_details_pb2.ErrorInfo(reason=reply.reason, domain=DOMAIN))
    status.details.append(packed)
    headers = {
        **reply.headers,
        "grpc-status": str(code),
        "grpc-status-details-bin": base64.b64encode(status.SerializeToString()).decode().rstrip("="),
    }
    return {
        "filter": _all(_is_native_grpc(), reply.when),
        **({"status_code": reply.status} if reply.status else {}),
        "headers_to_add": [header(key, value) for key, value in headers.items()],
        "body": {"inline_string": reply.message},
        "body_format_override": {"text_format_source": {"inline_string": _ENVOYS_WORDS}},
    }


def _is_native_grpc() -> Config:
    """gRPC from the client's side on: the transcoder gives its requests the same type, but also notes their former method."""
    return _all(
        {"header_filter": {"header": {"name": "content-type", "string_match": {"prefix": "application/grpc"}}}},
        {"header_filter": {"header": {"name": "x-envoy-original-method", "present_match": True, "invert_match": True}}},
    )


def _details(expression: str) -> Config:
    """Matches on why Envoy answered, which is more exact than the status."""
    return {
        "extension_filter": extension(
            "envoy.access_loggers.extension_filters.cel",
            "extensions.access_loggers.filters.cel.v3.ExpressionFilter",
            expression=f"response.code_details{' ' if expression.startswith('=') else ''}{expression}",
        )
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
