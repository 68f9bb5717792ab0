"""Call the mesh with the generated stubs alone: metadata, a deadline, and the details of a refusal.

Usage: python examples/python/stubs.py

STORYMESH_EDGE names another edge (HOST:PORT).
"""

from __future__ import annotations

import os
import sys
from typing import cast

import grpc
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo
from grpc_status import rpc_status
from storymesh.auth.v1.session_service_pb2 import CreateSessionRequest
from storymesh.auth.v1.session_service_pb2_grpc import SessionServiceStub
from storymesh.story.v1.story_service_pb2 import ListStoriesRequest
from storymesh.story.v1.story_service_pb2_grpc import StoryServiceStub

EDGE = os.environ.get("STORYMESH_EDGE", "127.0.0.1:8080")


def explain(error: grpc.Call) -> str:
    """The code, the permanent reason and the violations of an error, from its google.rpc.Status.

    Ends the program if the error has none, because then no mesh has answered.
    """
    status = rpc_status.from_call(error)
    if status is None:
        sys.exit(
            f"{error.details()}\nIs a mesh up at {EDGE}? `make up` starts one; STORYMESH_EDGE names another (HOST:PORT)."
        )
    info, request = ErrorInfo(), BadRequest()
    for detail in status.details:
        detail.Unpack(info)
        detail.Unpack(request)
    fields = {each.field: each.description for each in request.field_violations}
    return f"{error.code().name} {info.reason} {fields or ''}".rstrip()


def main() -> None:
    with grpc.insecure_channel(EDGE) as channel:
        try:
            SessionServiceStub(channel).CreateSession(CreateSessionRequest(login="ada@example.com"), timeout=10)
        except grpc.RpcError as error:
            print(explain(cast("grpc.Call", error)))

        metadata = (("authorization", "Bearer the-access-token-of-a-session"),)
        try:
            answer = StoryServiceStub(channel).ListStories(ListStoriesRequest(), metadata=metadata, timeout=10)
            print(f"{len(answer.stories)} stories")
        except grpc.RpcError as error:
            print(explain(cast("grpc.Call", error)))


if __name__ == "__main__":
    main()
