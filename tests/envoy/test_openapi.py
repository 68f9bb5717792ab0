"""The OpenAPI document: it agrees with the contract and is valid."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mesh.contract import Access, read

GENERATED = Path(__file__).resolve().parents[2] / "gen"


@pytest.fixture(scope="module")
def document() -> Any:
    return yaml.safe_load((GENERATED / "openapi.yaml").read_text())


def operations(document: Any) -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, verbs in document["paths"].items():
        for verb, operation in verbs.items():
            yield path, verb, operation


def nodes(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        for child in node.values():
            yield from nodes(child)
    elif isinstance(node, list):
        for child in node:
            yield from nodes(child)


def test_every_binding_of_the_contract_is_a_path_and_every_path_is_one(document: Any) -> None:
    bound = {
        (binding.template, binding.verb.lower())
        for method in read(GENERATED / "descriptors.binpb").exposed
        for binding in method.bindings
    }
    assert {(path, verb) for path, verb, _ in operations(document)} == bound | {("/health", "get")}


def test_security_follows_the_policies(document: Any) -> None:
    public = {
        method.name for method in read(GENERATED / "descriptors.binpb").exposed if method.access is Access.PUBLIC
    } | {"Health"}
    for _, _, operation in operations(document):
        expected: list[dict[str, Any]] = [] if operation["operationId"] in public else [{"bearer": []}]
        assert operation["security"] == expected, operation["operationId"]
        assert ("401" in operation["responses"]) >= bool(expected)


def test_what_only_administrators_may_do_can_be_forbidden(document: Any) -> None:
    administrators = {
        method.name for method in read(GENERATED / "descriptors.binpb").exposed if method.access is Access.ADMIN
    }
    forbidding = {
        operation["operationId"] for _, _, operation in operations(document) if "403" in operation["responses"]
    }
    assert administrators
    assert forbidding >= administrators


def test_every_reference_leads_somewhere(document: Any) -> None:
    for node in nodes(document):
        reference = node.get("$ref")
        if isinstance(reference, str):
            at: Any = document
            for key in reference.removeprefix("#/").split("/"):
                at = at[key]


def test_every_schema_is_referred_to(document: Any) -> None:
    referred = {node["$ref"].rpartition("/")[2] for node in nodes(document) if isinstance(node.get("$ref"), str)}
    assert set(document["components"]["schemas"]) - referred == set()


def test_operations_have_unique_names_tags_and_words(document: Any) -> None:
    names = [operation["operationId"] for _, _, operation in operations(document)]
    assert len(names) == len(set(names))
    tags = {tag["name"] for tag in document["tags"]}
    for _, _, operation in operations(document):
        assert set(operation["tags"]) <= tags
        assert operation["summary"]
        assert operation["description"]


def test_path_parameters_are_declared_and_are_not_in_the_body(document: Any) -> None:
    for path, _, operation in operations(document):
        in_path = set(re.findall(r"\{([^}]+)\}", path))
        declared = {
            each["name"] for each in operation.get("parameters", ()) if each["in"] == "path" and each["required"]
        }
        assert declared == in_path, path
        body = operation.get("requestBody", {}).get("content", {}).get("application/json", {}).get("schema")
        if body:
            schema = document["components"]["schemas"][body["$ref"].rpartition("/")[2]]
            assert not in_path & schema["properties"].keys(), path


def test_every_field_is_described(document: Any) -> None:
    for name, schema in document["components"]["schemas"].items():
        if name not in {"Status", "ErrorInfo", "BadRequest", "RetryInfo"}:
            assert schema["description"], name
            for field, of in schema.get("properties", {}).items():
                assert of.get("description"), f"{name}.{field}"


def test_patterns_compile_and_limits_are_numbers(document: Any) -> None:
    for node in nodes(document):
        if isinstance(node.get("pattern"), str):
            re.compile(node["pattern"])
        for limit in ("minLength", "maxLength", "minItems", "maxItems", "minimum", "maximum"):
            # A property may have the name of a keyword; its value is then a schema.
            assert isinstance(node.get(limit, 0), int | float | dict)


def test_limits_come_from_the_validation_rules(document: Any) -> None:
    schemas = document["components"]["schemas"]
    registration = schemas["CreateRegistrationRequest"]
    assert registration["required"] == ["email"]
    assert schemas["CreateSessionRequest"]["required"] == ["login", "password"]
    assert registration["properties"]["email"]["format"] == "email"
    assert registration["properties"]["email"]["x-max-bytes"] == 254
    preferences = registration["properties"]["preferences"]
    assert (preferences["maxItems"], preferences["uniqueItems"]) == (5, True)
    assert preferences["items"]["x-max-bytes"] == 20
    page_size = {each["name"]: each for each in document["paths"]["/v1/stories"]["get"]["parameters"]}["page_size"]
    assert (page_size["schema"]["minimum"], page_size["schema"]["maximum"]) == (0, 100)
    assert re.search(schemas["CreateStoryRequest"]["properties"]["language"]["pattern"], "")


def test_what_is_required_must_not_be_empty(document: Any) -> None:
    seen = 0
    # Responses always have all fields, and fields may be empty. A SignedRequest is a part of one.
    schemas = document["components"]["schemas"]
    requests = {name: each for name, each in schemas.items() if name.endswith("Request") and name != "SignedRequest"}
    for message, schema in requests.items():
        for name in schema.get("required", ()):
            each = schema["properties"][name]
            # The form of a time has no empty text.
            if each.get("type") == "string" and each.get("format") != "date-time":
                assert each["minLength"] >= 1, f"{message}.{name}"
                seen += 1
    for _, _, operation in operations(document):
        for parameter in operation.get("parameters", ()):
            if parameter["required"]:
                assert parameter["schema"]["minLength"] >= 1, operation["operationId"]
                seen += 1
    assert seen > 25
    refresh = document["components"]["schemas"]["RefreshSessionRequest"]
    assert (refresh["required"], refresh["properties"]["refresh_token"]["minLength"]) == (["refresh_token"], 1)


def test_every_list_says_what_it_is_a_list_of(document: Any) -> None:
    lists = [node for node in nodes(document) if node.get("type") == "array"]
    assert len(lists) > 10
    for node in lists:
        assert node["items"].keys() & {"type", "$ref", "anyOf"}, node
    preferences = document["components"]["schemas"]["UpdateAccountRequest"]["properties"]["preferences"]
    assert (preferences["maxItems"], preferences["uniqueItems"]) == (5, True)
    assert (preferences["items"]["type"], preferences["items"]["x-max-bytes"]) == ("string", 20)
    assert re.search(preferences["items"]["pattern"], "sailing")
    assert not re.search(preferences["items"]["pattern"], " ")


def test_every_operation_can_be_refused(document: Any) -> None:
    for path, verb, operation in operations(document):
        assert [status for status in operation["responses"] if status.startswith("4")], (verb, path)


def test_times_and_enums_have_the_form_that_json_gives_them(document: Any) -> None:
    story = document["components"]["schemas"]["Story"]["properties"]
    assert story["create_time"]["format"] == "date-time"
    state = document["components"]["schemas"]["StoryState"]
    assert state["type"] == "string"
    assert "STORY_STATE_QUEUED" in state["enum"]


def test_a_watch_is_a_stream_of_events(document: Any) -> None:
    ok = document["paths"]["/v1/stories/{story_id}:watch"]["get"]["responses"]["200"]
    assert ok["content"] == {"text/event-stream": {"schema": {"$ref": "#/components/schemas/WatchStoryResponse"}}}


def test_a_watch_says_how_to_resume_and_which_clients_can(document: Any) -> None:
    streams = [each for _, _, each in operations(document) if "text/event-stream" in str(each["responses"]["200"])]
    assert streams
    for operation in streams:
        headers = [each["name"] for each in operation["parameters"] if each["in"] == "header"]
        assert headers == ["Last-Event-ID"]
        assert "204" in operation["responses"]
        assert "EventSource cannot send an access token" in operation["description"]
        assert "fetch" in operation["description"]


def test_errors_have_one_shape_and_say_when_to_retry(document: Any) -> None:
    responses = document["components"]["responses"]
    for response in responses.values():
        assert response["content"]["application/json"]["schema"] == {"$ref": "#/components/schemas/Status"}
    assert "retry-after" in responses["429"]["headers"]
    create = document["paths"]["/v1/registrations"]["post"]["responses"]
    assert {"400", "413", "415", "429", "503", "504", "default"} <= create.keys()
    assert "409" in document["paths"]["/v1/stories"]["post"]["responses"]


def test_the_page_loads_nothing_from_elsewhere_and_runs_only_its_own_script() -> None:
    page = (GENERATED / "docs.html").read_text()
    assert "default-src 'none'" in page
    assert page.count("'sha256-") == 2
    assert "unsafe-inline" not in page
    outside_the_data = re.sub(r'<script type="application/json".*?</script>', "", page, flags=re.DOTALL)
    assert not re.findall(r"""(?:src|href|url\()=?["']?(?:https?:)?//""", outside_the_data)
