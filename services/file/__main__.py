"""Builds the file service's processes."""

from __future__ import annotations

from storymesh.file.v1.file_claim_service_pb2_grpc import add_FileClaimServiceServicer_to_server
from storymesh.file.v1.file_service_pb2_grpc import add_FileServiceServicer_to_server
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

from .adapters.clamd import Clamd
from .adapters.images.pool import ImagePool
from .config import FileSettings, FileWorkerSettings
from .operations import Operations, operations, worker_operations
from .servicer import FileClaimServicer, FileServicer
from .worker import inboxes


def api(settings: FileSettings, resources: Resources, ops: Operations) -> Server:
    # Without the store files are still declared, read and signed for; what asks it is refused with a reason.
    server = resources.api(optional={"s3": resources.objects.check})
    server.add(add_FileServiceServicer_to_server, FileServicer(ops.files, ops.uploads, ops.watches))
    server.add(add_FileClaimServiceServicer_to_server, FileClaimServicer(ops.claims))
    signer = Signer(settings.cursor_key.get_secret_value())
    letters = DeadLetterServicer(DeadLetters(resources.db, "file", signer))
    server.add(add_DeadLetterServiceServicer_to_server, letters)
    server.background(ops.watches.run)
    return server


async def serve(settings: FileSettings) -> None:
    async with Resources("file", settings) as resources:
        server = api(settings, resources, operations(settings, resources))
        server.background(resources.revocation_feed.run)
        await server.run(resources.access_tokens, resources.service_tokens)


async def work(settings: FileWorkerSettings) -> None:
    clamd = Clamd(settings.clamd_address, most_bytes=settings.clamd_most_bytes) if settings.clamd_address else None
    async with ImagePool(processes=settings.files_image_processes) as images, Resources("file", settings) as resources:
        ops = worker_operations(settings, resources, images, clamd)
        relay = Relay(resources.db, resources.redis, routes(), service="file", database_url=resources.database_url)
        checks = {"s3": resources.objects.check, "file_objects": ops.sweeper.check}
        # A scanner that is away holds every file up, and health says so; what else the worker does goes on.
        server = resources.worker(optional=checks | ({"clamd": clamd.check} if clamd else {}))
        ops.sweeper.show_in(server.metrics)
        for inbox in inboxes(settings, resources, ops):
            server.background(inbox.run)
        for task in (relay, ops.pruning, ops.lost_checks, ops.sweeper):
            server.background(task.run)
        await server.run()


if __name__ == "__main__":
    process.main(
        "file",
        serve=process.Command("serve the file API", FileSettings, serve),
        worker=process.Command("check files and publish the service's events", FileWorkerSettings, work),
        migrate=migrations.command("services.file"),
    )
