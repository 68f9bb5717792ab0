"""The errors that operations raise. Each becomes one gRPC status with a permanent machine-readable reason (AIP-193)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

from grpc import StatusCode


class MeshError(Exception):
    """Raised in operations, mapped to a status once, in the interceptor.

    Keyword arguments become the ErrorInfo's metadata: never put a secret or another person's data there.
    """

    code: ClassVar[StatusCode]
    reason: str
    message: ClassVar[str]
    peer: str = ""
    """The service that raised it, when this one had called it in its own name: our callers do not see such an error
    (kit.rpc.peer_errors). Empty for our own errors."""

    def __init__(self, *, retry_after: timedelta | None = None, **metadata: object) -> None:
        super().__init__(self.message)
        self.retry_after = retry_after
        self.metadata = {name: str(value) for name, value in metadata.items()}


@dataclass(frozen=True, slots=True)
class Violation:
    """What is wrong with one field. `field` is its path, such as `preferences[1]`."""

    field: str
    description: str
    reason: str = "INVALID"


class InvalidArgument(MeshError):
    """Fields break their rules."""

    code = StatusCode.INVALID_ARGUMENT
    reason = "INVALID_ARGUMENT"
    message = "the request has invalid fields"

    def __init__(self, violations: Sequence[Violation]) -> None:
        super().__init__()
        self.violations = tuple(violations)

    def __str__(self) -> str:
        violations = "; ".join(f"{each.field}: {each.description}".removeprefix(": ") for each in self.violations)
        return violations or super().__str__()


class MalformedRequest(MeshError):
    """The reason is the one that the edge gives for what it cannot read itself: callers need not know who read it."""

    code = StatusCode.INVALID_ARGUMENT
    reason = "REQUEST_MALFORMED"
    message = "the bytes are not the message that this method takes"


class Unauthenticated(MeshError):
    code = StatusCode.UNAUTHENTICATED
    reason = "UNAUTHENTICATED"
    message = "a valid access token is needed"


class SessionRevoked(Unauthenticated):
    """The credential was good and is not any more: its session, its person or its key was revoked."""

    reason = "SESSION_REVOKED"
    message = "the session has ended; sign in again"


class PermissionDenied(MeshError):
    code = StatusCode.PERMISSION_DENIED
    reason = "PERMISSION_DENIED"
    message = "the caller may not do this"


class NotFound(MeshError):
    code = StatusCode.NOT_FOUND
    reason = "NOT_FOUND"
    message = "not found"


class AlreadyExists(MeshError):
    code = StatusCode.ALREADY_EXISTS
    reason = "ALREADY_EXISTS"
    message = "already exists"


class FailedPrecondition(MeshError):
    code = StatusCode.FAILED_PRECONDITION
    reason = "FAILED_PRECONDITION"
    message = "the present state does not allow this"


class ResourceExhausted(MeshError):
    code = StatusCode.RESOURCE_EXHAUSTED
    reason = "RESOURCE_EXHAUSTED"
    message = "too much was asked for; try again later"


class StreamStalled(ResourceExhausted):
    """The client has not read what was sent to it for too long; what it had open is given back."""

    reason = "STREAM_STALLED"
    message = "the stream was not read for too long; open it again"


class Unavailable(MeshError):
    """Something this service depends on does not answer; the same call may succeed soon."""

    code = StatusCode.UNAVAILABLE
    reason = "DEPENDENCY_UNAVAILABLE"
    message = "a dependency does not answer; try again"

    def __init__(self, *, retry_after: timedelta | None = timedelta(seconds=1), **metadata: object) -> None:
        super().__init__(retry_after=retry_after, **metadata)


class RevocationsUnknown(Unavailable):
    """Nobody can say whether the credential was revoked meanwhile, so it changes nothing."""

    reason = "REVOCATIONS_UNKNOWN"
    message = "revoked sessions are not known now, so nothing can be changed; try again"


class DeadlineExceeded(MeshError):
    code = StatusCode.DEADLINE_EXCEEDED
    reason = "DEADLINE_EXCEEDED"
    message = "the deadline is too near or has passed"


class Unimplemented(MeshError):
    """The contract may know the method, but nobody here has written it."""

    code = StatusCode.UNIMPLEMENTED
    reason = "UNIMPLEMENTED"
    message = "this server does not implement the method"


class Internal(MeshError):
    """Anything unexpected: the log has the traceback, the caller learns nothing of it."""

    code = StatusCode.INTERNAL
    reason = "INTERNAL"
    message = "internal error"
