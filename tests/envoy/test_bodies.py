"""JSON bodies: a service gets exactly what the client wrote, or the client gets 400 with the faulty field."""

from __future__ import annotations

from typing import Any

import httpx2
import pytest
from google.protobuf.json_format import MessageToDict
from storymesh.story.v1.story_pb2 import STORY_LENGTH_SHORT

from tests.envoy.conftest import Mesh
from tests.envoy.statuses import detail, reason

JSON = {"content-type": "application/json"}
STRINGS = "must be a list of strings"
ANY_LIST = "must be a list"

CALLS = {
    "UpdateAccount": ("PATCH", "/v1/account"),
    "CreateRegistration": ("POST", "/v1/registrations"),
    "CreateStory": ("POST", "/v1/stories"),
    "CreateSession": ("POST", "/v1/sessions"),
    "CompleteRegistration": ("POST", "/v1/registrations/r1:complete"),
    "ReplayDeadLetters": ("POST", "/v1/admin/deadLetters:replay"),
}

MISTAKEN = [
    *(
        ("UpdateAccount", f'{{"preferences": {value}}}', "preferences", ANY_LIST)
        for value in ("{}", '{"a": 1}', '"x"', '""', "5", "true", '{"values": ["a"]}')
    ),
    *(
        (name, f'{{"preferences": {value}}}', "preferences", STRINGS)
        for name in ("CreateRegistration", "CreateStory")
        for value in (
            "{}",
            '{"a": 1}',
            '"x"',
            '""',
            "5",
            "false",
            "[null]",
            '["a", null]',
            '[["a"]]',
            "[[]]",
            "[{}]",
            "[5]",
            "[true]",
            '["a", 5]',
        )
    ),
    ("ReplayDeadLetters", '{"event_ids": "x"}', "event_ids", STRINGS),
    *(
        ("ReplayDeadLetters", f'{{"dry_run": {value}}}', "dry_run", "must be true or false")
        for value in ('"true"', '"no"', '"yes"', "1", "[true]", "{}")
    ),
    *(
        ("CreateSession", f'{{"login": {value}}}', "login", "must be a string")
        for value in ("5", "true", "[]", '["a"]', '["a", "b"]', "{}", "1.5")
    ),
    *(
        ("CreateStory", f'{{"length": {value}}}', "length", "must be the name of a value")
        for value in ("true", "[]", '["STORY_LENGTH_SHORT"]', "{}")
    ),
    ("CompleteRegistration", '{"code": 123456}', "code", "must be a string"),
    # Duplicate keys: otherwise the last of two strings would win, and two lists would be joined.
    ("CreateSession", '{"login": "a", "login": "b"}', "login", "must be given once"),
    ("CreateSession", '{"login": "a", "lo\\u0067in": "b"}', "login", "must be given once"),
    ("CreateSession", '{"device_name": "a", "deviceName": "b"}', "device_name", "must be given once"),
    ("CreateSession", '{"login": null, "login": "b"}', "login", "must be given once"),
    ("CreateStory", '{"preferences": ["a"], "preferences": ["b"]}', "preferences", "must be given once"),
    ("UpdateAccount", '{"preferences": ["a"], "preferences": ["b"]}', "preferences", "must be given once"),
    ("UpdateAccount", '{"preferen\\u0063es": {}}', "preferences", ANY_LIST),
]


@pytest.mark.parametrize(("name", "body", "field", "description"), MISTAKEN)
async def test_a_value_of_another_type_is_refused_and_its_field_named(
    ada: httpx2.AsyncClient, mesh: Mesh, name: str, body: str, field: str, description: str
) -> None:
    verb, path = CALLS[name]
    answer = await ada.request(verb, path, content=body, headers=JSON)
    assert (answer.status_code, reason(answer)) == (400, "REQUEST_MALFORMED"), answer.text
    (violation,) = detail(answer, "type.googleapis.com/google.rpc.BadRequest")["field_violations"]
    assert violation == {"field": field, "description": description, "reason": "TYPE"}
    assert mesh.calls.seen == []


@pytest.mark.parametrize(
    "body",
    [
        *(
            "null",
            "5",
            '"x"',
            "[]",
            "[{}]",
            "true",
            "{",
            "}",
            '{"login": "a"',
            '{"login" "a"}',
            '{"login":}',
            '{"login": "a",}',
            "{,}",
        ),
        *(
            "{login: 'a'}",
            "{'login': 'a'}",
            '{login: "a"}',
            '{"login": "a"}{"login": "b"}',
            '{"login": "a"} x',
            '{"login": "a"};',
            "// x",
        ),
        *(
            '{"login": tru}',
            '{"login": True}',
            '{"login": undefined}',
            '{"login": NaN}',
            '{"x": 01}',
            '{"x": 1.}',
            '{"x": .5}',
            '{"x": +1}',
        ),
        *(
            '{"x": 1e}',
            '{"x": -}',
            '{"x": 0x10}',
            '{"x": "\\x41"}',
            '{"x": "\\u12"}',
            '{"x": "a\nb"}',
            '{"x": "a\tb"}',
            '{"x": "a\0b"}',
        ),
        *(
            '{"x": "',
            '{"x": "\\',
            '{"x": [1 2]}',
            '{"x": [1,]}',
            '{"x": [,1]}',
            '{"x": [}',
            '{"x": {"y"}}',
            " ",
            "\ufeff{}",
            "\xa0{}",
        ),
        '{"x": ' + "[" * 500 + "]" * 500 + "}",
        '{"x": ' + '{"y": ' * 500 + "1" + "}" * 500 + "}",
    ],
    ids=lambda body: ascii(body[:30]),
)
async def test_what_is_not_one_object_of_json_is_refused(ada: httpx2.AsyncClient, mesh: Mesh, body: str) -> None:
    answer = await ada.post("/v1/sessions", content=body.encode(), headers=JSON)
    assert (answer.status_code, reason(answer)) == (400, "REQUEST_MALFORMED"), answer.text
    assert mesh.calls.seen == []


