"""Serves the API of notifications on the database of a test."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
from grpc.aio import Channel

from kit.data.database import Database
from kit.rpc.resources import Resources
from kit.rpc.server import Server
from kit.runtime.clock import Clock
from services.notification.__main__ import api as build_api
from services.notification.config import NotificationSettings
from services.notification.operations import Operations, operations
from tests.identity import MESH_KEY, Issuer
from tests.notification.keys import ADDRESS_KEY, CURSOR_KEY, SEAL_KEY, SENDER, UNSUBSCRIBE_KEY


@dataclass
class Served:
    """A server of the API, and a channel to it."""

    channel: Channel
    issuer: Issuer
    server: Server
    ops: Operations


def api_settings(database_url: str, **changes: object) -> NotificationSettings:
    """The settings of the API, with the keys of the worker; `changes` replace some."""
    values: dict[str, Any] = {
        "listen": "127.0.0.1:0",
        "database_url": database_url,
        "mesh_key": MESH_KEY,
        "cursor_key": CURSOR_KEY,
        "seal_key": SEAL_KEY,
        "unsubscribe_key": UNSUBSCRIBE_KEY,
        "address_key": ADDRESS_KEY,
        "mail_from": SENDER,
        "drain_seconds": 1,
    }
    return NotificationSettings.model_validate(values | changes)


@asynccontextmanager
async def serving_api(
    db: Database, database_url: str, *, clock: Clock | None = None, **changes: object
) -> AsyncIterator[Served]:
    """Run a server of the API during the block. `clock` is that of the operations, not of tokens; `changes` replace settings."""
    settings, issuer = api_settings(database_url, **changes), Issuer()
    async with Resources("notification", settings, db=db, revocations=issuer.revocations) as resources:
        if clock:
            resources.clock = clock
        ops = operations(settings, resources)
        server = build_api(settings, resources, ops)
        running = asyncio.create_task(server.run(issuer.access_tokens(), resources.service_tokens))
        async with grpc.aio.insecure_channel(await server.address) as channel:
            yield Served(channel, issuer, server, ops)
        server.stopping.set()
        await running
