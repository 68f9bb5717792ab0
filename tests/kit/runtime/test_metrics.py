"""What operators can read of a process."""

from __future__ import annotations

import asyncio
import socket
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError, UnaryUnaryMultiCallable
from storymesh.story.v1.story_service_pb2 import CreateStoryRequest, GetStoryResponse

from kit.identity.revocations import Revocation, RevocationKind, Revocations
from kit.rpc.server import Server
from kit.runtime.metrics import Metrics
from kit.runtime.settings import ServiceSettings
from tests.identity import Issuer, bearer, service_tokens
from tests.kit import desk as desks
from tests.kit.conftest import SETTINGS, RunningDesk
from tests.kit.desk import Context
from tests.kit.numbers import fetch, numbers, parsed
from tests.statuses import raises_status
from tests.waiting import until

ANYTHING = CreateStoryRequest()


def calls(method: str, status: str) -> str:
    labels = f'rpc_method="{desks.NAME}/{method}",rpc_response_status_code="{status}",rpc_system_name="grpc"'
    return f"rpc_server_call_duration_seconds_count{{{labels}}}"


def refused(reason: str) -> str:
    return f'storymesh_calls_refused_total{{reason="{reason}"}}'


async def test_calls_are_counted_by_method_and_status(desk: RunningDesk) -> None:
    async def break_down(_request: CreateStoryRequest, _context: Context) -> GetStoryResponse:
        raise RuntimeError

    await desk.stub.public(ANYTHING)
    await desk.stub.public(ANYTHING)
    await desk.stub.watch(ANYTHING, metadata=bearer(desk.issuer.token(uuid4()))).read()
    with raises_status(StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"):
        await desk.stub.user(ANYTHING)
    desk.desk.answer = break_down
    with raises_status(StatusCode.INTERNAL, "INTERNAL"):
        await desk.stub.public(ANYTHING)

    expected = {
        calls("AskPublic", "OK"): 2,
        calls("Watch", "OK"): 1,
        calls("AskUser", "UNAUTHENTICATED"): 1,
        calls("AskPublic", "INTERNAL"): 1,
    }

    async def counted() -> bool:
        # A call is counted a moment after its caller has the answer.
        values = await numbers(desk.server.metrics)
        return {name: value for name, value in values.items() if "_duration_seconds_count" in name} == expected

    await until(counted)


async def test_a_call_is_counted_in_every_bucket_that_it_fits_into() -> None:
    metrics = Metrics()
    for seconds in (0.004, 0.005, 0.3, 1000.0):
        metrics.called("/desk.v1.Desk/Ask", "OK", seconds, None)
    labels = 'rpc_method="desk.v1.Desk/Ask",rpc_response_status_code="OK",rpc_system_name="grpc"'
    values = await numbers(metrics)
    name = "rpc_server_call_duration_seconds"
    expected = {"0.005": 2, "0.25": 2, "0.5": 3, "600.0": 3, "+Inf": 4}
    found = {bound: values[f'{name}_bucket{{le="{bound}",{labels}}}'] for bound in expected}
    assert found == expected
    assert values[f"{name}_count{{{labels}}}"] == 4
    assert values[f"{name}_sum{{{labels}}}"] == pytest.approx(1000.309)


async def test_the_refused_are_counted_by_reason_from_zero_on(desk: RunningDesk) -> None:
    before = await numbers(desk.server.metrics)
    assert before[refused("SESSION_REVOKED")] == before[refused("REVOCATIONS_UNKNOWN")] == 0
    user_id = uuid4()
    desk.issuer.revocations.add(Revocation(RevocationKind.USER, str(user_id), datetime.now(UTC) + timedelta(minutes=1)))
    with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
        await desk.stub.user(ANYTHING, metadata=bearer(desk.issuer.token(user_id)))
    with raises_status(StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"):
        await desk.stub.user(ANYTHING)

    async def counted() -> bool:
        return (await numbers(desk.server.metrics))[refused("SESSION_REVOKED")] == 1

    await until(counted)


async def test_neither_people_nor_made_up_methods_become_labels(desk: RunningDesk) -> None:
    user_id = uuid4()
    await desk.stub.user(
        ANYTHING, metadata=(*bearer(desk.issuer.token(user_id)), ("x-storymesh-client-address", "203.0.113.7"))
    )
    made_up: UnaryUnaryMultiCallable[bytes, bytes] = desk.channel.unary_unary(f"/{desks.NAME}/MadeUp")
    with pytest.raises(AioRpcError):
        await made_up(b"")
    async with desk.server.metrics.exposed("127.0.0.1:0") as url:
        text = await fetch(url)
    assert "AskUser" in text
    for secret in (str(user_id), "203.0.113.7", "127.0.0.1", "MadeUp"):
        assert secret not in text


async def test_what_is_known_of_revocations_is_shown_with_its_age() -> None:
    seconds = 100.0
    revocations = Revocations(lambda: datetime.now(UTC), monotonic=lambda: seconds)
    metrics = Metrics()
    revocations.show_in(metrics)
    names = [
        "storymesh_revocations_known",
        "storymesh_revocation_feed_age_seconds",
        "storymesh_revocation_feed_stale",
    ]

    async def shown() -> list[float]:
        values = await numbers(metrics)
        return [values[name] for name in names]

    seconds += 5
    assert await shown() == [0, 5, 1]
    revocations.replace([Revocation(RevocationKind.KEY, "k", datetime.now(UTC) + timedelta(minutes=1))])
    assert await shown() == [1, 0, 0]
    seconds += 30
    assert await shown() == [1, 30, 0]
    seconds += 1
    assert await shown() == [1, 31, 1]


async def test_the_numbers_can_be_read_while_the_process_runs_and_not_longer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        address = "{}:{}".format(*reserved.getsockname())
    settings = SETTINGS.model_copy(update={"metrics_listen": address})
    for _ in range(2):  # the port is free again at once
        server = Server(settings, required={})
        desks.add(server, desks.Desk())
        running = asyncio.create_task(server.run(Issuer().access_tokens(), service_tokens("desk")))
        await server.address
        values = parsed(await fetch(f"http://{address}/metrics"))
        assert values["process_resident_memory_bytes"] > 0
        server.stopping.set()
        await running
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(*address.split(":"))


async def test_a_taken_port_is_said_with_the_setting_that_moves_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = "{}:{}".format(*taken.getsockname())
        server = Server(SETTINGS.model_copy(update={"metrics_listen": address}), required={})
        with pytest.raises(OSError, match=rf"{address}.*in use.*STORYMESH_METRICS_LISTEN"):
            await server.run()


@pytest.mark.parametrize("listen", ["9464", "localhost:", "localhost:http"])
def test_an_address_without_a_port_is_refused(listen: str) -> None:
    with pytest.raises(ValueError, match="metrics_listen"):
        ServiceSettings(mesh_key=b"m" * 32, metrics_listen=listen)


async def test_a_slow_reader_holds_up_neither_calls_nor_the_end(desk: RunningDesk) -> None:
    async with desk.server.metrics.exposed("127.0.0.1:0") as url:
        host, port = url.removeprefix("http://").removesuffix("/metrics").split(":")
        _, writer = await asyncio.open_connection(host, int(port))
        await desk.stub.public(ANYTHING)
        assert parsed(await fetch(url))
    writer.close()
