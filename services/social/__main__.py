"""Builds the social service's processes."""

from __future__ import annotations

from storymesh.ops.v1.dead_letter_service_pb2_grpc import add_DeadLetterServiceServicer_to_server

from kit.data import migrations
from kit.events.dead_letter_service import DeadLetterServicer
from kit.events.dead_letters import DeadLetters
from kit.events.relay import Relay
from kit.identity.signing import Signer
from kit.rpc.resources import Resources
from kit.rpc.server import Server
from kit.runtime import process
from mesh.event_routes import routes

from .config import SocialSettings, SocialWorkerSettings
from .operations import Operations, operations, worker_operations
from .peers import Files
from .servicer import add_servicers
from .worker import accounts_inbox, social_inbox


def api(settings: SocialSettings, resources: Resources, ops: Operations) -> Server:
    server = resources.api()
    add_servicers(server, ops)
    signer = Signer(settings.cursor_key.get_secret_value())
    letters = DeadLetterServicer(DeadLetters(resources.db, "social", signer))
    server.add(add_DeadLetterServiceServicer_to_server, letters)
    return server


async def serve(settings: SocialSettings) -> None:
    async with Resources("social", settings) as resources:
        server = api(settings, resources, operations(settings, resources, Files(resources.channel("file"))))
        server.background(resources.revocation_feed.run)
        await server.run(resources.access_tokens, resources.service_tokens)


async def work(settings: SocialWorkerSettings) -> None:
    async with Resources("social", settings) as resources:
        ops = worker_operations(settings, resources)
        relay = Relay(resources.db, resources.redis, routes(), service="social", database_url=resources.database_url)
        inboxes = social_inbox(settings, resources, ops), accounts_inbox(settings, resources, ops)
        server = resources.worker()
        for task in (*inboxes, relay, ops.pruning):
            server.background(task.run)
        await server.run()


if __name__ == "__main__":
    process.main(
        "social",
        serve=process.Command("serve profiles, blocks and mutes", SocialSettings, serve),
        worker=process.Command(
            "make profiles, erase them and publish the service's events", SocialWorkerSettings, work
        ),
        migrate=migrations.command("services.social"),
    )
