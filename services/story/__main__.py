"""Builds the story service's processes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from functools import partial

from storymesh.ops.v1.dead_letter_service_pb2_grpc import add_DeadLetterServiceServicer_to_server
from storymesh.story.v1.story_service_pb2 import DESCRIPTOR
from storymesh.story.v1.story_service_pb2_grpc import add_StoryServiceServicer_to_server

from kit.data import migrations
from kit.data import redis as kit_redis
from kit.data.database import Database
from kit.data.paging import Pages
from kit.events import dead_letter_service
from kit.events.dead_letter_service import DeadLetterServicer
from kit.events.dead_letters import DeadLetters
from kit.events.inbox import Inbox
from kit.events.inbox_stream import waiting_since
from kit.events.relay import Relay
from kit.identity.jwks import fetch_from
from kit.identity.revocation_feed import RevocationFeed
from kit.identity.revocations import Revocations
from kit.identity.signing import Signer
from kit.identity.tokens import AccessTokens, KeySet, ServiceTokens
from kit.rpc import channels
from kit.rpc.server import Server
from kit.runtime import process
from kit.runtime.clock import system_clock
from mesh.event_routes import routes

from . import worker
from .adapters.writers import LANGUAGES, Writer, WriterRefused, build_writer
from .config import StorySettings, StoryWorkerSettings
from .model import Limits
from .operations.admission import Admission
from .operations.erasing import Erasing
from .operations.interruptions import Interruptions
from .operations.pruning import Pruning
from .operations.stories import Stories
from .operations.sweeping import Sweeper
from .operations.watching import Watches, WatchLimits
from .operations.writing import Writing
from .peers import Accounts
from .servicer import StoryServicer
from .store.progress import Progress

SERVICE = DESCRIPTOR.services_by_name["StoryService"].full_name

_ERASED_AT_A_TIME = 2


async def serve(settings: StorySettings) -> None:
    async with AsyncExitStack() as closing:
        db = Database(settings.database_url.get_secret_value(), pool=settings.database_pool)
        closing.push_async_callback(db.close)
        redis = await closing.enter_async_context(kit_redis.connect(settings.redis_url.get_secret_value()))
        service_tokens = ServiceTokens(settings.mesh_key.get_secret_value(), service="story", clock=system_clock)
        auth = await closing.enter_async_context(channels.connect(settings.auth_target, "auth", service_tokens))
        revocations = Revocations(system_clock)
        access_tokens = AccessTokens(
            KeySet(fetch_from(auth), system_clock),
            revocations,
            issuer=settings.token_issuer,
            audience=settings.token_audience,
        )
        signer = Signer(settings.cursor_key.get_secret_value())
        limits = Limits(
            unfinished=settings.stories_unfinished, a_day=settings.stories_a_day, backlog=settings.stories_backlog
        )
        stories = Stories(
            db,
            Pages(signer),
            Accounts(auth).preferences_of,
            system_clock,
            progress=Progress(redis),
            admission=Admission(limits),
            languages=LANGUAGES[settings.writer],
        )
        server = Server(
            settings,
            required={"postgres": db.check, "revocation_snapshot": revocations.check_known},
            optional={"redis": redis.ping, "revocations": revocations.check_fresh},
        )
        watch_limits = WatchLimits(
            per_person=settings.watches_per_person,
            altogether=settings.watches,
            stories=settings.watched_stories,
            entries_behind=settings.watch_entries_behind,
        )
        watches = Watches(
            db, stories, Progress(redis), signer, watch_limits, heartbeat_seconds=settings.heartbeat_seconds
        )
        server.background(db.watch)
        server.background(kit_redis.liveness(redis).watch)
        server.background(watches.run)
        servicer = StoryServicer(stories, watches)
        server.add(SERVICE, lambda to: add_StoryServiceServicer_to_server(servicer, to))
        letters = DeadLetterServicer(DeadLetters(db, "story", signer))
        server.add(dead_letter_service.SERVICE, lambda to: add_DeadLetterServiceServicer_to_server(letters, to))
        server.background(RevocationFeed(auth, revocations).run)
        revocations.show_in(server.metrics)
        await server.run(access_tokens, service_tokens)


@asynccontextmanager
async def _writer(settings: StoryWorkerSettings) -> AsyncIterator[Writer]:
    """The writer, ready to write. Raises process.Misconfigured when no story could ever come of it."""
    try:
        writer = build_writer(
            settings.writer,
            pace_seconds=settings.composer_pace,
            model_path=settings.model_path,
            parallel=settings.writer_concurrency,
            openai_base_url=settings.openai_base_url,
            openai_api_key=settings.openai_api_key.get_secret_value(),
            openai_model=settings.openai_model,
        )
    except WriterRefused as refused:
        raise process.Misconfigured(refused) from None
    try:
        try:
            await writer.warm_up()
        except WriterRefused as refused:
            raise process.Misconfigured(refused) from None
        yield writer
    finally:
        await writer.aclose()


async def work(settings: StoryWorkerSettings) -> None:
    async with AsyncExitStack() as closing:
        writer = await closing.enter_async_context(_writer(settings))
        database_url = settings.database_url.get_secret_value()
        db = Database(database_url, pool=settings.database_pool)
        closing.push_async_callback(db.close)
        redis = await closing.enter_async_context(kit_redis.connect(settings.redis_url.get_secret_value()))
        progress = Progress(redis)
        interruptions = Interruptions(redis)
        erasing = Erasing(db, progress, system_clock)
        writing = Writing(
            db,
            progress,
            writer,
            system_clock,
            interruptions=interruptions,
            lease=timedelta(seconds=settings.lease_seconds),
            seconds=settings.story_seconds,
            life=timedelta(seconds=settings.story_life_seconds),
            attempts=settings.story_attempts,
            limit=settings.writer_limit,
        )
        inbox = Inbox(
            db,
            redis,
            "story",
            worker.handlers(writing),
            lease_seconds=settings.lease_seconds,
            concurrency=settings.writer_concurrency,
            max_failures=settings.max_failures,
        )
        accounts_inbox = Inbox(
            db,
            redis,
            "story-accounts",
            worker.account_handlers(erasing),
            lease_seconds=settings.lease_seconds,
            concurrency=_ERASED_AT_A_TIME,
            max_failures=settings.max_failures,
        )
        relay = Relay(db, redis, routes(), service="story", database_url=database_url)
        server = Server(settings, required={"postgres": db.check, "redis": redis.ping})
        server.background(db.watch)
        server.background(kit_redis.liveness(redis).watch)
        server.background(inbox.run)
        server.background(accounts_inbox.run)
        server.background(relay.run)
        server.background(Sweeper(db, partial(waiting_since, redis, "story")).run)
        server.background(interruptions.run)
        server.background(Pruning(db, erasing, system_clock).run)
        await server.run()


if __name__ == "__main__":
    process.main(
        "story",
        serve=process.Command("serve the story API", StorySettings, serve),
        worker=process.Command("write stories and publish the service's events", StoryWorkerSettings, work),
        migrate=migrations.command("services.story"),
    )
