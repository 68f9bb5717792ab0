"""Transcoding of JSON to gRPC, and the answers to requests that do not fit the contract."""

from __future__ import annotations

import gzip
from typing import Any

import grpc
import httpx2
import pytest
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status
from storymesh.auth.v1 import account_service_pb2 as account
from storymesh.auth.v1 import user_pb2
from storymesh.story.v1 import story_pb2
from storymesh.story.v1 import story_service_pb2 as story

from tests.envoy.conftest import Mesh
from tests.envoy.statuses import detail, reason

JSON = {"content-type": "application/json"}


async def test_names_stay_as_in_the_contract_and_defaults_are_printed(ada: httpx2.AsyncClient, mesh: Mesh) -> None:
    async def answer(_request: Any, _context: Any) -> account.GetAccountResponse:
        return account.GetAccountResponse(user=user_pb2.User(id="1", first_name="Ada", role=user_pb2.ROLE_USER))

    mesh.calls.instead["GetAccount"] = answer
    user = (await ada.get("/v1/account")).json()["user"]
    assert user == {
        "id": "1",
        "email": "",
        "username": "",
        "first_name": "Ada",
        "last_name": "",
        "preferences": [],
        "role": "ROLE_USER",
    }


async def test_path_body_and_query_become_fields(http: httpx2.AsyncClient, ada: httpx2.AsyncClient, mesh: Mesh) -> None:
    await http.post("/v1/registrations/r1:complete", json={"code": "123456", "device_name": "laptop"})
    completed = mesh.calls.last.request
    assert (completed.registration_id, completed.code, completed.device_name) == ("r1", "123456", "laptop")
    await ada.get("/v1/stories", params={"page_size": 5, "page_token": "next"})
    assert (mesh.calls.last.request.page_size, mesh.calls.last.request.page_token) == (5, "next")
    await ada.get("/v1/stories/s1")
    assert mesh.calls.last.request.story_id == "s1"


async def test_a_call_without_fields_needs_no_body(ada: httpx2.AsyncClient, mesh: Mesh) -> None:
    assert (await ada.post("/v1/sessions:logout")).status_code == 200
    assert (await ada.post("/v1/sessions:logout", json={})).status_code == 200
    assert [call.method for call in mesh.calls.seen] == ["Logout", "Logout"]


async def test_a_service_learns_how_long_the_edge_waits(ada: httpx2.AsyncClient, mesh: Mesh) -> None:
    await ada.get("/v1/account")
    deadline = mesh.calls.last.deadline
    assert deadline is not None
    assert 0.5 < deadline <= 1


async def test_an_answer_larger_than_the_buffers_arrives_whole(ada: httpx2.AsyncClient, mesh: Mesh) -> None:
    text = "word " * 200_000

    async def answer(_request: Any, _context: Any) -> story.GetStoryResponse:
        return story.GetStoryResponse(story=story_pb2.Story(id="s", text=text))

    mesh.calls.instead["GetStory"] = answer
    assert (await ada.get("/v1/stories/s")).json()["story"]["text"] == text


async def test_an_error_of_a_service_keeps_its_details(ada: httpx2.AsyncClient, mesh: Mesh) -> None:
    status = status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message="invalid request")
    for message in (
        error_details_pb2.ErrorInfo(reason="INVALID_ARGUMENT", domain="storymesh"),
        error_details_pb2.BadRequest(
            field_violations=[error_details_pb2.BadRequest.FieldViolation(field="theme", description="too long")]
        ),
    ):
        packed = any_pb2.Any()
        packed.Pack(message)
        status.details.append(packed)

    async def refuse(_request: Any, context: Any) -> None:
        await context.abort_with_status(rpc_status.to_status(status))

    mesh.calls.instead["CreateStory"] = refuse
    answer = await ada.post("/v1/stories", json={"theme": "x"})
    assert answer.status_code == 400
    assert reason(answer) == "INVALID_ARGUMENT"
    violations = detail(answer, "type.googleapis.com/google.rpc.BadRequest")["field_violations"]
    assert violations[0]["field"] == "theme"
    assert violations[0]["description"] == "too long"


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (grpc.StatusCode.NOT_FOUND, 404),
        (grpc.StatusCode.ALREADY_EXISTS, 409),
        (grpc.StatusCode.PERMISSION_DENIED, 403),
        (grpc.StatusCode.FAILED_PRECONDITION, 400),
        (grpc.StatusCode.ABORTED, 409),
    ],
)
async def test_codes_become_http_statuses(
    ada: httpx2.AsyncClient, mesh: Mesh, code: grpc.StatusCode, status: int
) -> None:
    async def refuse(_request: Any, context: Any) -> None:
        await context.abort(code, "because")

    mesh.calls.instead["CreateStory"] = refuse
    answer = await ada.post("/v1/stories", json={})
    assert answer.status_code == status
    assert answer.json() == {"code": code.value[0], "message": "because", "details": []}


