"""Builds the toy service's processes."""

from typing import Any

from storymesh.events.v1 import auth_events_pb2
from storymesh.ops.v1.dead_letter_service_pb2_grpc import add_DeadLetterServiceServicer_to_server
from storymesh.toy.v1 import toy_service_pb2 as pb
from storymesh.toy.v1 import toy_service_pb2_grpc

from kit.data import migrations
from kit.events.dead_letter_service import DeadLetterServicer
from kit.events.dead_letters import DeadLetters
from kit.events.inbox import Inbox
from kit.identity.signing import Signer
from kit.rpc.resources import Resources
from kit.runtime import process

from .config import ToySettings
from .operations import Changes


class ToyServicer(toy_service_pb2_grpc.ToyServiceServicer):
    def __init__(self, changes: Changes) -> None:
        self._changes = changes

    async def CountChanges(self, request: pb.CountChangesRequest, context: Any) -> pb.CountChangesResponse:
        return pb.CountChangesResponse(changes=await self._changes.count())


async def serve(settings: ToySettings) -> None:
    async with Resources("toy", settings) as resources:
        server = resources.api()
        servicer = ToyServicer(Changes(resources.db, step=settings.toy_step))
        server.add(toy_service_pb2_grpc.add_ToyServiceServicer_to_server, servicer)
        server.background(resources.revocation_feed.run)
        dead_letters = DeadLetters(resources.db, "toy", Signer(settings.toy_key.get_secret_value()))
        server.add(add_DeadLetterServiceServicer_to_server, DeadLetterServicer(dead_letters))
        await server.run(resources.access_tokens, resources.service_tokens)


async def work(settings: ToySettings) -> None:
    async with Resources("toy", settings) as resources:
        handlers = {auth_events_pb2.UserUpdated.DESCRIPTOR.full_name: Changes(resources.db, step=settings.toy_step).add}
        lease, most = settings.lease_seconds, settings.max_failures
        inbox = Inbox(
            resources.db, resources.redis, "toy", handlers, lease_seconds=lease, concurrency=1, max_failures=most
        )
        server = resources.worker()
        server.background(inbox.run)
        await server.run()


if __name__ == "__main__":
    process.main(
        "toy",
        serve=process.Command("serve the count", ToySettings, serve),
        worker=process.Command("count", ToySettings, work),
        migrate=migrations.command("services.toy"),
    )
