"""Builds the story service's processes."""

from __future__ import annotations

from storymesh.ops.v1.dead_letter_service_pb2_grpc import add_DeadLetterServiceServicer_to_server
from storymesh.story.v1.directory_service_pb2_grpc import add_DirectoryServiceServicer_to_server
from storymesh.story.v1.story_link_service_pb2_grpc import add_StoryLinkServiceServicer_to_server
from storymesh.story.v1.story_service_pb2_grpc import add_StoryServiceServicer_to_server

from kit.data import migrations
from kit.events.dead_letter_service import DeadLetterServicer
from kit.events.dead_letters import DeadLetters
from kit.events.relay import Relay
from kit.identity.signing import Signer
from kit.rpc.resources import Resources
from kit.rpc.server import Server
from kit.runtime import process
from mesh.event_routes import routes
from mesh.manifest import LIMITER

from .config import StorySettings, StoryWorkerSettings
from .operations import Operations, operations, worker_operations
from .peers import AccountDirectory, StoryTokens
from .servicer import DirectoryServicer, StoryLinkServicer, StoryServicer
from .worker import accounts_inbox, stories_inbox, warm_writer


def api(settings: StorySettings, resources: Resources, ops: Operations) -> Server:
    server = resources.api(optional={"redis": resources.redis.ping})
    server.add(add_StoryServiceServicer_to_server, StoryServicer(ops.stories, ops.watches))
    server.add(add_StoryLinkServiceServicer_to_server, StoryLinkServicer(ops.links))
    server.add(add_DirectoryServiceServicer_to_server, DirectoryServicer(ops.links))
    signer = Signer(settings.cursor_key.get_secret_value())
    letters = DeadLetterServicer(DeadLetters(resources.db, "story", signer))
    server.add(add_DeadLetterServiceServicer_to_server, letters)
    server.background(ops.watches.run)
    return server


async def serve(settings: StorySettings) -> None:
    async with Resources("story", settings) as resources:
        accounts = AccountDirectory(resources.channel("auth"))
        server = api(settings, resources, operations(settings, resources, accounts.preferences_of))
        server.background(resources.revocation_feed.run)
        await server.run(resources.access_tokens, resources.service_tokens)


async def work(settings: StoryWorkerSettings) -> None:
    async with warm_writer(settings) as writer, Resources("story", settings) as resources:
        tokens = StoryTokens(resources.channel(LIMITER)) if settings.ratelimit_target else None
        ops = worker_operations(settings, resources, writer, tokens=tokens)
        relay = Relay(resources.db, resources.redis, routes(), service="story", database_url=resources.database_url)
        inboxes = stories_inbox(settings, resources, ops.writing), accounts_inbox(settings, resources, ops.erasing)
        server = resources.worker()
        for task in (*inboxes, relay, ops.sweeper, ops.interruptions, ops.pruning):
            server.background(task.run)
        await server.run()


if __name__ == "__main__":
    process.main(
        "story",
        serve=process.Command("serve the story API", StorySettings, serve),
        worker=process.Command("write stories and publish the service's events", StoryWorkerSettings, work),
        migrate=migrations.command("services.story"),
    )
