"""A service's process from its start to its end."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import grpc
import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from storymesh.story.v1.story_service_pb2 import CreateStoryRequest

from tests.kit.desk import DeskStub

pytestmark = pytest.mark.slow

TRACE = "0af7651916cd43dd8448eb211c80319c"


@dataclass
class Running:
    """A desk process that serves."""

    process: Process
    address: str
    log: list[dict[str, Any]] = field(default_factory=list)

    async def end(self) -> int:
        """Its exit code, after its last lines were read."""
        assert self.process.stdout
        async for line in self.process.stdout:
            self.log.append(json.loads(line))
        return await self.process.wait()


Start = Callable[..., Awaitable[Running]]


async def spawn(*arguments: str, **settings: str) -> Process:
    environment = {f"STORYMESH_{name.upper()}": value for name, value in settings.items()}
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "tests.kit.desk_process", *(arguments or ("serve",))),
        env={"STORYMESH_MESH_KEY": "m" * 43, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


@pytest.fixture
async def start() -> AsyncIterator[Start]:
    begun: list[Process] = []

    async def started(**settings: str) -> Running:
        process = await spawn(**{"listen": "127.0.0.1:0", "drain_seconds": "5", **settings})
        begun.append(process)
        assert process.stdout
        async with asyncio.timeout(60):
            line = json.loads(await process.stdout.readline())
        return Running(process, line["message"].removeprefix("serving on "), [line])

    yield started
    for process in begun:
        with suppress(ProcessLookupError):
            process.kill()
        await process.communicate()


async def test_a_process_told_to_end_fails_its_readiness_finishes_its_calls_and_ends_well(start: Start) -> None:
    desk = await start()
    async with grpc.aio.insecure_channel(desk.address) as channel:
        stub = DeskStub(channel)
        health: Any = HealthStub(channel)
        watching = health.Watch(HealthCheckRequest())
        assert (await watching.read()).status == HealthCheckResponse.SERVING
        open_call = stub.public(CreateStoryRequest(theme="1.5"))
        await stub.public(CreateStoryRequest())
        desk.process.send_signal(signal.SIGTERM)
        assert (await watching.read()).status == HealthCheckResponse.NOT_SERVING
        assert not open_call.done()
        watching.cancel()
        assert (await open_call).story.title == "done"
    assert await desk.end() == 0
    assert [line["message"] for line in desk.log if "Service/" not in line["message"]][-2:] == ["draining", "stopped"]


async def test_a_call_that_outlasts_the_drain_is_cut_and_the_process_still_ends_well(start: Start) -> None:
    desk = await start(drain_seconds="0.3")
    async with grpc.aio.insecure_channel(desk.address) as channel:
        stub = DeskStub(channel)
        await stub.public(CreateStoryRequest())
        open_call = stub.public(CreateStoryRequest(theme="30"))
        await asyncio.sleep(0.1)
        desk.process.send_signal(signal.SIGINT)
        with pytest.raises(AioRpcError) as cut:
            await open_call
        assert cut.value.code() is StatusCode.UNAVAILABLE
    assert await desk.end() == 0


async def test_a_second_process_on_a_taken_address_ends_with_one_sentence(start: Start) -> None:
    first = await start()
    second = await spawn(listen=first.address)
    out, err = await asyncio.wait_for(second.communicate(), 60)
    assert second.returncode == 1
    (sentence,) = [line for line in err.decode().splitlines() if line.startswith("desk serve: ")]
    assert first.address in sentence
    assert "STORYMESH_LISTEN" in sentence
    assert b"Traceback" not in out + err


async def test_the_log_is_ecs_json_in_the_trace_of_the_call(start: Start) -> None:
    desk = await start()
    metadata = (
        ("traceparent", f"00-{TRACE}-b7ad6b7169203331-01"),
        ("x-request-id", "r-1"),
        ("authorization", "Bearer s3cret"),
    )
    async with grpc.aio.insecure_channel(desk.address) as channel:
        await DeskStub(channel).public(CreateStoryRequest(), metadata=metadata)
    desk.process.terminate()
    await desk.end()
    (line,) = [each for each in desk.log if "AskPublic" in each["message"]]
    flat = flattened(line)
    assert flat["service.name"] == "desk-serve"
    assert flat["log.level"] == "info"
    assert flat["trace.id"] == TRACE
    assert flat["http.request.id"] == "r-1"
    assert flat["rpc.grpc.status_code"] == "OK"
    assert flat["client.ip"] == "127.0.0.1"
    assert flat["event.outcome"] == "success"
    assert isinstance(flat["event.duration"], int)
    assert {"@timestamp", "ecs.version", "span.id"} <= flat.keys()
    assert "s3cret" not in json.dumps(desk.log)


def flattened(line: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """ECS allows nested and dotted names alike."""
    flat: dict[str, Any] = {}
    for name, value in line.items():
        flat |= flattened(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat


async def test_wrong_settings_end_the_process_with_78() -> None:
    process = await spawn(mesh_key="short")
    out, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, out) == (78, b"")
    assert err.startswith(b"STORYMESH_MESH_KEY: ")


async def ended(*arguments: str, **settings: str) -> tuple[int | None, str, str]:
    """The exit code of a command, and what it wrote on standard output and standard error."""
    process = await spawn(*arguments, **settings)
    out, err = await asyncio.wait_for(process.communicate(), 60)
    return process.returncode, out.decode(), err.decode()


async def test_an_operators_command_gets_its_arguments_and_prints_nothing_but_its_sentences() -> None:
    code, out, err = await ended("close-counter", "2", "--reason", "lunch")
    assert (code, out) == (0, "Counter 3 is closed: lunch.\n")
    (line,) = err.splitlines()
    assert json.loads(line)["message"] == "nobody else is at the desk"
    assert flattened(json.loads(line))["service.name"] == "desk-close-counter"


async def test_an_option_that_is_left_out_is_none_and_a_level_that_was_asked_for_is_logged() -> None:
    code, out, err = await ended("close-counter", "2", log_level="DEBUG")
    assert (code, out) == (0, "Counter 3 is closed: None.\n")
    assert "a counter is closing" in [json.loads(line)["message"] for line in err.splitlines()]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("find-counter", "0"), "desk find-counter: counters begin at 1\n"),
        (("find-counter", "7"), "desk find-counter: not found\n"),
    ],
)
async def test_a_command_that_is_refused_ends_with_one_sentence(arguments: tuple[str, ...], sentence: str) -> None:
    assert await ended(*arguments) == (1, "", sentence)


async def test_a_command_whose_redis_is_away_says_so_without_the_password() -> None:
    code, out, err = await ended("ask-redis", redis_url="redis://desk:s3cret@127.0.0.1:1/0")
    assert (code, out) == (1, "")
    assert err.startswith("desk ask-redis: Redis cannot be used: ")
    assert len(err.splitlines()) == 1
    assert "s3cret" not in err


async def test_wrong_arguments_are_told_before_any_setting_is_read() -> None:
    for arguments, says in ((("close-counter",), "required: counter"), (("close-counter", "two"), "invalid int value")):
        code, out, err = await ended(*arguments, mesh_key="short")
        assert (code, out) == (2, "")
        assert says in err


async def test_help_names_the_commands_and_their_arguments() -> None:
    code, out, _ = await ended("--help")
    assert code == 0
    assert "close-counter" in out
    assert "close a counter" in out
    code, out, _ = await ended("close-counter", "--help")
    assert code == 0
    for word in ("close a counter", "counter", "the counter's number", "--reason REASON", "told to whoever waits"):
        assert word in out
