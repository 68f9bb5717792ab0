"""What a server says of its own contracts, to grpcurl and the like."""

from __future__ import annotations

import pytest
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from tests.kit import desk as desks
from tests.kit.conftest import RunningDesk

V1, V1ALPHA = "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"
NOT_FOUND = 5


async def ask(desk: RunningDesk, version: str, request: ServerReflectionRequest) -> ServerReflectionResponse:
    asking = desk.channel.stream_stream(
        f"/{version}/ServerReflectionInfo",
        ServerReflectionRequest.SerializeToString,
        ServerReflectionResponse.FromString,
    )
    (answer,) = [each async for each in asking(iter([request]))]
    return answer


@pytest.mark.parametrize("version", [V1, V1ALPHA])
async def test_both_versions_name_all_services(desk: RunningDesk, version: str) -> None:
    answer = await ask(desk, version, ServerReflectionRequest(list_services=""))
    names = {service.name for service in answer.list_services_response.service}
    assert names == {desks.NAME, "grpc.health.v1.Health", V1, V1ALPHA}


@pytest.mark.parametrize("version", [V1, V1ALPHA])
@pytest.mark.parametrize(
    ("symbol", "package"),
    [
        (desks.NAME, "storymesh.kittest.v1"),
        (f"{desks.NAME}.AskPublic", "storymesh.kittest.v1"),
        (f"{desks.NAME}.Watch", "storymesh.kittest.v1"),
        ("grpc.health.v1.Health.Check", "grpc.health.v1"),
        (f"{V1}.ServerReflectionInfo", "grpc.reflection.v1"),
        (f"{V1ALPHA}.ServerReflectionInfo", "grpc.reflection.v1alpha"),
        ("storymesh.story.v1.CreateStoryRequest.theme", "storymesh.story.v1"),
        ("storymesh.story.v1.WatchStoryResponse.Chunk.text", "storymesh.story.v1"),
        ("storymesh.story.v1.WatchStoryResponse.event", "storymesh.story.v1"),
        ("storymesh.story.v1.STORY_STATE_QUEUED", "storymesh.story.v1"),
        ("google.protobuf.FieldDescriptorProto.TYPE_BOOL", "google.protobuf"),
    ],
)
async def test_every_symbol_leads_to_its_file(desk: RunningDesk, version: str, symbol: str, package: str) -> None:
    answer = await ask(desk, version, ServerReflectionRequest(file_containing_symbol=symbol))
    files = [FileDescriptorProto.FromString(each) for each in answer.file_descriptor_response.file_descriptor_proto]
    assert package in {file.package for file in files}


@pytest.mark.parametrize("symbol", ["", "storymesh", f"{desks.NAME}.Nothing", f"{desks.NAME}.AskPublic.deeper", "."])
async def test_an_unknown_symbol_is_not_found(desk: RunningDesk, symbol: str) -> None:
    answer = await ask(desk, V1, ServerReflectionRequest(file_containing_symbol=symbol))
    assert answer.error_response.error_code == NOT_FOUND
