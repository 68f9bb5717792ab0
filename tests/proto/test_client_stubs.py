"""The client has a typed stub for every service at the edge, under a name derived from the contract."""

from __future__ import annotations

import re

import grpc
import pytest
from client_stubs import attribute_of, stubs
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from storymesh.methods import METHODS
from storymesh.stubs import Stubs

from mesh.contract import DESCRIPTORS, of


@pytest.mark.parametrize(
    ("service", "attribute"),
    [
        ("StoryService", "stories"),
        ("DeadLetterService", "dead_letters"),
        ("ReplyService", "replies"),
        ("SurveyService", "surveys"),
        ("BoxService", "boxes"),
        ("SearchService", "searches"),
    ],
)
def test_a_stub_bears_the_plural_of_what_its_service_is_about(service: str, attribute: str) -> None:
    assert attribute_of(service) == attribute


async def test_every_method_that_the_edge_serves_can_be_called() -> None:
    async with grpc.aio.insecure_channel("127.0.0.1:1") as channel:
        held = Stubs(channel)
        for path in METHODS:
            service, method = re.fullmatch(r"/[\w.]*\.(\w+)/(\w+)", path).groups()  # type: ignore[union-attr]
            assert callable(getattr(getattr(held, attribute_of(service)), method))


def test_two_services_that_would_have_one_name_are_refused() -> None:
    descriptors = FileDescriptorSet.FromString(DESCRIPTORS.read_bytes())
    (file,) = (each for each in descriptors.file if each.name.endswith("/story_service.proto"))
    copy = descriptors.file.add(name="storymesh/tale/v1/story_service.proto", package="storymesh.tale.v1")
    copy.syntax, copy.dependency[:] = file.syntax, [file.name, *file.dependency]
    copy.service.add().CopyFrom(file.service[0])
    with pytest.raises(ValueError, match=r"storymesh.tale.v1.StoryService and another service .* `stories`"):
        stubs(of(descriptors))
