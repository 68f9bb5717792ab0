"""Checks of errors as a gRPC caller receives them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from grpc import StatusCode
from grpc.aio import AioRpcError
from grpc_status import rpc_status

M = TypeVar("M", bound=Message)


@contextmanager
def raises_status(code: StatusCode, reason: str) -> Iterator[None]:
    """Check that the block's call fails with this code and ErrorInfo reason."""
    with pytest.raises(AioRpcError) as raised:
        yield
    assert (raised.value.code(), reason_of(raised.value)) == (code, reason)


def reason_of(error: AioRpcError) -> str:
    info = detail(error, ErrorInfo)
    return info.reason if info else ""


def violated_fields(error: AioRpcError) -> list[str]:
    request = detail(error, BadRequest)
    return [violation.field for violation in request.field_violations] if request else []


def detail(error: AioRpcError, kind: type[M]) -> M | None:
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # an aio error has the three methods it reads
    for packed in status.details if status else ():
        message = kind()
        if packed.Unpack(message):
            return message
    return None
