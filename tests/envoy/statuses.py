"""Readers of errors as clients receive them."""

from __future__ import annotations

from typing import Any

import grpc
import httpx2
from google.rpc import error_details_pb2
from grpc_status import rpc_status

ERROR_INFO = "type.googleapis.com/google.rpc.ErrorInfo"


def reason(answer: httpx2.Response) -> str:
    """Return the reason of a JSON error, after checking that it is a google.rpc.Status."""
    assert answer.headers["content-type"] == "application/json", answer.text
    status = answer.json()
    assert set(status) == {"code", "message", "details"}, status
    assert isinstance(status["code"], int)
    assert status["message"]
    info = detail(answer, ERROR_INFO)
    assert info["domain"] == "storymesh"
    named: str = info["reason"]
    return named


def detail(answer: httpx2.Response, type_url: str) -> dict[str, Any]:
    """Return the detail of this type from a JSON error."""
    found: list[dict[str, Any]] = [each for each in answer.json()["details"] if each["@type"] == type_url]
    assert len(found) == 1, answer.text
    return found[0]


def grpc_reason(error: grpc.aio.AioRpcError) -> str:
    """Return the reason of a gRPC error, from `grpc-status-details-bin`."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]  # typed for the blocking API, whose accessors it shares
    assert status is not None
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert status.message == error.details()
    return info.reason