@pytest.mark.parametrize(
    ("method", "path", "sent", "status", "named"),
    [
        ("GET", "/v1/nothing", {}, 404, "PATH_NOT_FOUND"),
        ("GET", "/", {}, 404, "PATH_NOT_FOUND"),
        ("POST", "/storymesh.auth.v1.DirectoryService/GetUser", {"json": {}}, 404, "PATH_NOT_FOUND"),
        ("POST", "/storymesh.auth.v1.SessionService/CreateSession", {"json": {}}, 404, "PATH_NOT_FOUND"),
        ("DELETE", "/v1/stories", {}, 405, "METHOD_NOT_ALLOWED"),
        ("PUT", "/v1/stories/s1:watch", {}, 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/health", {}, 405, "METHOD_NOT_ALLOWED"),
        ("DELETE", "/v1/stories/", {}, 405, "METHOD_NOT_ALLOWED"),
        ("PUT", "/v1/stories/s1:watch/", {}, 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/health/", {}, 405, "METHOD_NOT_ALLOWED"),
        ("POST", "/v1/sessions/", {"data": {"login": "ada"}}, 415, "UNSUPPORTED_MEDIA_TYPE"),
        ("POST", "/v1/registrations/r1:complete/", {"data": {"code": "1"}}, 415, "UNSUPPORTED_MEDIA_TYPE"),
        ("POST", "/v1/sessions", {"data": {"login": "ada"}}, 415, "UNSUPPORTED_MEDIA_TYPE"),
        (
            "POST",
            "/v1/sessions",
            {"content": "{}", "headers": {"content-type": "text/json"}},
            415,
            "UNSUPPORTED_MEDIA_TYPE",
        ),
        ("POST", "/v1/sessions", {"content": '{"login":', "headers": JSON}, 400, "REQUEST_MALFORMED"),
        ("POST", "/v1/sessions", {"content": "[]", "headers": JSON}, 400, "REQUEST_MALFORMED"),
        ("POST", "/v1/sessions", {"json": {"login": 5}}, 400, "REQUEST_MALFORMED"),
        ("POST", "/v1/sessions", {"json": {"login": "x" * 5000}}, 413, "REQUEST_TOO_LARGE"),
        ("POST", "/v1/sessions", {"json": {"login": "x" * 3_000_000}}, 413, "REQUEST_TOO_LARGE"),
        ("GET", "/v1/stories?pagesize=5", {}, 400, "REQUEST_MALFORMED"),
        ("GET", "/v1/stories?page_size=many", {}, 400, "REQUEST_MALFORMED"),
        ("POST", "/v1/registrations/r1:complete", {"json": {"registration_id": "r2"}}, 400, "REQUEST_MALFORMED"),
    ],
)
async def test_a_request_that_does_not_fit_is_refused_in_json(
    ada: httpx2.AsyncClient, mesh: Mesh, method: str, path: str, sent: dict[str, Any], status: int, named: str
) -> None:
    answer = await ada.request(method, path, **sent)
    assert answer.status_code == status, answer.text
    assert reason(answer) == named
    assert mesh.calls.seen == []


async def test_a_complaint_names_the_field_at_fault(ada: httpx2.AsyncClient) -> None:
    assert "page_size" in (await ada.get("/v1/stories?page_size=many")).json()["message"]
    assert "pagesize" in (await ada.get("/v1/stories?pagesize=5")).json()["message"]


async def test_a_wrong_method_is_told_the_right_ones(http: httpx2.AsyncClient) -> None:
    assert (await http.delete("/v1/stories")).headers["allow"] == "GET, POST"
    assert (await http.post("/docs")).headers["allow"] == "GET, HEAD"


@pytest.mark.parametrize(
    "coding", ["gzip", "GZip", "br", "deflate", "zstd", "x-gzip", "identity, gzip", "gzip, identity", "unknown"]
)
@pytest.mark.parametrize("path", ["/v1/sessions", "/v1/sessions/"])
async def test_a_compressed_body_is_refused_and_the_answer_says_how_to_send_it(
    http: httpx2.AsyncClient, mesh: Mesh, path: str, coding: str
) -> None:
    headers = JSON | {"content-encoding": coding}
    answer = await http.post(path, content=gzip.compress(b'{"login": "ada"}'), headers=headers)
    assert answer.status_code == 415
    assert reason(answer) == "CONTENT_ENCODING_NOT_SUPPORTED"
    assert answer.headers["accept-encoding"] == "identity"
    assert mesh.calls.seen == []


@pytest.mark.parametrize("coding", ["identity", "IDENTITY", ""])
async def test_a_body_may_say_that_it_is_not_compressed(http: httpx2.AsyncClient, coding: str) -> None:
    answer = await http.post("/v1/sessions", content=b"{}", headers=JSON | {"content-encoding": coding})
    assert answer.status_code == 200
    other = {"content-type": "text/plain", "content-encoding": coding}
    assert reason(await http.post("/v1/sessions", content=b"{}", headers=other)) == "UNSUPPORTED_MEDIA_TYPE"


async def test_a_trailing_slash_makes_no_difference(
    http: httpx2.AsyncClient, ada: httpx2.AsyncClient, mesh: Mesh
) -> None:
    assert (await ada.get("/v1/account/")).json() == (await ada.get("/v1/account")).json()
    assert (await http.post("/v1/sessions/", json={"login": "ada"})).status_code == 200
    assert (await http.post("/v1/sessions:refresh/", json={})).status_code == 200
    assert (await http.post("/v1/registrations/r1:complete/", json={"code": "123456"})).status_code == 200
    assert mesh.calls.last.request.registration_id == "r1"
    mesh.story.chunks.put_nowait(None)
    assert (await ada.get("/v1/stories/s1:watch/?resume_token=t")).status_code == 200
    assert mesh.calls.last.request == story.WatchStoryRequest(story_id="s1", resume_token="t")
    for document in ("/health", "/docs", "/openapi.yaml"):
        assert (await http.get(f"{document}/")).text == (await http.get(document)).text


async def test_the_media_type_may_carry_a_charset(http: httpx2.AsyncClient) -> None:
    answer = await http.post("/v1/sessions", content="{}", headers={"content-type": "application/json; charset=utf-8"})
    assert answer.status_code == 200
