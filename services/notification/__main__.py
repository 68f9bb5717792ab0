"""Builds the notification service's processes."""

from __future__ import annotations

import logging
import os

from storymesh.notification.v1.bounce_service_pb2_grpc import add_BounceServiceServicer_to_server
from storymesh.notification.v1.delivery_service_pb2_grpc import add_DeliveryServiceServicer_to_server
from storymesh.notification.v1.notification_service_pb2_grpc import add_NotificationServiceServicer_to_server
from storymesh.notification.v1.preference_service_pb2_grpc import add_PreferenceServiceServicer_to_server
from storymesh.notification.v1.system_webhook_service_pb2_grpc import add_SystemWebhookServiceServicer_to_server
from storymesh.notification.v1.webhook_service_pb2_grpc import add_WebhookServiceServicer_to_server
from storymesh.ops.v1.dead_letter_service_pb2_grpc import add_DeadLetterServiceServicer_to_server

from kit.data import migrations
from kit.events.dead_letter_service import DeadLetterServicer
from kit.events.dead_letters import DeadLetters
from kit.identity.signing import Signer
from kit.rpc.resources import Resources
from kit.rpc.server import Server
from kit.runtime import process
from kit.runtime.health import seldom

from .commands import COMMANDS
from .config import NotificationSettings, NotificationWorkerSettings
from .model.public_urls import opens_here_only
from .operations import Operations, operations, worker_operations
from .peers import AccountDirectory, StoryDirectory
from .servicer import (
    BounceServicer,
    DeliveryServicer,
    NotificationServicer,
    PreferenceServicer,
    SystemWebhookServicer,
    WebhookServicer,
)
from .worker import inbox

log = logging.getLogger(__name__)

_SMTP_CHECK_SECONDS = 60.0
"""Time between two health checks of the mail server, which often belongs to somebody else who limits connections."""

_NICENESS = 5
"""Nice value of the mail worker: a mail takes seconds anyway, so calls, whose callers wait, get shared processors first."""


def api(settings: NotificationSettings, resources: Resources, ops: Operations) -> Server:
    server = resources.api()
    server.add(add_NotificationServiceServicer_to_server, NotificationServicer(ops.notifications, ops.watches))
    server.add(add_BounceServiceServicer_to_server, BounceServicer(ops.provider_bounces))
    server.add(add_DeliveryServiceServicer_to_server, DeliveryServicer(ops.deliveries, ops.suppressions))
    server.add(add_WebhookServiceServicer_to_server, WebhookServicer(ops.webhooks, ops.webhook_deliveries))
    server.add(add_SystemWebhookServiceServicer_to_server, SystemWebhookServicer(ops.webhooks))
    signer = Signer(settings.cursor_key.get_secret_value())
    server.add(add_PreferenceServiceServicer_to_server, PreferenceServicer(ops.preferences, ops.unsubscribing))
    letters = DeadLetterServicer(DeadLetters(resources.db, "notification", signer))
    server.add(add_DeadLetterServiceServicer_to_server, letters)
    server.background(ops.watches.run)
    return server


async def serve(settings: NotificationSettings) -> None:
    async with Resources("notification", settings) as resources:
        server = api(settings, resources, operations(settings, resources))
        server.background(resources.revocation_feed.run)
        await server.run(resources.access_tokens, resources.service_tokens)


def warn_of_links(public_url: str, environment: str) -> None:
    """Log a warning where people would get mails whose links lead to their own machines."""
    if environment == "production" and opens_here_only(public_url):
        log.warning("links in mails lead to %s, which opens on this machine only: set STORYMESH_PUBLIC_URL", public_url)


async def work(settings: NotificationWorkerSettings) -> None:
    os.nice(_NICENESS)
    warn_of_links(settings.public_url, settings.environment)
    async with Resources("notification", settings) as resources:
        accounts, stories = AccountDirectory(resources.channel("auth")), StoryDirectory(resources.channel("story"))
        ops = worker_operations(settings, resources, accounts.find, stories)
        server = resources.worker(optional={"smtp": seldom(ops.smtp.check, every_seconds=_SMTP_CHECK_SECONDS)})
        server.background(inbox(settings, resources, ops).run)
        server.background(ops.delivering.run)
        server.background(ops.pruning.run)
        server.background(ops.records.run)
        server.background(ops.webhooks.run)
        await server.run()


if __name__ == "__main__":
    process.main(
        "notification",
        serve=process.Command("serve the notification API", NotificationSettings, serve),
        worker=process.Command("decide about notices and deliver them", NotificationWorkerSettings, work),
        migrate=migrations.command("services.notification"),
        **COMMANDS,
    )
