"""Deadlines of callers, through the edge."""

from __future__ import annotations

import grpc
import httpx2
import pytest
from grpc import StatusCode
from storymesh.auth.v1.account_service_pb2 import GetAccountRequest
from storymesh.auth.v1.account_service_pb2_grpc import AccountServiceStub
from storymesh.auth.v1.session_service_pb2 import CreateSessionRequest
from storymesh.auth.v1.session_service_pb2_grpc import SessionServiceStub

from local.harness import RunningMesh
from tests.system.conftest import PASSWORD, Person
from tests.waiting import until


@pytest.mark.parametrize("seconds", [0.095, 0.06])
async def test_a_short_time_is_enough_for_a_short_call(mesh: RunningMesh, person: Person, seconds: float) -> None:
    async with grpc.aio.insecure_channel(mesh.edge_address) as channel:
        stub, metadata = AccountServiceStub(channel), tuple(person.auth.items())
        # Connect first, so that the measured call does not include it.
        await stub.GetAccount(GetAccountRequest(), metadata=metadata)

        async def answered() -> bool:
            call = stub.GetAccount(GetAccountRequest(), metadata=metadata, timeout=seconds)
            return await call.code() is StatusCode.OK

        # Repeated when the machine itself was too slow.
        await until(answered, 40)


async def test_a_short_time_in_a_browser_is_enough_too(http: httpx2.AsyncClient, person: Person) -> None:
    headers = {**person.auth, "content-type": "application/grpc-web", "grpc-timeout": "95m"}

    async def answered() -> bool:
        path = "/storymesh.auth.v1.AccountService/GetAccount"
        answer = await http.post(path, content=b"\0\0\0\0\0", headers=headers)
        return b"grpc-status:0" in answer.content

    await until(answered, 40)


async def test_a_time_that_is_too_short_is_over_in_time_and_leaves_the_account_usable(
    mesh: RunningMesh, person: Person
) -> None:
    async with grpc.aio.insecure_channel(mesh.edge_address) as channel:
        stub = SessionServiceStub(channel)
        request = CreateSessionRequest(login=person.email, password=PASSWORD)
        for seconds in (0.001, 0.005, 0.01):
            code = await stub.CreateSession(request, timeout=seconds).code()
            assert code is StatusCode.DEADLINE_EXCEEDED
        answer = await stub.CreateSession(request, timeout=20)
        assert answer.tokens.access_token


async def test_callers_with_too_little_time_take_a_service_from_nobody_else(
    mesh: RunningMesh, http: httpx2.AsyncClient
) -> None:
    body = {"login": "nobody@example.org", "password": PASSWORD}
    reasons: set[str] = set()
    for _ in range(30):  # more consecutive failures than the edge allows on a connection
        answer = await http.post("/v1/sessions", json=body, headers={"grpc-timeout": "15m"})
        assert answer.status_code == 504
        reasons.add(answer.json()["details"][0]["reason"])
    assert reasons == {"DEADLINE_EXCEEDED"}
    assert (await http.get("/.well-known/jwks.json")).status_code == 200
