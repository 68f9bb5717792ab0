"""The desk as a process of its own, as every service is one: `python -m tests.kit.desk_process serve`."""

from __future__ import annotations

import asyncio

from storymesh.story.v1.story_pb2 import Story
from storymesh.story.v1.story_service_pb2 import CreateStoryRequest, GetStoryResponse

from services.kit import process
from services.kit.server import Server
from services.kit.settings import ServiceSettings
from tests.identity import Issuer, service_tokens
from tests.kit import desk as desks


async def _take_a_while(request: CreateStoryRequest, _context: desks.Context) -> GetStoryResponse:
    await asyncio.sleep(float(request.theme or 0))
    return GetStoryResponse(story=Story(title="done"))


async def serve(settings: ServiceSettings) -> None:
    server = Server(settings, required={})
    desks.add(server, desks.Desk(answer=_take_a_while))
    await server.run(Issuer().access_tokens(), service_tokens("desk"))


if __name__ == "__main__":
    process.main("desk", serve=process.Command("serve the desk", ServiceSettings, serve))
