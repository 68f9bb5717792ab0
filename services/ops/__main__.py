"""Builds the operators' service."""

from __future__ import annotations

from storymesh.ops.v1.dead_letter_service_pb2_grpc import add_DeadLetterServiceServicer_to_server
from storymesh.ops.v1.rate_limit_service_pb2_grpc import add_RateLimitServiceServicer_to_server

from kit.events.dead_letter_service import DeadLetterServicer
from kit.rpc.resources import Resources
from kit.rpc.server import Server
from kit.runtime import process

from .config import OpsSettings
from .operations import Operations, operations
from .peers import RateLimits, dead_letter_stores
from .servicer import RateLimitServicer


def api(resources: Resources, ops: Operations) -> Server:
    server = resources.api()
    server.add(add_DeadLetterServiceServicer_to_server, DeadLetterServicer(ops.dead_letters))
    server.add(add_RateLimitServiceServicer_to_server, RateLimitServicer(RateLimits(resources.channel("ratelimit"))))
    return server


async def serve(settings: OpsSettings) -> None:
    async with Resources("ops", settings) as resources:
        server = api(resources, operations(settings, resources, dead_letter_stores(resources)))
        server.background(resources.revocation_feed.run)
        await server.run(resources.access_tokens, resources.service_tokens)


if __name__ == "__main__":
    process.main("ops", serve=process.Command("serve the operators' API", OpsSettings, serve))
