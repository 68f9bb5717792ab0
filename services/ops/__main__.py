"""Builds the operators' service."""

from __future__ import annotations

from contextlib import AsyncExitStack

from storymesh.ops.v1.dead_letter_service_pb2_grpc import add_DeadLetterServiceServicer_to_server

from kit.events import dead_letter_service
from kit.events.dead_letter_service import DeadLetterServicer
from kit.identity.jwks import fetch_from
from kit.identity.revocation_feed import RevocationFeed
from kit.identity.revocations import Revocations
from kit.identity.signing import Signer
from kit.identity.tokens import AccessTokens, KeySet, ServiceTokens
from kit.rpc import channels
from kit.rpc.server import Server
from kit.runtime import process
from kit.runtime.clock import system_clock

from .config import KEEPERS, SETTINGS, OpsSettings
from .operations.dead_letters import DeadLetterAggregator
from .peers import ServiceDeadLetters


async def serve(settings: OpsSettings) -> None:
    async with AsyncExitStack() as closing:
        service_tokens = ServiceTokens(settings.mesh_key.get_secret_value(), service="ops", clock=system_clock)
        auth = await closing.enter_async_context(channels.connect(settings.auth_target, "auth", service_tokens))
        revocations = Revocations(system_clock)
        access_tokens = AccessTokens(
            KeySet(fetch_from(auth), system_clock),
            revocations,
            issuer=settings.token_issuer,
            audience=settings.token_audience,
        )
        keepers = {
            name: ServiceDeadLetters(
                await closing.enter_async_context(
                    channels.connect(getattr(settings, f"{name}_target"), name, service_tokens)
                )
            )
            for name in KEEPERS
        }
        server = Server(
            settings,
            required={"revocation_snapshot": revocations.check_known},
            optional={"revocations": revocations.check_fresh},
        )
        letters = DeadLetterServicer(DeadLetterAggregator(keepers, Signer(settings.cursor_key.get_secret_value())))
        server.add(dead_letter_service.SERVICE, lambda to: add_DeadLetterServiceServicer_to_server(letters, to))
        server.background(RevocationFeed(auth, revocations).run)
        revocations.show_in(server.metrics)
        await server.run(access_tokens, service_tokens)


if __name__ == "__main__":
    process.main("ops", serve=process.Command("serve the operators' API", SETTINGS, serve))
