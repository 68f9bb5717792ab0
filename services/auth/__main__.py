"""Builds the auth service's processes."""

from __future__ import annotations

from kit.data import migrations
from kit.events.relay import Relay
from kit.identity.tokens import KeySet
from kit.rpc.resources import Resources
from kit.rpc.server import Server
from kit.runtime import process
from mesh.event_routes import routes

from .commands import COMMANDS
from .config import AuthSettings, AuthWorkerSettings
from .operations import Operations, operations
from .servicer import add_servicers
from .worker import upkeep


def api(resources: Resources, ops: Operations) -> Server:
    # Redis is optional for readiness: most calls work without it, and those that need it answer UNAVAILABLE themselves.
    server = resources.api(required={"signing_keys": ops.keys.check}, optional={"redis": resources.redis.ping})
    add_servicers(server, ops)
    server.background(ops.feed.run)
    return server


async def serve(settings: AuthSettings) -> None:
    async with Resources("auth", settings) as resources:
        ops = operations(settings, resources)
        await ops.keys.refresh()
        await ops.feed.refresh()
        server = api(resources, ops)
        server.background(ops.keys.run)
        # Verifies its own access tokens as every service does, with keys and revocations that it holds itself.
        access_tokens = resources.access_tokens_of(KeySet(ops.keys.load, resources.clock))
        async with ops.passwords:
            await server.run(access_tokens, resources.service_tokens)


async def work(settings: AuthWorkerSettings) -> None:
    async with Resources("auth", settings) as resources:
        relay = Relay(resources.db, resources.redis, routes(), service="auth", database_url=resources.database_url)
        server = resources.worker()
        for task in relay, upkeep(settings, resources):
            server.background(task.run)
        await server.run()


if __name__ == "__main__":
    process.main(
        "auth",
        serve=process.Command("serve registration, sign-in, accounts and keys", AuthSettings, serve),
        worker=process.Command(
            "publish the service's events, replace keys and remove what has ended", AuthWorkerSettings, work
        ),
        migrate=migrations.command("services.auth"),
        **COMMANDS,
    )
