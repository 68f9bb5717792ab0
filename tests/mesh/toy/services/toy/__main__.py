"""Builds the toy service's processes."""

from contextlib import AsyncExitStack
from typing import Any

from storymesh.events.v1 import auth_events_pb2
from storymesh.toy.v1 import toy_service_pb2 as pb
from storymesh.toy.v1 import toy_service_pb2_grpc

from kit.data import migrations
from kit.data import redis as kit_redis
from kit.data.database import Database
from kit.events.inbox import Inbox
from kit.identity.jwks import fetch_from
from kit.identity.revocations import Revocations
from kit.identity.tokens import AccessTokens, KeySet, ServiceTokens
from kit.rpc import channels
from kit.rpc.server import Server
from kit.runtime import process
from kit.runtime.clock import system_clock

from .config import ToySettings
from .operations import Changes


class ToyServicer(toy_service_pb2_grpc.ToyServiceServicer):
    def __init__(self, changes: Changes) -> None:
        self._changes = changes

    async def CountChanges(self, request: pb.CountChangesRequest, context: Any) -> pb.CountChangesResponse:
        return pb.CountChangesResponse(changes=await self._changes.count())


async def serve(settings: ToySettings) -> None:
    async with AsyncExitStack() as closing:
        db = Database(settings.database_url.get_secret_value(), pool=2)
        closing.push_async_callback(db.close)
        service_tokens = ServiceTokens(settings.mesh_key.get_secret_value(), service="toy", clock=system_clock)
        auth = await closing.enter_async_context(channels.connect(settings.auth_target, "auth", service_tokens))
        access_tokens = AccessTokens(
            KeySet(fetch_from(auth), system_clock),
            Revocations(system_clock),
            issuer=settings.token_issuer,
            audience=settings.token_audience,
        )
        server = Server(settings, required={"postgres": db.check})
        servicer = ToyServicer(Changes(db, step=settings.toy_step))
        server.add(
            "storymesh.toy.v1.ToyService",
            lambda to: toy_service_pb2_grpc.add_ToyServiceServicer_to_server(servicer, to),
        )
        await server.run(access_tokens, service_tokens)


async def work(settings: ToySettings) -> None:
    async with AsyncExitStack() as closing:
        db = Database(settings.database_url.get_secret_value(), pool=2)
        closing.push_async_callback(db.close)
        redis = await closing.enter_async_context(kit_redis.connect(settings.redis_url.get_secret_value()))
        changes = Changes(db, step=settings.toy_step)
        handlers = {auth_events_pb2.UserUpdated.DESCRIPTOR.full_name: changes.add}
        inbox = Inbox(db, redis, "toy", handlers, lease_seconds=settings.lease_seconds, concurrency=1, max_failures=1)
        server = Server(settings, required={"postgres": db.check, "redis": redis.ping})
        server.background(inbox.run)
        await server.run()


if __name__ == "__main__":
    process.main(
        "toy",
        serve=process.Command("serve the count", ToySettings, serve),
        worker=process.Command("count", ToySettings, work),
        migrate=migrations.command("services.toy"),
    )
