"""Maps errors to google.rpc.Status, in this one place."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import timedelta
from functools import lru_cache
from typing import Any, cast

import grpc
import redis.exceptions
import sqlalchemy.exc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from kit.data.liveness import DependencyAway
from kit.data.object_errors import ObjectStoreUnavailable
from kit.errors import DeadlineExceeded, Internal, InvalidArgument, MeshError, Unavailable, Violation
from mesh.edge_protocol import ERROR_DOMAIN

from .peer_errors import shown

_DOWN: dict[str, tuple[type[Exception], ...]] = {
    "postgres": (sqlalchemy.exc.OperationalError, sqlalchemy.exc.InterfaceError, sqlalchemy.exc.TimeoutError),
    "redis": (
        redis.exceptions.ConnectionError,
        redis.exceptions.TimeoutError,
        redis.exceptions.BusyLoadingError,
    ),
}


def as_mesh_error(error: Exception) -> MeshError:
    """The error a caller is to see: what we raised on purpose, what will pass by itself, or Internal. A peer's is not passed on."""
    if isinstance(error, MeshError):
        return shown(error)
    if (dependency := _dependency_down(error)) is not None:
        return Unavailable(dependency=dependency) if dependency else Unavailable()
    return DeadlineExceeded() if isinstance(error, TimeoutError) else Internal()


def _dependency_down(error: Exception) -> str | None:
    """The dependency that does not answer; empty when nobody can tell. None for any other error."""
    match error:
        case DependencyAway() | ObjectStoreUnavailable():
            return error.dependency
        case sqlalchemy.exc.DBAPIError() if error.connection_invalidated:
            return "postgres"
        case ConnectionError():
            return ""
    return next((dependency for dependency, errors in _DOWN.items() if isinstance(error, errors)), None)


def to_status(error: MeshError) -> status_pb2.Status:
    """ErrorInfo first, then what the kind of error adds."""
    violations = error.violations if isinstance(error, InvalidArgument) else ()
    return _status(
        error.code,
        error.reason,
        str(error),
        retry_after=error.retry_after,
        metadata=error.metadata,
        violations=violations,
    )


def _status(
    code: grpc.StatusCode,
    reason: str,
    message: str,
    *,
    retry_after: timedelta | None,
    metadata: Mapping[str, str] | None = None,
    violations: Sequence[Violation] = (),
) -> status_pb2.Status:
    number: int = code.value[0]
    status = status_pb2.Status(code=number, message=message)
    _attach(status, error_details_pb2.ErrorInfo(reason=reason, domain=ERROR_DOMAIN, metadata=metadata))
    if violations:
        fields = [
            error_details_pb2.BadRequest.FieldViolation(field=v.field, description=v.description, reason=v.reason)
            for v in violations
        ]
        _attach(status, error_details_pb2.BadRequest(field_violations=fields))
    if retry_after is not None:
        delay = duration_pb2.Duration()
        delay.FromTimedelta(retry_after)
        _attach(status, error_details_pb2.RetryInfo(retry_delay=delay))
    return status


def to_grpc(error: MeshError) -> grpc.Status:
    """The status as grpc sends it. A time to wait is also the header `retry-after` (RFC 9110, 10.2.3), in whole seconds."""
    if isinstance(error, InvalidArgument) or error.metadata:
        return _to_grpc(to_status(error), error.retry_after)
    return _plain(error.code, error.reason, str(error), error.retry_after)


@lru_cache(maxsize=256)
def _plain(code: grpc.StatusCode, reason: str, message: str, retry_after: timedelta | None) -> grpc.Status:
    """A status that holds nothing of its call. Kept, because a flood is refused with the same one each time."""
    return _to_grpc(_status(code, reason, message, retry_after=retry_after), retry_after)


def _to_grpc(rich: status_pb2.Status, retry_after: timedelta | None) -> grpc.Status:
    status: Any = rpc_status.to_status(rich)
    if retry_after is not None:
        wait = ("retry-after", str(max(1, math.ceil(retry_after.total_seconds()))))
        status = status._replace(trailing_metadata=(*status.trailing_metadata, wait))
    return cast("grpc.Status", status)


def _attach(
    status: status_pb2.Status,
    detail: error_details_pb2.ErrorInfo | error_details_pb2.BadRequest | error_details_pb2.RetryInfo,
) -> None:
    packed = any_pb2.Any()
    packed.Pack(detail)
    status.details.append(packed)
