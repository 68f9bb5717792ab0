"""Methods that redirect: a browser is sent on, a client that asks for JSON and one of gRPC get the message."""

from __future__ import annotations

from typing import Any

import grpc
import httpx2
import pytest
from google.rpc import code_pb2
from storymesh.social.v1 import profile_service_pb2 as pb
from storymesh.social.v1.profile_service_pb2_grpc import ProfileServiceStub

from mesh.edge_protocol import REDIRECT_HEADER
from tests.envoy.conftest import Edge, Mesh
from tests.envoy.test_pages import refusing
from tests.envoy.upstreams import Context

PATH = "/v1/users/018f3c1e-0000-7000-8000-000000000001/avatar"
URL = "https://objects.example/a%20b?X-Amz-Signature=00ff&x=<&>"
AGE = "private, max-age=240"


async def answered(_request: pb.GetAvatarRequest, context: Context) -> pb.GetAvatarResponse:
    await context.send_initial_metadata(((REDIRECT_HEADER, URL), ("cache-control", AGE)))
    return pb.GetAvatarResponse(url=URL)


@pytest.fixture(autouse=True)
def _avatar(mesh: Mesh, _nothing_happened_yet: None) -> None:
    mesh.calls.instead["GetAvatar"] = answered


@pytest.fixture
def signed_in(mesh: Mesh) -> dict[str, str]:
    return {"authorization": f"Bearer {mesh.key.sign()}"}


@pytest.mark.parametrize("accept", ["image/avif,image/webp,*/*;q=0.8", "text/html", "*/*", None])
async def test_a_browser_is_sent_on_and_keeps_the_answer_for_as_long_as_the_service_says(
    http: httpx2.AsyncClient, signed_in: dict[str, str], accept: str | None
) -> None:
    http.headers.pop("accept", None)
    answer = await http.get(PATH, headers={**signed_in, **({"accept": accept} if accept else {})})
    assert (answer.status_code, answer.headers["location"], answer.content) == (302, URL, b"")
    assert answer.headers["cache-control"] == AGE
    assert {"accept", "authorization", "origin"} <= {
        each.strip().lower() for line in answer.headers.get_list("vary") for each in line.split(",")
    }
    assert "content-type" not in answer.headers
    assert REDIRECT_HEADER not in answer.headers


@pytest.mark.parametrize("accept", ["application/json", "text/html, Application/JSON;q=0.9"])
async def test_a_client_that_asks_for_json_gets_the_message(
    http: httpx2.AsyncClient, signed_in: dict[str, str], accept: str
) -> None:
    answer = await http.get(f"{PATH}?size=96", headers={**signed_in, "accept": accept})
    assert (answer.status_code, answer.json()["url"]) == (200, URL)
    assert answer.headers["cache-control"] == AGE
    assert not {"location", REDIRECT_HEADER} & set(answer.headers)


async def test_a_grpc_client_gets_the_message(edge: Edge, mesh: Mesh, signed_in: dict[str, str]) -> None:
    async with grpc.aio.insecure_channel(edge.target) as channel:
        call = ProfileServiceStub(channel).GetAvatar(pb.GetAvatarRequest(), metadata=tuple(signed_in.items()))
        assert (await call).url == URL
        assert REDIRECT_HEADER not in dict(await call.initial_metadata())


@pytest.mark.parametrize("accept", ["*/*", "application/json"])
@pytest.mark.parametrize(("code", "status"), [(code_pb2.NOT_FOUND, 404), (code_pb2.UNAVAILABLE, 503)])
async def test_a_refusal_is_json_for_everybody(
    http: httpx2.AsyncClient, mesh: Mesh, signed_in: dict[str, str], accept: str, code: Any, status: int
) -> None:
    mesh.calls.instead["GetAvatar"] = refusing(code)
    answer = await http.get(PATH, headers={**signed_in, "accept": accept})
    assert (answer.status_code, answer.json()["details"][0]["reason"]) == (status, "SOME_REASON")
    assert answer.headers["cache-control"] == "no-store"
    assert "location" not in answer.headers


async def test_nobody_is_sent_on_without_a_token_or_by_a_header_of_their_own(
    http: httpx2.AsyncClient, mesh: Mesh, signed_in: dict[str, str]
) -> None:
    assert (await http.get(PATH, headers={"accept": "*/*"})).status_code == 401

    async def plain(_request: pb.GetAvatarRequest, _context: Context) -> pb.GetAvatarResponse:
        return pb.GetAvatarResponse(url=URL)

    mesh.calls.instead["GetAvatar"] = plain
    answer = await http.get(PATH, headers={**signed_in, "accept": "*/*", REDIRECT_HEADER: "https://evil.example"})
    assert (answer.status_code, answer.json()["url"]) == (200, URL)
