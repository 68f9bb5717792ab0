"""The value of `grpc-status-details-bin`: a google.rpc.Status in base64, where gRPC's libraries look for an error's details.

The delay of a RetryInfo is known only when Envoy answers. An expression computes its base64 from the header `retry-after` by
arithmetic, because Envoy's expressions have numbers and lists, but neither protobuf nor bytes.
"""

from __future__ import annotations

import base64
import json
import string
from collections.abc import Iterable, Iterator

from google.protobuf.any_pb2 import Any
from google.rpc import code_pb2, error_details_pb2, status_pb2

from edge.config import Config, extension, header
from mesh.edge_protocol import ERROR_DOMAIN

NOT_IN_TIME = "The service did not answer in time."
UNREACHABLE = "The service cannot be reached at the moment; try again."

# Statuses that gRPC's library sends in a service's name, without details. The services' own errors have details.
_LIBRARIES_ERRORS = {
    code_pb2.CANCELLED: ("CANCELLED", "The call was cancelled."),
    code_pb2.UNKNOWN: ("INTERNAL", "internal error"),
    code_pb2.DEADLINE_EXCEEDED: ("DEADLINE_EXCEEDED", NOT_IN_TIME),
    code_pb2.RESOURCE_EXHAUSTED: ("RESOURCE_EXHAUSTED", "The service has no room for this call."),
    code_pb2.UNIMPLEMENTED: ("METHOD_NOT_IMPLEMENTED", "The service does not have this method."),
    code_pb2.INTERNAL: ("INTERNAL", "internal error"),
    code_pb2.UNAVAILABLE: ("SERVICE_UNAVAILABLE", UNREACHABLE),
}

_PLACE = b"\xff\xff\x7f"
"""Placeholder of the delay: a three-byte varint that no text contains. It holds up to 24 days; smaller values are padded to three
bytes, which protobuf permits. At an offset divisible by three, its four base64 characters are independent of the neighbours."""

_ALPHABET = json.dumps([*string.ascii_uppercase, *string.ascii_lowercase, *string.digits, "+", "/"])
_SECONDS = "('retry-after' in response.headers ? int(response.headers['retry-after']) : 1)"


def explained() -> Config:
    """A filter that gives errors without details a reason, and removes the library's text. It stands right before the router."""
    return extension(
        "envoy.filters.http.header_mutation.explained",
        "extensions.filters.http.header_mutation.v3.HeaderMutation",
        mutations={
            "response_mutations": list(_explanations("response.headers")),
            "response_trailers_mutations": list(_explanations("response.trailers")),
        },
    )


def _explanations(place: str) -> Iterator[Config]:
    # The cheapest comparison first; most calls end here.
    known = f"'grpc-status' in {place} && {place}['grpc-status'] != '0' && !('grpc-status-details-bin' in {place})"
    for name, values in (
        ("grpc-message", {str(code): message for code, (_, message) in _LIBRARIES_ERRORS.items()}),
        # Last, because the other expressions read it.
        (
            "grpc-status-details-bin",
            {str(code): details(code, message, reason) for code, (reason, message) in _LIBRARIES_ERRORS.items()},
        ),
    ):
        status = f"{place}['grpc-status']"
        table = json.dumps(values)
        yield {"append": header(name, f"%CEL({known} && {status} in {table} ? {table}[{status}] : '')%")}


def details(code: int, message: str, reason: str) -> str:
    """A status with an ErrorInfo, serialised and in base64."""
    return _base64(_status(code, message, reason, ()))


def details_with_delay(code: int, message: str, reason: str) -> str:
    """The same with a RetryInfo, as a format string of Envoy: the delay of the header `retry-after`, or 1 s without one."""
    retry_info = Any(type_url="type.googleapis.com/google.rpc.RetryInfo")
    for padding in range(3):
        # Explicit default nanoseconds, which move the seconds two bytes further.
        delay = b"\x10\x00" * padding + b"\x08" + _PLACE
        retry_info.value = b"\x0a" + bytes([len(delay)]) + delay
        status = _status(code, message, reason, [retry_info])
        if status.index(_PLACE) % 3 == 0:
            break
    before, after = status.split(_PLACE)
    return base64.b64encode(before).decode() + _delay() + _base64(after)


def _delay() -> str:
    low = f"(128 + {_SECONDS} % 128)"
    middle = f"(128 + {_SECONDS} / 128 % 128)"
    high = f"({_SECONDS} / 16384)"
    sextets = (f"{low} / 4", f"{low} % 4 * 16 + {middle} / 16", f"{middle} % 16 * 4 + {high} / 64", f"{high} % 64")
    return "".join(f"%CEL({_ALPHABET}[{sextet}])%" for sextet in sextets)


def _status(code: int, message: str, reason: str, further: Iterable[Any]) -> bytes:
    info = Any()
    info.Pack(error_details_pb2.ErrorInfo(reason=reason, domain=ERROR_DOMAIN))
    return status_pb2.Status(code=code, message=message, details=[info, *further]).SerializeToString()


def _base64(status: bytes) -> str:
    return base64.b64encode(status).decode().rstrip("=")
