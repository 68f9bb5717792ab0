"""Builds the notification service's processes."""

from __future__ import annotations

import os
from contextlib import AsyncExitStack

from storymesh.notification.v1.notification_service_pb2 import DESCRIPTOR
from storymesh.notification.v1.notification_service_pb2_grpc import add_NotificationServiceServicer_to_server
from storymesh.ops.v1.dead_letter_service_pb2_grpc import add_DeadLetterServiceServicer_to_server

from kit.data import migrations
from kit.data import redis as kit_redis
from kit.data.database import Database
from kit.data.paging import Pages
from kit.events import dead_letter_service
from kit.events.dead_letter_service import DeadLetterServicer
from kit.events.dead_letters import DeadLetters
from kit.events.inbox import Inbox
from kit.identity.jwks import fetch_from
from kit.identity.revocation_feed import RevocationFeed
from kit.identity.revocations import Revocations
from kit.identity.sealing import Seal
from kit.identity.signing import Signer
from kit.identity.tokens import AccessTokens, KeySet, ServiceTokens
from kit.rpc import channels
from kit.rpc.server import Server
from kit.runtime import process
from kit.runtime.clock import system_clock
from kit.runtime.health import seldom

from .adapters.smtp import Smtp
from .config import NotificationSettings, NotificationWorkerSettings
from .operations.erasing import Erasing
from .operations.mailing import Mailing
from .operations.notifications import Notifications, Notifier
from .peers import Accounts
from .servicer import NotificationServicer
from .worker import Worker, forgotten

_SMTP_CHECK_SECONDS = 60.0
"""The mail server is often somebody else's, who counts connections."""

SERVICE = DESCRIPTOR.services_by_name["NotificationService"].full_name


_NICENESS = 5
"""A mail is on its way for seconds: where processors are shared, calls go first, as somebody waits for their answers."""


async def serve(settings: NotificationSettings) -> None:
    async with AsyncExitStack() as closing:
        db = Database(settings.database_url.get_secret_value(), pool=settings.database_pool)
        closing.push_async_callback(db.close)
        service_tokens = ServiceTokens(settings.mesh_key.get_secret_value(), service="notification", clock=system_clock)
        auth = await closing.enter_async_context(channels.connect(settings.auth_target, "auth", service_tokens))
        revocations = Revocations(system_clock)
        access_tokens = AccessTokens(
            KeySet(fetch_from(auth), system_clock),
            revocations,
            issuer=settings.token_issuer,
            audience=settings.token_audience,
        )
        signer = Signer(settings.cursor_key.get_secret_value())
        notifications = Notifications(db, Pages(signer))
        server = Server(
            settings,
            required={"postgres": db.check, "revocation_snapshot": revocations.check_known},
            optional={"revocations": revocations.check_fresh},
        )
        servicer = NotificationServicer(notifications)
        server.add(SERVICE, lambda to: add_NotificationServiceServicer_to_server(servicer, to))
        letters = DeadLetterServicer(DeadLetters(db, "notification", signer))
        server.add(dead_letter_service.SERVICE, lambda to: add_DeadLetterServiceServicer_to_server(letters, to))
        server.background(db.watch)
        server.background(RevocationFeed(auth, revocations).run)
        revocations.show_in(server.metrics)
        await server.run(access_tokens, service_tokens)


async def work(settings: NotificationWorkerSettings) -> None:
    os.nice(_NICENESS)
    async with AsyncExitStack() as closing:
        db = Database(settings.database_url.get_secret_value(), pool=settings.database_pool)
        closing.push_async_callback(db.close)
        redis = await closing.enter_async_context(kit_redis.connect(settings.redis_url.get_secret_value()))
        service_tokens = ServiceTokens(settings.mesh_key.get_secret_value(), service="notification", clock=system_clock)
        auth = await closing.enter_async_context(channels.connect(settings.auth_target, "auth", service_tokens))
        smtp = Smtp(
            settings.smtp_host,
            settings.smtp_port,
            username=settings.smtp_username,
            password=settings.smtp_password.get_secret_value(),
            start_tls=settings.smtp_start_tls,
            seconds=settings.smtp_seconds,
        )
        worker = Worker(
            Mailing(db, smtp, system_clock, sender=settings.mail_from),
            Notifier(db, system_clock),
            Accounts(auth),
            Seal(settings.seal_key.get_secret_value()),
            system_clock,
            erasing=Erasing(db),
            public_url=settings.public_url,
        )
        inbox = Inbox(
            db,
            redis,
            "notification",
            worker.handlers(),
            lease_seconds=settings.lease_seconds,
            concurrency=settings.mail_concurrency,
            max_failures=settings.max_failures,
            forgotten=forgotten,
            records_events=True,
        )
        smtp_answers = seldom(smtp.check, every_seconds=_SMTP_CHECK_SECONDS)
        server = Server(settings, required={"postgres": db.check, "redis": redis.ping}, optional={"smtp": smtp_answers})
        server.background(db.watch)
        server.background(kit_redis.liveness(redis).watch)
        server.background(inbox.run)
        await server.run()


if __name__ == "__main__":
    process.main(
        "notification",
        serve=process.Command("serve the notification API", NotificationSettings, serve),
        worker=process.Command("send mail and add notifications", NotificationWorkerSettings, work),
        migrate=migrations.command("services.notification"),
    )
