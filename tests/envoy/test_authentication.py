"""Authentication at the edge: which requests pass and which are refused."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import httpx2
import jwt
import pytest
from foreign import rls_pb2, rls_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from storymesh.auth.v1 import account_service_pb2 as account
from storymesh.auth.v1 import account_service_pb2_grpc as account_grpc
from storymesh.auth.v1 import directory_service_pb2 as directory
from storymesh.auth.v1 import directory_service_pb2_grpc as directory_grpc
from storymesh.auth.v1 import key_service_pb2
from storymesh.auth.v1 import session_service_pb2 as session
from storymesh.auth.v1 import session_service_pb2_grpc as session_grpc

from tests.envoy.conftest import Mesh, envoy, settings_for, until
from tests.envoy.statuses import grpc_reason, reason
from tests.envoy.tokens import SigningKey

Credentials = tuple[tuple[str, str]]


async def test_a_valid_token_passes_and_is_handed_on_to_the_service(ada: httpx2.AsyncClient, mesh: Mesh) -> None:
    assert (await ada.get("/v1/account")).status_code == 200
    assert mesh.calls.last.metadata["authorization"] == ada.headers["authorization"]


async def test_without_a_token_json_is_answered_401(http: httpx2.AsyncClient, mesh: Mesh) -> None:
    answer = await http.get("/v1/account")
    assert answer.status_code == 401
    assert reason(answer) == "TOKEN_MISSING"
    assert answer.json()["code"] == 16
    assert answer.headers["www-authenticate"] == 'Bearer realm="storymesh"'
    assert mesh.calls.seen == []


async def test_without_a_token_grpc_is_answered_unauthenticated(channel: grpc.aio.Channel, mesh: Mesh) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await account_grpc.AccountServiceStub(channel).GetAccount(account.GetAccountRequest())
    assert error.value.code() is grpc.StatusCode.UNAUTHENTICATED
    assert grpc_reason(error.value) == "TOKEN_MISSING"
    assert mesh.calls.seen == []


async def test_with_a_token_native_grpc_passes(channel: grpc.aio.Channel, credentials: Credentials, mesh: Mesh) -> None:
    await account_grpc.AccountServiceStub(channel).GetAccount(account.GetAccountRequest(), metadata=credentials)
    assert mesh.calls.last.method == "GetAccount"


FORGERIES: dict[str, Callable[[SigningKey], str]] = {
    "another key under the same id": lambda key: SigningKey(key.kid).sign(),
    "a key nobody published": lambda _: SigningKey("unknown").sign(),
    "another audience": lambda key: key.sign(aud="elsewhere"),
    "no audience": lambda key: key.sign(without="aud"),
    "another issuer": lambda key: key.sign(iss="elsewhere"),
    "no expiry": lambda key: key.sign(without="exp"),
    "not valid yet": lambda key: key.sign(nbf=int(time.time()) + 120),
    "no signature": lambda _: jwt.encode({"iss": "storymesh", "aud": "storymesh"}, "", algorithm="none"),
    "a symmetric signature": lambda key: jwt.encode({"iss": "storymesh"}, "x" * 32, headers={"kid": key.kid}),
    "not a token": lambda _: "nonsense",
}


@pytest.mark.parametrize("forge", FORGERIES.values(), ids=FORGERIES.keys())
async def test_a_token_that_auth_did_not_make_for_this_mesh_is_refused(
    http: httpx2.AsyncClient, mesh: Mesh, forge: Callable[[SigningKey], str]
) -> None:
    answer = await http.get("/v1/account", headers={"authorization": f"Bearer {forge(mesh.key)}"})
    assert answer.status_code == 401
    assert reason(answer) == "TOKEN_INVALID"
    assert 'error="invalid_token"' in answer.headers["www-authenticate"]
    assert mesh.calls.seen == []


async def test_an_expired_token_says_so(http: httpx2.AsyncClient, mesh: Mesh) -> None:
    expired = mesh.key.sign(exp=int(time.time()) - 60)
    answer = await http.get("/v1/account", headers={"authorization": f"Bearer {expired}"})
    assert answer.status_code == 401
    assert reason(answer) == "TOKEN_EXPIRED"


async def test_clocks_may_differ_by_half_a_minute(http: httpx2.AsyncClient, mesh: Mesh) -> None:
    just_expired = mesh.key.sign(exp=int(time.time()) - 15)
    answer = await http.get("/v1/account", headers={"authorization": f"Bearer {just_expired}"})
    assert answer.status_code == 200


async def test_a_token_in_the_query_is_no_token(http: httpx2.AsyncClient, mesh: Mesh) -> None:
    answer = await http.get("/v1/account", params={"access_token": mesh.key.sign()})
    assert answer.status_code in {400, 401}
    assert mesh.calls.seen == []


async def test_public_methods_need_no_token_and_ignore_a_bad_one(http: httpx2.AsyncClient, mesh: Mesh) -> None:
    for headers in ({}, {"authorization": "Bearer nonsense"}):
        answer = await http.post("/v1/sessions", json={"login": "ada", "password": "x"}, headers=headers)
        assert answer.status_code == 200
    assert [call.method for call in mesh.calls.seen] == ["CreateSession", "CreateSession"]


async def test_public_methods_need_no_token_over_grpc(channel: grpc.aio.Channel, mesh: Mesh) -> None:
    await session_grpc.SessionServiceStub(channel).CreateSession(session.CreateSessionRequest(login="ada"))
    assert mesh.calls.last.request.login == "ada"


async def _directory(channel: grpc.aio.Channel, metadata: Credentials) -> None:
    await directory_grpc.DirectoryServiceStub(channel).GetUser(directory.GetUserRequest(), metadata=metadata)


async def _health(channel: grpc.aio.Channel, metadata: Credentials) -> None:
    stub: Any = health_pb2_grpc.HealthStub(channel)
    await stub.Check(health_pb2.HealthCheckRequest(), metadata=metadata)


async def _limiter(channel: grpc.aio.Channel, metadata: Credentials) -> None:
    await rls_pb2_grpc.RateLimitServiceStub(channel).ShouldRateLimit(rls_pb2.RateLimitRequest(), metadata=metadata)


async def _reflection(channel: grpc.aio.Channel, metadata: Credentials) -> None:
    path = "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    # Called as unary: a stream that is refused while the client writes would fail in the client with another code.
    call: Any = channel.unary_unary(path)
    await call(b"", metadata=metadata)


@pytest.mark.parametrize("call", [_directory, _health, _limiter, _reflection])
async def test_what_is_not_for_the_outside_does_not_exist_there(
    channel: grpc.aio.Channel, credentials: Credentials, mesh: Mesh, call: Callable[..., Any]
) -> None:
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await call(channel, credentials)
    assert error.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert grpc_reason(error.value) == "PATH_NOT_FOUND"
    assert mesh.calls.seen == []


async def test_headers_that_claim_an_identity_do_not_reach_a_service(ada: httpx2.AsyncClient, mesh: Mesh) -> None:
    claims = {
        "x-user-id": "eve",
        "x-storymesh-service": "story",
        "x-envoy-original-path": "/v1/x",
        "x-real-ip": "1.2.3.4",
    }
    assert (await ada.get("/v1/account", headers=claims)).status_code == 200
    arrived = mesh.calls.last.metadata
    assert not {"x-user-id", "x-storymesh-service", "x-storymesh-client-ip", "x-real-ip"} & arrived.keys()
    assert arrived["x-envoy-original-path"] == "/v1/account"


async def test_keys_are_served_with_their_time_to_live(http: httpx2.AsyncClient, mesh: Mesh) -> None:
    answer = await http.get("/.well-known/jwks.json")
    assert answer.json()["keys"] == [mesh.key.jwk()]
    assert answer.headers["cache-control"] == "public, max-age=300"


async def test_a_failure_to_serve_keys_is_not_cached(http: httpx2.AsyncClient, mesh: Mesh) -> None:
    async def unavailable(_request: Any, context: Any) -> None:
        await context.abort(grpc.StatusCode.UNAVAILABLE, "down")

    mesh.calls.instead["GetJwks"] = unavailable
    answer = await http.get("/.well-known/jwks.json")
    assert answer.status_code == 503
    assert answer.headers["cache-control"] == "no-store"


async def test_no_further_token_passes_once_its_key_has_left_the_key_set(mesh: Mesh, tmp_path: Path) -> None:
    # Envoy renews its copy 5 s before the end of its time: after one second here.
    settings = settings_for(mesh.endpoints, "authentication.keys_cache_seconds=6")

    async def another_key(_request: Any, _context: Any) -> key_service_pb2.GetJwksResponse:
        return key_service_pb2.GetJwksResponse(keys=[key_service_pb2.JsonWebKey(**SigningKey("next").jwk())])

    async with envoy(settings, tmp_path) as own, httpx2.AsyncClient(base_url=own.url) as client:

        async def answered(status: int) -> bool:
            # Another token each time: the services refuse the ones that the edge remembers.
            headers = {"authorization": f"Bearer {mesh.key.sign(jti=str(time.monotonic_ns()))}"}
            return (await client.get("/v1/account", headers=headers)).status_code == status

        await until(lambda: answered(200))
        mesh.calls.instead["GetJwks"] = another_key
        await until(lambda: answered(401), 20)


async def test_a_token_whose_signature_was_changed_is_not_taken_for_a_remembered_one(
    http: httpx2.AsyncClient, mesh: Mesh
) -> None:
    token = mesh.key.sign(sub="remembered")
    assert (await http.get("/v1/account", headers={"authorization": f"Bearer {token}"})).status_code == 200
    signed, _, signature = token.rpartition(".")
    for forged in (f"{signed}.{signature[::-1]}", f"{mesh.key.sign(sub='another').rpartition('.')[0]}.{signature}"):
        assert (await http.get("/v1/account", headers={"authorization": f"Bearer {forged}"})).status_code == 401


async def test_a_remembered_token_is_refused_once_it_has_expired(mesh: Mesh, tmp_path: Path) -> None:
    # The skew that Envoy allows a remembered token is a minute, and cannot be set.
    token = mesh.key.sign(exp=int(time.time()) - 55)
    settings = settings_for(mesh.endpoints, "authentication.clock_skew_seconds=60")
    headers = {"authorization": f"Bearer {token}"}
    async with envoy(settings, tmp_path) as own, httpx2.AsyncClient(base_url=own.url, headers=headers) as client:

        async def answered(status: int) -> bool:
            return (await client.get("/v1/account")).status_code == status

        await until(lambda: answered(200))
        await until(lambda: answered(401), 20)
