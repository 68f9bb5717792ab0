"""Rebuilds the MeshError that a peer raised from the status that arrived, and decides which of them may travel on.

An error belongs to whoever made the call. A call in a person's name (`channels.in_the_name_of`) is that person's, so what it is
refused for may be told to them. A call in the service's own name is nobody else's business: a caller that read its refusal, say
UNAUTHENTICATED because two services disagree about the mesh key, would take it for one of its own request.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import timedelta
from typing import TypeVar

from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata

from kit import errors
from kit.errors import Internal, InvalidArgument, MeshError, Unavailable, Violation
from mesh.edge_protocol import ERROR_DOMAIN

M = TypeVar("M", bound=Message)

_DETAILS = "grpc-status-details-bin"
_REASON = re.compile(r"[A-Z][A-Z0-9_]{0,62}")
"""The form of a reason in ErrorInfo (AIP-193)."""

_MOST_DETAILS = 32
_MOST_CHARACTERS = 1_000
_LONGEST_RETRY = timedelta(days=7)

_BY_CODE: dict[StatusCode, type[MeshError]] = {
    StatusCode.INVALID_ARGUMENT: errors.InvalidArgument,
    StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
    StatusCode.NOT_FOUND: errors.NotFound,
    StatusCode.ALREADY_EXISTS: errors.AlreadyExists,
    StatusCode.FAILED_PRECONDITION: errors.FailedPrecondition,
    StatusCode.RESOURCE_EXHAUSTED: errors.ResourceExhausted,
    StatusCode.UNAVAILABLE: errors.Unavailable,
    # A peer that is stopped ends its open calls so; our own cancellation arrives as CancelledError.
    StatusCode.CANCELLED: errors.Unavailable,
    StatusCode.DEADLINE_EXCEEDED: errors.DeadlineExceeded,
    StatusCode.UNIMPLEMENTED: errors.Unimplemented,
}
"""Every other code is Internal."""

_BY_REASON: dict[tuple[StatusCode, str], type[MeshError]] = {
    (kind.code, kind.reason): kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, MeshError) and kind is not MeshError
}
"""The errors of the kit, which every service knows. A reason of a single service arrives as the error of its code."""

_CALLERS_FAULT = {
    StatusCode.INVALID_ARGUMENT,
    StatusCode.UNAUTHENTICATED,
    StatusCode.PERMISSION_DENIED,
    StatusCode.NOT_FOUND,
    StatusCode.ALREADY_EXISTS,
    StatusCode.FAILED_PRECONDITION,
    StatusCode.RESOURCE_EXHAUSTED,
}


def from_peer(error: AioRpcError, peer: str, *, in_a_persons_name: bool) -> MeshError:
    """The error as `peer` raised it: class by code, reason, message, metadata, field violations and time to wait.

    Details that are missing or broken leave the class and its own reason. `MeshError.peer` is set, and keeps the error from our own
    callers, unless the peer refused what a person asked for, in the words of the mesh.
    """
    status = _status(error)
    info = _detail(status, error_details_pb2.ErrorInfo)
    known = info is not None and info.domain == ERROR_DOMAIN and _REASON.fullmatch(info.reason) is not None
    reason = info.reason if info is not None and known else ""
    kind = _BY_REASON.get((error.code(), reason)) or _BY_CODE.get(error.code(), Internal)
    rebuilt = _violated(status) if kind is InvalidArgument else kind()
    rebuilt.reason = reason or kind.reason
    rebuilt.args = ((error.details() or kind.message)[:_MOST_CHARACTERS],)
    if info is not None and known:
        rebuilt.metadata = {
            key[:_MOST_CHARACTERS]: value[:_MOST_CHARACTERS] for key, value in _first(info.metadata.items())
        }
    rebuilt.retry_after = _retry_after(status) or rebuilt.retry_after
    if not (in_a_persons_name and known and error.code() in _CALLERS_FAULT):
        rebuilt.peer = peer
    rebuilt.add_note(f"{peer} answered {error.code().name} {rebuilt.reason}")
    return rebuilt


def of_channel(error: Exception, peer: str) -> MeshError:
    """What went wrong on our side of the channel, such as that it is closed already."""
    away = Unavailable()
    away.peer = peer
    away.add_note(f"the channel to {peer} cannot be used: {error}")
    return away


def unreadable_answer(peer: str) -> MeshError:
    """The peer answered bytes that are not the message of the contract."""
    broken = Internal()
    broken.peer = peer
    broken.add_note(f"{peer} answered bytes that are not the message that its contract promises")
    return broken


def shown(error: MeshError) -> MeshError:
    """What our own caller learns of the error. Of a peer's, only whether the call may succeed soon: fail-closed."""
    if not error.peer:
        return error
    if error.code not in (StatusCode.UNAVAILABLE, StatusCode.DEADLINE_EXCEEDED):
        return Internal()
    return Unavailable(retry_after=error.retry_after) if error.retry_after is not None else Unavailable()


def _status(error: AioRpcError) -> status_pb2.Status:
    """Empty when none came, none can be read, or it is one of another code than the call's: anything may answer in between."""
    trailers: Metadata | tuple[tuple[str, str | bytes], ...] = error.trailing_metadata() or ()
    for key, value in trailers:
        if key == _DETAILS and isinstance(value, bytes):
            try:
                status = status_pb2.Status.FromString(value)
            except DecodeError:
                break
            if status.code == error.code().value[0]:
                return status
            break
    return status_pb2.Status()


def _detail(status: status_pb2.Status, kind: type[M]) -> M | None:
    """The first one of the kind that can be read."""
    for packed in _first(status.details):
        message = kind()
        try:
            if packed.Unpack(message):
                return message
        except DecodeError:
            continue
    return None


def _violated(status: status_pb2.Status) -> InvalidArgument:
    request = _detail(status, error_details_pb2.BadRequest)
    return InvalidArgument(
        [
            Violation(each.field[:_MOST_CHARACTERS], each.description[:_MOST_CHARACTERS], each.reason or "INVALID")
            for each in _first(request.field_violations if request else ())
        ]
    )


def _retry_after(status: status_pb2.Status) -> timedelta | None:
    retry = _detail(status, error_details_pb2.RetryInfo)
    if retry is None or not retry.HasField("retry_delay"):
        return None
    try:
        delay = retry.retry_delay.ToTimedelta()
    except (OverflowError, ValueError):
        return None
    return delay if timedelta(0) <= delay <= _LONGEST_RETRY else None


T = TypeVar("T")


def _first(several: Iterable[T]) -> list[T]:
    return [each for _, each in zip(range(_MOST_DETAILS), several, strict=False)]
