"""The desk as a process of its own, as every service is one: `python -m tests.kit.desk_process serve`, and what operators do."""

from __future__ import annotations

import asyncio
import logging
from argparse import Namespace

from storymesh.story.v1.story_pb2 import Story
from storymesh.story.v1.story_service_pb2 import CreateStoryRequest, GetStoryResponse

from kit.data import redis as kit_redis
from kit.errors import NotFound
from kit.rpc.server import Server
from kit.runtime import process
from kit.runtime.settings import ServiceSettings
from tests.identity import Issuer, service_tokens
from tests.kit import desk as desks


async def _take_a_while(request: CreateStoryRequest, _context: desks.Context) -> GetStoryResponse:
    await asyncio.sleep(float(request.theme or 0))
    return GetStoryResponse(story=Story(title="done"))


async def serve(settings: ServiceSettings) -> None:
    server = Server(settings, required={})
    desks.add(server, desks.Desk(answer=_take_a_while))
    await server.run(Issuer().access_tokens(), service_tokens("desk"))


async def close_counter(_settings: ServiceSettings, arguments: Namespace) -> None:
    """Speaks on all channels at once, as what it stands on does."""
    logging.getLogger("desk").info("a counter is closing")
    logging.getLogger("desk").warning("nobody else is at the desk")
    print(f"Counter {arguments.counter + 1} is closed: {arguments.reason}.")


async def find_counter(_settings: ServiceSettings, arguments: Namespace) -> None:
    if arguments.counter == 0:
        raise process.CommandRefused("counters begin at 1")
    raise NotFound


async def ask_redis(settings: ServiceSettings, _arguments: Namespace) -> None:
    async with kit_redis.connect(settings.redis_url.get_secret_value()) as redis:
        await redis.ping()


if __name__ == "__main__":
    counter = process.Argument("counter", "the counter's number", int)
    process.main(
        "desk",
        serve=process.Command("serve the desk", ServiceSettings, serve),
        close_counter=process.Command(
            "close a counter",
            ServiceSettings,
            close_counter,
            arguments=(counter, process.Argument("--reason", "told to whoever waits")),
        ),
        find_counter=process.Command("find a counter", ServiceSettings, find_counter, arguments=(counter,)),
        ask_redis=process.Command("ask Redis", ServiceSettings, ask_redis, arguments=()),
    )
