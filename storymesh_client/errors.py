"""The exception that calls raise."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import Self, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode
from grpc.aio import AioRpcError, Metadata

M = TypeVar("M", bound=Message)

NOT_SIGNED_IN = "NOT_SIGNED_IN"
"""The client's own reason for a call that needs a session when there is none."""

_DETAILS = "grpc-status-details-bin"


@dataclass(frozen=True, slots=True)
class Violation:
    """A violation of a field's rule. `field` is its path, such as `preferences[1]`."""

    field: str
    description: str


class StorymeshError(AioRpcError):
    """The failure of a call: an error of the mesh, or a missing answer.

    It is an AioRpcError, so that code written for grpc handles it, and prints as a sentence.
    """

    def __init__(
        self,
        code: StatusCode,
        initial_metadata: Metadata | None = None,
        trailing_metadata: Metadata | None = None,
        details: str | None = None,
        debug_error_string: str | None = None,
        *,
        reason: str = "",
    ) -> None:
        super().__init__(
            code, initial_metadata or Metadata(), trailing_metadata or Metadata(), details, debug_error_string
        )
        status = _status(trailing_metadata)
        info = _detail(status, error_details_pb2.ErrorInfo)
        request = _detail(status, error_details_pb2.BadRequest)
        retry = _detail(status, error_details_pb2.RetryInfo)
        self.message = details or code.name.lower().replace("_", " ")
        self.reason = info.reason if info else reason
        """The permanent UPPER_SNAKE reason; empty if the answer did not come from the mesh."""
        self.violations = tuple(
            Violation(each.field, each.description) for each in (request.field_violations if request else ())
        )
        self.retry_after: timedelta | None = retry.retry_delay.ToTimedelta() if retry else None

    @classmethod
    def of(cls, error: AioRpcError) -> Self:
        return cls(
            error.code(),
            error.initial_metadata(),
            error.trailing_metadata(),
            error.details(),
            error.debug_error_string(),
        )

    def __str__(self) -> str:
        return f"{self.reason or self.code().name}: {self.message}"

    __repr__ = __str__


class TransferFailed(Exception):
    """A file that could not be uploaded or downloaded for another reason than an answer of the mesh, as one sentence."""

    def __init__(self, sentence: str, *, may_resume: bool = False) -> None:
        super().__init__(sentence)
        self.may_resume = may_resume
        """Whether the same call can go on where this one broke."""


def _status(metadata: Metadata | None) -> status_pb2.Status:
    """The google.rpc.Status of an answer; empty if it is missing or malformed, as in a proxy's answer."""
    for key, value in metadata or ():
        if key == _DETAILS and isinstance(value, bytes):
            try:
                return status_pb2.Status.FromString(value)
            except DecodeError:
                break
    return status_pb2.Status()


def _detail(status: status_pb2.Status, kind: type[M]) -> M | None:
    for packed in status.details:
        message = kind()
        if packed.Unpack(message):
            return message
    return None


def not_signed_in() -> StorymeshError:
    return StorymeshError(grpc.StatusCode.UNAUTHENTICATED, details="sign in first", reason=NOT_SIGNED_IN)
