"""The contract and all that is derived from it agree on every method."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import yaml
from edge.routes import route_configuration
from edge.settings import load
from google.api import annotations_pb2
from google.api.http_pb2 import HttpRule
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet, MethodOptions
from storymesh.methods import METHODS
from storymesh.options.v1 import policy_pb2

from mesh import contract
from mesh.contract import Access, Binding, ContractError, Idempotency, Method

ROOT = Path(__file__).resolve().parents[2]
CONTRACT = contract.read()
GENERATED = FileDescriptorSet.FromString(contract.DESCRIPTORS.read_bytes())


def by_path(methods: tuple[Method, ...]) -> dict[str, Method]:
    return {method.path: method for method in methods}


def test_a_method_carries_its_policy_and_its_bindings() -> None:
    watch = by_path(CONTRACT.methods)["/storymesh.story.v1.StoryService/WatchStory"]
    assert (watch.access, watch.rate_limit_class) == (Access.USER, "stream")
    assert watch.streams
    assert watch.resumable
    assert watch.area == "story"
    assert watch.bindings == (Binding("GET", "/v1/stories/{story_id}:watch", takes_body=False),)


@pytest.mark.parametrize(
    ("method", "idempotency"),
    [
        ("GetStory", Idempotency.NO_SIDE_EFFECTS),
        ("WatchStory", Idempotency.NO_SIDE_EFFECTS),
        ("CancelStory", Idempotency.IDEMPOTENT),
        ("CreateStory", Idempotency.UNKNOWN),
    ],
)
def test_a_method_says_what_a_repetition_does(method: str, idempotency: Idempotency) -> None:
    found = by_path(CONTRACT.methods)[f"/storymesh.story.v1.StoryService/{method}"]
    assert found.idempotency is idempotency
    assert found.reads is (idempotency is Idempotency.NO_SIDE_EFFECTS)
    assert found.repeatable is (idempotency is not Idempotency.UNKNOWN)


def test_services_edge_client_and_document_agree_on_every_method() -> None:
    for file in GENERATED.file:
        if file.service:
            importlib.import_module(file.name.removesuffix(".proto").replace("/", ".") + "_pb2")
    served = contract.linked(dict.fromkeys(method.service for method in CONTRACT.methods))
    document = yaml.safe_load((ROOT / "gen/openapi.yaml").read_text())
    operations = {each["operationId"]: each for verbs in document["paths"].values() for each in verbs.values()}
    for method in CONTRACT.methods:
        assert facts(served[method.path]) == facts(method), method.path
        if method.exposed:
            assert METHODS[method.path] == (method.access.name, method.idempotency.value), method.path
            assert operations[method.name]["x-access"] == method.access.name.lower(), method.path
            assert operations[method.name]["x-rate-limit-class"] == method.rate_limit_class, method.path
    assert served.keys() == by_path(CONTRACT.methods).keys()
    assert METHODS.keys() == by_path(CONTRACT.exposed).keys() == {path_of(each) for each in routes()}
    repeated = {path_of(each) for each in routes() if "unavailable" in each["route"]["retry_policy"]["retry_on"]}
    assert repeated == {path for path, each in by_path(CONTRACT.exposed).items() if each.reads and not each.streams}


def facts(method: Method) -> tuple[object, ...]:
    return (method.access, method.rate_limit_class, method.idempotency, method.bindings, method.resumable)


def routes() -> list[Any]:
    """The edge's routes for methods, which match the paths of gRPC calls."""
    configuration: Any = route_configuration(load(ROOT / "envoy/edge.yaml"), CONTRACT)
    lists = configuration["virtual_hosts"][0]["matcher"]["matcher_tree"]["prefix_match_map"]["map"]
    found = [route for each in lists.values() for route in each["action"]["typed_config"]["routes"]]
    return [each for each in found if "retry_policy" in each.get("route", {})]


def path_of(route: Any) -> str:
    path: str = route["match"]["path"]
    return path


def test_what_operators_do_is_answered_by_a_service_of_its_own() -> None:
    areas = {method.area for method in CONTRACT.methods if method.service.startswith("storymesh.ops.")}
    assert areas == {"ops"}