@pytest.mark.parametrize(
    ("name", "body", "expected"),
    [
        ("UpdateAccount", "{}", {}),
        ("UpdateAccount", '{"preferences": null}', {}),
        ("UpdateAccount", '{"preferences": []}', {"preferences": []}),
        ("UpdateAccount", '{"preferences": ["a", "b"]}', {"preferences": ["a", "b"]}),
        # Not validated at the edge: the contract's rule in the service names each item.
        ("UpdateAccount", '{"preferences": [1, null, ["a"]]}', {"preferences": [1.0, None, ["a"]]}),
        ("CreateStory", '{"preferences": null, "theme": null}', {}),
        ("CreateStory", '{"preferences": []}', {}),
        (
            "CreateStory",
            '{"preferences": ["[", "{\\"", "\\\\", "\\u00e9\\ud83d\\udc22", "é🐢"]}',
            {"preferences": ["[", '{"', "\\", "é🐢", "é🐢"]},
        ),
        (
            "CreateStory",
            ' \r\n\t{ "theme" : "x" , "prompt":"a\\nb\\tc\x7f" } \n',
            {"theme": "x", "prompt": "a\nb\tc\x7f"},
        ),
        ("CreateStory", '{"length": "STORY_LENGTH_SHORT"}', {"length": "STORY_LENGTH_SHORT"}),
        ("CreateStory", f'{{"length": {STORY_LENGTH_SHORT}}}', {"length": "STORY_LENGTH_SHORT"}),
        ("CreateStory", '{"requestId": "r"}', {"request_id": "r"}),
        ("CreateStory", '{"unknown": {"a": [1, -0.5e+3, 0, true, false, null, {}]}, "theme": "x"}', {"theme": "x"}),
        ("CreateSession", "", {}),
        ("CreateSession", '{"login": "\\"}, {"}', {"login": '"}, {'}),
        ("CompleteRegistration", '{"code": "123456"}', {"registration_id": "r1", "code": "123456"}),
    ],
)
async def test_what_fits_arrives_as_it_was_written(
    ada: httpx2.AsyncClient, mesh: Mesh, name: str, body: str, expected: dict[str, Any]
) -> None:
    verb, path = CALLS[name]
    answer = await ada.request(verb, path, content=body.encode(), headers=JSON)
    assert answer.status_code == 200, answer.text
    assert MessageToDict(mesh.calls.last.request, preserving_proto_field_name=True) == expected


async def test_a_trailing_slash_or_a_query_changes_nothing(ada: httpx2.AsyncClient) -> None:
    for path in ("/v1/stories/", "/v1/stories?", "/v1/%73tories", "/v1//stories", "/v1/./stories"):
        answer = await ada.post(path, content='{"preferences": "x"}', headers=JSON)
        assert answer.status_code == 400, path


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/stories?page_size=1&page_size=2", "page_size"),
        ("/v1/stories?page_size=1&pageSize=2", "page_size"),
        ("/v1/stories?page_token=a&page%5Ftoken=b", "page_token"),
        ("/v1/stories?state=2&page_size=1&state=3", "state"),
        ("/v1/stories/s1:watch?resume_token=a&resume_token=b", "resume_token"),
        ("/v1/admin/deadLetters?service=story&service=", "service"),
        ("/v1/stories/s1?story_id=s2", "story_id"),
        ("/v1/stories/s1:watch?storyId=s2", "story_id"),
    ],
)
async def test_a_field_that_a_query_gives_twice_is_refused_and_named(
    ada: httpx2.AsyncClient, mesh: Mesh, path: str, field: str
) -> None:
    answer = await ada.get(path)
    assert (answer.status_code, reason(answer)) == (400, "REQUEST_MALFORMED"), answer.text
    (violation,) = detail(answer, "type.googleapis.com/google.rpc.BadRequest")["field_violations"]
    assert violation == {"field": field, "description": "must be given once", "reason": "TYPE"}
    assert mesh.calls.seen == []


async def test_true_and_false_are_taken_where_they_belong(ada: httpx2.AsyncClient) -> None:
    for value in ("true", "false", "null"):
        answer = await ada.post(CALLS["ReplayDeadLetters"][1], content=f'{{"dry_run": {value}}}', headers=JSON)
        # No service behind this edge would answer the request.
        assert answer.status_code != 400, answer.text


async def test_a_large_body_is_read_whole(ada: httpx2.AsyncClient, mesh: Mesh) -> None:
    prompt = '\\"[{' * 900
    answer = await ada.post("/v1/stories", content=f'{{"prompt": "{prompt}"}}', headers=JSON)
    assert answer.status_code == 200
    assert mesh.calls.last.request.prompt == '"[{' * 900
