"""The contract as the edge reads it."""

from __future__ import annotations

from pathlib import Path

import pytest
from edge.contract import Access, Binding, ContractError, RateLimitClass, read
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet

GENERATED = Path(__file__).resolve().parents[2] / "gen/descriptors.binpb"


def test_a_method_carries_its_policy_and_its_bindings() -> None:
    methods = {method.path: method for method in read(GENERATED).methods}
    watch = methods["/storymesh.story.v1.StoryService/WatchStory"]
    assert watch.access is Access.USER
    assert watch.rate_limit_class is RateLimitClass.STREAM
    assert watch.streams
    assert watch.area == "story"
    assert watch.bindings == (Binding("GET", "/v1/stories/{story_id}:watch", takes_body=False),)
    assert methods["/storymesh.story.v1.StoryService/GetStory"].without_side_effects
    assert not methods["/storymesh.story.v1.StoryService/CreateStory"].without_side_effects


def test_what_operators_do_is_answered_by_the_notification_service() -> None:
    areas = {method.area for method in read(GENERATED).methods if method.service.startswith("storymesh.ops.")}
    assert areas == {"notification"}


def test_methods_for_services_only_are_not_exposed() -> None:
    contract = read(GENERATED)
    exposed = {method.path for method in contract.exposed}
    for_services = {method.path for method in contract.methods if method.access is Access.SERVICE}
    assert for_services
    assert not exposed & for_services
    assert "storymesh.auth.v1.DirectoryService" not in contract.transcoded_services


def test_every_exposed_method_has_a_json_path() -> None:
    assert [method.path for method in read(GENERATED).exposed if not method.bindings] == []


def test_a_method_without_access_is_refused_by_name(tmp_path: Path) -> None:
    contract = tmp_path / "contract.binpb"
    bare = FileDescriptorProto(name="bare.proto", package="storymesh.bare.v1", syntax="proto3")
    bare.message_type.add(name="Empty")
    bare.service.add(name="BareService").method.add(
        name="Open", input_type=".storymesh.bare.v1.Empty", output_type=".storymesh.bare.v1.Empty"
    )
    generated = FileDescriptorSet.FromString(GENERATED.read_bytes())
    contract.write_bytes(FileDescriptorSet(file=[*generated.file, bare]).SerializeToString())
    with pytest.raises(ContractError, match=r"storymesh\.bare\.v1\.BareService\.Open has no .*access"):
        read(contract)


def test_a_missing_descriptor_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"nowhere\.binpb"):
        read(tmp_path / "nowhere.binpb")
