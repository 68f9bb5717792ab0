"""What callers learn of each error."""

from __future__ import annotations

import socket
from datetime import timedelta
from typing import TypeVar

import pytest
import redis.exceptions
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode

from kit import errors
from kit.data import redis as kit_redis
from kit.data.database import Database
from kit.rpc.statuses import as_mesh_error, to_grpc, to_status

M = TypeVar("M", bound=Message)


def detail(status: status_pb2.Status, kind: type[M]) -> M | None:
    for packed in status.details:
        message = kind()
        if packed.Unpack(message):
            return message
    return None


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (errors.Unauthenticated(), StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"),
        (errors.PermissionDenied(), StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"),
        (errors.NotFound(), StatusCode.NOT_FOUND, "NOT_FOUND"),
        (errors.AlreadyExists(), StatusCode.ALREADY_EXISTS, "ALREADY_EXISTS"),
        (errors.FailedPrecondition(), StatusCode.FAILED_PRECONDITION, "FAILED_PRECONDITION"),
        (errors.ResourceExhausted(), StatusCode.RESOURCE_EXHAUSTED, "RESOURCE_EXHAUSTED"),
        (errors.Unavailable(), StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE"),
        (errors.Unimplemented(), StatusCode.UNIMPLEMENTED, "UNIMPLEMENTED"),
        (errors.DeadlineExceeded(), StatusCode.DEADLINE_EXCEEDED, "DEADLINE_EXCEEDED"),
        (errors.MalformedRequest(), StatusCode.INVALID_ARGUMENT, "REQUEST_MALFORMED"),
        (errors.InvalidArgument([]), StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"),
        (errors.Internal(), StatusCode.INTERNAL, "INTERNAL"),
    ],
    ids=lambda value: value.reason if isinstance(value, errors.MeshError) else "",
)
def test_every_error_has_its_code_and_reason(error: errors.MeshError, code: StatusCode, reason: str) -> None:
    status = to_status(error)
    info = detail(status, error_details_pb2.ErrorInfo)
    assert info is not None
    assert (status.code, info.reason, info.domain) == (code.value[0], reason, "storymesh")


def test_every_kind_of_error_is_in_the_table_above() -> None:
    marks = test_every_error_has_its_code_and_reason.pytestmark  # type: ignore[attr-defined]  # pytest keeps them there
    tested = {type(row[0]) for row in marks[0].args[1]}
    assert tested == {kind for kind in errors.MeshError.__subclasses__() if kind.__module__ == errors.__name__}


def test_an_operations_own_reason_message_and_metadata_reach_the_caller() -> None:
    class StoryNotFound(errors.NotFound):
        reason = "STORY_NOT_FOUND"
        message = "there is no such story"

    status = to_status(StoryNotFound(story_id=7))
    info = detail(status, error_details_pb2.ErrorInfo)
    assert info is not None
    assert (status.message, info.reason, dict(info.metadata)) == (
        "there is no such story",
        "STORY_NOT_FOUND",
        {"story_id": "7"},
    )


def test_violations_name_field_description_and_reason() -> None:
    status = to_status(errors.InvalidArgument([errors.Violation("preferences[1]", "is blank", "BLANK")]))
    request = detail(status, error_details_pb2.BadRequest)
    assert request is not None
    (violation,) = request.field_violations
    assert (violation.field, violation.description, violation.reason) == ("preferences[1]", "is blank", "BLANK")
    assert status.message == "preferences[1]: is blank"


def test_a_time_to_come_back_is_told() -> None:
    status = to_status(errors.ResourceExhausted(retry_after=timedelta(seconds=2.5)))
    retry = detail(status, error_details_pb2.RetryInfo)
    assert retry is not None
    assert retry.retry_delay.ToTimedelta() == timedelta(seconds=2.5)


def test_a_time_to_wait_is_also_a_header_in_whole_seconds() -> None:
    sent = to_grpc(errors.ResourceExhausted(retry_after=timedelta(seconds=2.5)))
    assert dict(sent.trailing_metadata or ())["retry-after"] == "3"
    assert "retry-after" not in dict(to_grpc(errors.NotFound()).trailing_metadata or ())


def test_no_error_gets_the_status_of_another() -> None:
    class Busy(errors.ResourceExhausted):
        reason = "BUSY"

    class Full(errors.ResourceExhausted):
        reason = "BUSY"
        message = "nothing is free"

    second, minute = timedelta(seconds=1), timedelta(minutes=1)
    different = [
        errors.ResourceExhausted(),
        errors.ResourceExhausted(retry_after=second),
        errors.ResourceExhausted(retry_after=minute),
        Busy(retry_after=second),
        Full(retry_after=second),
        Busy(retry_after=second, story_id=1),
        Busy(retry_after=second, story_id=2),
        errors.InvalidArgument([]),
        errors.InvalidArgument([errors.Violation("theme", "is blank")]),
    ]
    for error in (*different, *reversed(different)):
        sent = dict(to_grpc(error).trailing_metadata or ())
        assert sent["grpc-status-details-bin"] == to_status(error).SerializeToString()
        assert ("retry-after" in sent) == (error.retry_after is not None)


def test_without_a_time_to_come_back_none_is_told() -> None:
    assert detail(to_status(errors.NotFound()), error_details_pb2.RetryInfo) is None


@pytest.mark.parametrize(
    "error", [RuntimeError("s3cret"), KeyError("s3cret"), ExceptionGroup("s3cret", [ValueError()])]
)
def test_the_unexpected_is_internal_and_says_nothing_of_itself(error: Exception) -> None:
    status = to_status(as_mesh_error(error))
    assert status.code == StatusCode.INTERNAL.value[0]
    assert status.message == "internal error"
    assert b"s3cret" not in status.SerializeToString()


def test_time_running_out_is_the_deadline() -> None:
    assert isinstance(as_mesh_error(TimeoutError()), errors.DeadlineExceeded)


@pytest.fixture
def dead_port() -> int:
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        port: int = reserved.getsockname()[1]
    return port


async def test_a_postgres_that_is_away_is_unavailable(dead_port: int) -> None:
    db = Database(f"postgresql+psycopg://someone:s3cret@127.0.0.1:{dead_port}/nothing", pool=1)
    with pytest.raises(Exception) as raised:  # noqa: PT011  # which one is the library's affair; its mapping is ours
        await db.check()
    await db.close()
    mapped = as_mesh_error(raised.value)
    assert isinstance(mapped, errors.Unavailable)
    retry = detail(to_status(mapped), error_details_pb2.RetryInfo)
    assert retry is not None
    assert retry.retry_delay.ToTimedelta() > timedelta(0)


async def test_a_redis_that_is_away_is_unavailable(dead_port: int) -> None:
    async with kit_redis.connect(f"redis://127.0.0.1:{dead_port}/0") as redis_client:
        with pytest.raises(Exception) as raised:  # noqa: PT011  # as above
            await redis_client.ping()
    assert isinstance(as_mesh_error(raised.value), errors.Unavailable)


@pytest.mark.parametrize(
    "error",
    [redis.exceptions.BusyLoadingError(), redis.exceptions.TimeoutError(), ConnectionResetError()],
    ids=lambda error: type(error).__name__,
)
def test_what_passes_by_itself_is_unavailable(error: Exception) -> None:
    assert isinstance(as_mesh_error(error), errors.Unavailable)
