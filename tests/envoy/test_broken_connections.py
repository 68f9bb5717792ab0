"""The edge detects and closes a broken connection to a service whose process is healthy."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import httpx2
import pytest

from tests.envoy.broken import Failure, breaking, internal, reset
from tests.envoy.conftest import Edge, until

SIGN_IN = "/v1/sessions"


@pytest.mark.parametrize("fail", [internal, reset])
async def test_a_connection_that_fails_every_call_is_replaced(
    mesh_with: Callable[..., Awaitable[Edge]], fail: Failure
) -> None:
    async with breaking(fail) as address:
        edge = await mesh_with(endpoints={"auth": address})
        async with httpx2.AsyncClient(base_url=edge.url) as client:

            async def signs_in() -> bool:
                return (await client.post(SIGN_IN, json={"login": "ada"})).status_code == 200

            assert not await signs_in()
            await until(signs_in)
            assert [await signs_in() for _ in range(30)] == [True] * 30