def test_methods_for_services_only_are_not_exposed() -> None:
    for_services = {method.path for method in CONTRACT.methods if method.access is Access.SERVICE}
    assert for_services
    assert not by_path(CONTRACT.exposed).keys() & for_services
    assert "storymesh.auth.v1.DirectoryService" not in CONTRACT.transcoded_services


def test_every_exposed_method_has_a_json_path() -> None:
    assert [method.path for method in CONTRACT.exposed if not method.bindings] == []


def bare(options: MethodOptions, *, message: str = ".storymesh.bare.v1.Empty") -> FileDescriptorSet:
    """The contracts with an additional method that has these options, and takes and answers with the message."""
    file = FileDescriptorProto(
        name="bare.proto",
        package="storymesh.bare.v1",
        syntax="proto3",
        dependency=[
            "google/api/annotations.proto",
            "storymesh/options/v1/policy.proto",
            "storymesh/story/v1/story_link_service.proto",
        ],
    )
    file.message_type.add(name="Empty")
    file.service.add(name="BareService").method.add(
        name="Open",
        input_type=message,
        output_type=message,
        options=options,
    )
    return FileDescriptorSet(file=[*GENERATED.file, file])


def test_a_method_without_access_is_refused_by_name() -> None:
    with pytest.raises(ContractError, match=r"storymesh\.bare\.v1\.BareService\.Open has no .*access"):
        contract.of(bare(MethodOptions()))


@pytest.mark.parametrize("verb", ["get", "put", "delete"])
def test_a_verb_that_http_lets_anybody_repeat_is_refused_where_a_repetition_may_do_harm(verb: str) -> None:
    options = MethodOptions()
    options.Extensions[policy_pb2.policy].access = policy_pb2.ACCESS_PUBLIC
    rule: HttpRule = options.Extensions[annotations_pb2.http]  # type: ignore[index]  # its stub does not say what it extends
    setattr(rule, verb, "/v1/bare")
    with pytest.raises(ContractError, match=rf"BareService\.Open is bound to {verb.upper()}.* idempotency_level"):
        contract.of(bare(options))
    options.idempotency_level = MethodOptions.NO_SIDE_EFFECTS
    contract.of(bare(options))


def test_a_missing_descriptor_set_is_named(tmp_path: Path) -> None:
    with pytest.raises(ContractError, match=r"nowhere\.binpb"):
        contract.read(tmp_path / "nowhere.binpb")


def test_a_page_is_told_from_json_and_the_secret_in_its_path_is_known() -> None:
    methods = by_path(CONTRACT.methods)
    (binding,) = methods["/storymesh.story.v1.StoryLinkService/GetStoryPage"].bindings
    assert (binding.verb, binding.template, binding.answers_page) == ("GET", "/s/{token}", True)
    assert (binding.takes_any_body, binding.hidden_below) == (False, "/s/")
    assert "/s/" in CONTRACT.hidden_below
    (listing,) = methods["/storymesh.story.v1.StoryLinkService/ListStoryLinks"].bindings
    assert (listing.answers_page, listing.hidden_below) == (False, "")


def test_a_method_takes_a_body_as_it_comes_where_the_contract_binds_it_to_an_http_body() -> None:
    options = MethodOptions()
    options.Extensions[policy_pb2.policy].access = policy_pb2.ACCESS_PUBLIC
    rule: HttpRule = options.Extensions[annotations_pb2.http]  # type: ignore[index]  # as above
    rule.post, rule.body, rule.response_body = "/v1/bare", "page", "page"
    page = ".storymesh.story.v1.GetStoryPageResponse"
    (binding,) = by_path(contract.of(bare(options, message=page)).methods)[
        "/storymesh.bare.v1.BareService/Open"
    ].bindings
    assert (binding.takes_body, binding.takes_any_body, binding.answers_page) == (True, True, True)
    rule.additional_bindings.add(post="/v1/other", body="*")
    with pytest.raises(ContractError, match=r"BareService\.Open answers with a page at some of its paths only"):
        contract.of(bare(options, message=page))
