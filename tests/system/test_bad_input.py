"""Invalid requests of strangers: each gets a clear status and a reason, and no internal detail."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import grpc
import httpx2
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from grpc.aio import AioRpcError
from storymesh.auth.v1 import directory_service_pb2 as directory
from storymesh.auth.v1 import registration_service_pb2 as registration
from storymesh.auth.v1.directory_service_pb2_grpc import DirectoryServiceStub
from storymesh.auth.v1.registration_service_pb2_grpc import RegistrationServiceStub
from storymesh.story.v1 import story_service_pb2 as story
from storymesh.story.v1.story_service_pb2_grpc import StoryServiceStub

from local.harness import RunningMesh
from tests.identity import Issuer, bearer
from tests.statuses import raises_status, violated_fields
from tests.system.conftest import Person, registered

GOOD = {"email": "somebody@example.com", "password": "correct horse battery staple"}


def reason(response: httpx2.Response) -> str:
    """Return the ErrorInfo reason of a JSON error, after checking its form."""
    assert response.headers["content-type"].startswith("application/json"), response.text
    body = response.json()
    assert {"code", "message", "details"} <= body.keys()
    assert "Traceback" not in response.text
    for detail in body["details"]:
        if detail["@type"].endswith("ErrorInfo"):
            return str(detail["reason"])
    return ""


def fields(response: httpx2.Response) -> set[str]:
    return {
        violation["field"]
        for detail in response.json()["details"]
        if detail["@type"].endswith("BadRequest")
        for violation in detail["field_violations"]
    }


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({**GOOD, "email": "nobody"}, "email"),
        ({**GOOD, "email": "a@" + "b" * 260 + ".com"}, "email"),
        ({**GOOD, "email": ""}, "email"),
        ({**GOOD, "password": ""}, "password"),
        ({**GOOD, "password": "short"}, "password"),
        ({**GOOD, "password": "x" * 1025}, "password"),
        ({**GOOD, "password": "letmeinletmein123"}, "password"),
        ({**GOOD, "username": "1abc"}, "username"),
        ({**GOOD, "username": "a@b"}, "username"),
        ({**GOOD, "first_name": "x" * 65}, "first_name"),
        ({**GOOD, "last_name": "a\nb"}, "last_name"),
        ({**GOOD, "preferences": list("abcdef")}, "preferences"),
        ({**GOOD, "preferences": ["same", "same"]}, "preferences"),
        ({**GOOD, "preferences": ["ok", " "]}, "preferences[1]"),
        ({**GOOD, "preferences": ["x" * 21]}, "preferences[0]"),
    ],
)
async def test_each_invalid_registration_field_is_named_in_json_and_in_grpc(
    mesh: RunningMesh, http: httpx2.AsyncClient, body: dict[str, Any], field: str
) -> None:
    response = await http.post("/v1/registrations", json=body)
    assert (response.status_code, fields(response)) == (400, {field})
    async with grpc.aio.insecure_channel(mesh.edge_address) as channel:
        with pytest.raises(AioRpcError) as raised:
            await RegistrationServiceStub(channel).CreateRegistration(registration.CreateRegistrationRequest(**body))
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert set(violated_fields(raised.value)) == {field}


async def test_several_invalid_fields_are_all_named(http: httpx2.AsyncClient) -> None:
    body = {"email": "x", "password": "", "username": "!", "preferences": [""]}
    response = await http.post("/v1/registrations", json=body)
    assert fields(response) == {"email", "password", "username", "preferences[0]"}


@pytest.mark.parametrize(
    ("method", "path", "content", "headers", "status"),
    [
        ("GET", "/v1/nothing", b"", {}, 404),
        ("GET", "/", b"", {}, 404),
        ("PUT", "/v1/stories", b"{}", {"content-type": "application/json"}, 405),
        ("GET", "/v1/registrations", b"", {}, 405),
        ("POST", "/v1/registrations", b"email=a", {"content-type": "application/x-www-form-urlencoded"}, 415),
        ("POST", "/v1/registrations", b"{", {"content-type": "application/json"}, 400),
        ("POST", "/v1/registrations", b"[]", {"content-type": "application/json"}, 400),
        ("POST", "/v1/registrations", b'{"email": 5}', {"content-type": "application/json"}, 400),
        ("POST", "/v1/registrations?debug=1", b"{}", {"content-type": "application/json"}, 400),
        (
            "POST",
            "/v1/registrations",
            b'{"email": "' + b"x" * 3_000_000 + b'"}',
            {"content-type": "application/json"},
            413,
        ),
        ("GET", "/v1/stories", b"", {}, 401),
        ("GET", "/v1/stories", b"", {"authorization": "Basic eDp5"}, 401),
        ("GET", "/v1/stories", b"", {"authorization": "Bearer not.a.token"}, 401),
        ("GET", "/v1/stories?access_token=x", b"", {}, 400),
        ("GET", "/v1/stories/..%2F..%2Fadmin", b"", {}, 400),
    ],
)
async def test_a_request_that_fits_nothing_gets_a_4xx_with_a_reason(
    http: httpx2.AsyncClient, method: str, path: str, content: bytes, headers: dict[str, str], status: int
) -> None:
    response = await http.request(method, path, content=content, headers=headers)
    assert response.status_code == status, response.text
    assert reason(response)


async def test_expired_foreign_and_unsigned_tokens_get_401_over_json_and_grpc(
    mesh: RunningMesh, http: httpx2.AsyncClient, person: Person
) -> None:
    claims = jwt.decode(person.tokens["access_token"], options={"verify_signature": False})
    header = jwt.get_unverified_header(person.tokens["access_token"])
    foreign = Issuer(kid=header["kid"], key=ec.generate_private_key(ec.SECP256R1()))
    tokens = [
        foreign.token(uuid4()),
        foreign.token(uuid4(), exp=1),
        jwt.encode(claims, "", algorithm="none", headers={"typ": "at+jwt", "kid": header["kid"]}),
        jwt.encode(claims, "x" * 32, algorithm="HS256", headers={"typ": "at+jwt", "kid": header["kid"]}),
        person.tokens["access_token"][:-8] + "AAAAAAAA",
        person.tokens["refresh_token"],
    ]
    async with grpc.aio.insecure_channel(mesh.edge_address) as channel:
        for token in tokens:
            response = await http.get("/v1/stories", headers={"authorization": f"Bearer {token}"})
            assert response.status_code == 401, token
            assert reason(response)
            with pytest.raises(AioRpcError) as raised:
                await StoryServiceStub(channel).ListStories(story.ListStoriesRequest(), metadata=bearer(token))
            assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_another_persons_story_is_404_and_never_listed(
    mesh: RunningMesh, http: httpx2.AsyncClient, person: Person
) -> None:
    story_id = (await person.new_story())["id"]
    stranger = await registered(mesh, http)
    for path in (f"/v1/stories/{story_id}", f"/v1/stories/{story_id}:watch"):
        response = await stranger.get(path)
        assert (response.status_code, reason(response)) == (404, "STORY_NOT_FOUND")
    absent = await stranger.get(f"/v1/stories/{uuid4()}")
    assert (absent.status_code, reason(absent)) == (404, "STORY_NOT_FOUND")
    assert (await stranger.get("/v1/stories")).json()["stories"] == []


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("/v1/stories", {"preferences": ["a", "a"]}, "preferences"),
        ("/v1/stories", {"theme": "x" * 101}, "theme"),
        ("/v1/stories", {"language": "?"}, "language"),
        ("/v1/stories", {"request_id": "a b"}, "request_id"),
    ],
)
async def test_each_invalid_story_field_is_named(person: Person, path: str, body: dict[str, Any], field: str) -> None:
    response = await person.post(path, **body)
    assert (response.status_code, fields(response)) == (400, {field})


@pytest.mark.parametrize(
    ("path", "field"),
    [
        ("/v1/stories?page_size=101", "page_size"),
        ("/v1/stories?page_size=-1", "page_size"),
        ("/v1/stories?page_token=abc", "page_token"),
        ("/v1/notifications?page_token=abc", "page_token"),
        ("/v1/stories/not-an-id", "story_id"),
    ],
)
async def test_each_invalid_query_is_named(person: Person, path: str, field: str) -> None:
    response = await person.get(path)
    assert (response.status_code, fields(response)) == (400, {field})


@pytest.mark.parametrize(("size", "times"), [(9_000, 30), (14_000, 30), (20_000, 3), (31_000, 3)])
async def test_every_request_with_large_headers_that_the_edge_lets_in_is_served(
    mesh: RunningMesh, person: Person, size: int, times: int
) -> None:
    headers = {**person.auth, "cookie": "x" * size}
    for path in ["/v1/stories", "/v1/account", "/v1/notifications"]:
        answers = [await person.http.get(path, headers=headers) for _ in range(times)]
        assert {answer.status_code for answer in answers} == {200}, [answer.text for answer in answers]
    async with grpc.aio.insecure_channel(mesh.edge_address) as channel:
        metadata = (*bearer(person.tokens["access_token"]), ("cookie", "x" * size))
        await StoryServiceStub(channel).ListStories(story.ListStoriesRequest(), metadata=metadata)


async def test_headers_beyond_the_edges_limit_are_named(person: Person) -> None:
    response = await person.http.get("/v1/stories", headers={**person.auth, "cookie": "x" * 33_000})
    assert (response.status_code, reason(response)) == (431, "HEADERS_TOO_LARGE")


@pytest.mark.parametrize("path", ["/v1/stories", "/v1/notifications"])
@pytest.mark.parametrize("size", [9_000, 16_000])
async def test_a_page_token_as_long_as_a_page_is_the_callers_mistake(person: Person, path: str, size: int) -> None:
    response = await person.get(path, page_token="x" * size)
    assert (response.status_code, fields(response)) == (400, {"page_token"}), response.text


async def test_bytes_that_are_no_request_have_one_reason_whoever_reads_them(mesh: RunningMesh, person: Person) -> None:
    in_json = await person.http.post(
        "/v1/stories", content=b"{", headers={**person.auth, "content-type": "application/json"}
    )
    async with grpc.aio.insecure_channel(mesh.edge_address) as channel:
        create: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(
            "/storymesh.story.v1.StoryService/CreateStory"
        )
        with raises_status(grpc.StatusCode.INVALID_ARGUMENT, "REQUEST_MALFORMED"):
            await create(b"\xff\xff", metadata=bearer(person.tokens["access_token"]))
    assert reason(in_json) == "REQUEST_MALFORMED"


async def test_the_meshs_own_methods_are_refused_at_the_edge(mesh: RunningMesh, person: Person) -> None:
    async with grpc.aio.insecure_channel(mesh.edge_address) as channel:
        with pytest.raises(AioRpcError) as raised:
            await DirectoryServiceStub(channel).GetUser(
                directory.GetUserRequest(user_id=person.user["id"]), metadata=bearer(person.tokens["access_token"])
            )
    assert raised.value.code() in (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.UNIMPLEMENTED)
    async with grpc.aio.insecure_channel(mesh.address("auth")) as channel:
        with pytest.raises(AioRpcError) as raised:
            await DirectoryServiceStub(channel).GetUser(
                directory.GetUserRequest(user_id=person.user["id"]), metadata=bearer(person.tokens["access_token"])
            )
    assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_only_a_list_of_strings_changes_preferences_and_null_is_none(person: Person) -> None:
    async def patched(value: Any) -> httpx2.Response:
        return await person.http.patch("/v1/account", json={"preferences": value}, headers=person.auth)

    kept = (await patched(["sea", "owls"])).json()["user"]["preferences"]
    assert kept == ["sea", "owls"]
    misfits: list[Any] = [
        {},
        {"a": 1},
        {"values": ["x"]},
        "x",
        "",
        5,
        True,
        [1],
        [None],
        [["x"]],
        [{}],
        ["x", None],
        ["x", 1],
    ]
    for value in misfits:
        response = await patched(value)
        assert (response.status_code, fields(response)) == (400, {"preferences"}), value
    assert (await patched(None)).json()["user"]["preferences"] == kept
    assert (await person.get("/v1/account")).json()["user"]["preferences"] == kept
    assert (await patched([])).json()["user"]["preferences"] == []


@pytest.mark.parametrize("value", ["x", {}, {"a": 1}, [["x"]], [None], [1]], ids=str)
async def test_preferences_are_a_list_of_strings_wherever_they_are_given(person: Person, value: Any) -> None:
    for path, body in (("/v1/registrations", GOOD), ("/v1/stories", {})):
        response = await person.post(path, **body, preferences=value)
        assert (response.status_code, fields(response)) == (400, {"preferences"}), path
