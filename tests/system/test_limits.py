"""Rate limits: a caller above a limit is refused with the time to retry after, and other callers are not affected."""

from __future__ import annotations

import grpc
import httpx2
import pytest
from grpc.aio import AioRpcError
from storymesh.story.v1 import story_service_pb2 as story
from storymesh.story.v1.story_service_pb2_grpc import StoryServiceStub

from local.harness import RunningMesh
from tests.identity import bearer
from tests.statuses import reason_of
from tests.system.conftest import GENERATION_BURST, Person, registered


async def test_over_the_limit_is_429_with_retry_after_in_json_and_resource_exhausted_in_grpc(
    mesh: RunningMesh, http: httpx2.AsyncClient, person: Person
) -> None:
    invalid = {"theme": "x" * 101}
    admitted = 0
    while (refused := await person.post("/v1/stories", **invalid)).status_code != 429:
        # On a machine so slow that the limiter misses its deadline, the answer is 503, which debits nothing.
        assert refused.status_code in (400, 503)
        admitted += refused.status_code == 400
    assert admitted == GENERATION_BURST
    assert 0 < int(refused.headers["retry-after"]) <= 60
    assert refused.headers["ratelimit"].startswith('"generation-per-user";r=0;t=')
    assert "RATE_LIMITED" in refused.text
    async with grpc.aio.insecure_channel(mesh.edge_address) as channel:
        auth = bearer(person.tokens["access_token"])
        with pytest.raises(AioRpcError) as raised:
            await StoryServiceStub(channel).CreateStory(story.CreateStoryRequest(), metadata=auth)
    assert (raised.value.code(), reason_of(raised.value)) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "RATE_LIMITED")
    assert 0 < int(dict(raised.value.trailing_metadata())["retry-after"]) <= 60
    assert (await person.get("/v1/stories")).status_code == 200
    other = await registered(mesh, http)
    assert (await other.post("/v1/stories", **invalid)).status_code == 400


async def test_repeated_wrong_passwords_get_429_with_retry_after(http: httpx2.AsyncClient, person: Person) -> None:
    async def sign_in() -> httpx2.Response:
        return await http.post("/v1/sessions", json={"login": person.email, "password": "not the right one"})

    answers = [await sign_in() for _ in range(7)]
    refused = answers[-1]
    assert [answer.status_code for answer in answers[:5]] == [401] * 5
    assert refused.status_code == 429
    assert "TOO_MANY_SIGN_INS" in refused.text
    assert int(refused.headers["retry-after"]) >= 1


async def test_a_claimed_address_does_not_change_whose_limit_it_is(http: httpx2.AsyncClient) -> None:
    def remaining(answer: httpx2.Response) -> int:
        return int(answer.headers["x-ratelimit-remaining"])

    body = {"login": "nobody", "password": "x"}
    before = await http.post("/v1/sessions", json=body)
    claimed = [{"x-forwarded-for": f"203.0.113.{number}"} for number in range(5)]
    after = [await http.post("/v1/sessions", json=body, headers=headers) for headers in claimed]
    assert all(remaining(answer) < 5000 for answer in (before, *after))
    assert remaining(after[-1]) <= remaining(before)
