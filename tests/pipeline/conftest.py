"""Pipelines that share nothing but their servers, so that several scenarios can run at the same time."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from typing import Any

import psycopg
import pytest
from grpc.aio import ServicerContext
from psycopg import sql
from sqlalchemy.engine import make_url
from storymesh.auth.v1 import directory_service_pb2 as pb

from kit.data import migrations
from kit.data import redis as kit_redis
from kit.data.database import Database
from local.harness import Servers
from tests.notification.directory import Directory, StoryLinks, serving, serving_stories

from .forkserver import fork_server
from .invariants import Stores
from .pipeline import Pipeline
from .processes import Environment

PIPELINES = 5
"""More than there are processors: most of its time a scenario waits until a lease has expired."""


class Anybody(Directory):
    """An auth service that knows every user id."""

    async def GetUser(self, request: pb.GetUserRequest, context: ServicerContext[Any, Any]) -> pb.GetUserResponse:
        if request.user_id not in self.users:
            self.users[request.user_id] = self.users[str(self.add())]
        return await super().GetUser(request, context)


@pytest.fixture(scope="module")
async def pipelines(servers: Servers, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[Pipeline]]:
    templates = [await _migrated(servers, service) for service in ("story", "notification")]
    async with AsyncExitStack() as closing:
        address = await closing.enter_async_context(serving(Anybody()))
        stories = await closing.enter_async_context(serving_stories(StoryLinks()))
        server = await closing.enter_async_context(fork_server())
        made = []
        for number in range(PIPELINES):
            story_url, notification_url = [await _copied(servers, template, number) for template in templates]
            environment = Environment(
                folder=tmp_path_factory.mktemp(f"pipeline-{number}"),
                story_url=story_url,
                notification_url=notification_url,
                # Each pipeline has a Redis database of its own, so that it alone loses what a fault deletes.
                redis_url=f"{servers.redis_url.rpartition('/')[0]}/{number + 1}",
                smtp_port=servers.smtp_port,
                auth_target=address,
                story_target=stories,
            )
            story, notification = Database(story_url, pool=4), Database(notification_url, pool=4)
            closing.push_async_callback(story.close)
            closing.push_async_callback(notification.close)
            redis = await closing.enter_async_context(kit_redis.connect(environment.redis_url))
            made.append(Pipeline(environment, Stores(story, notification, redis, servers.mail_dir), server))
        yield made
    # A resource that was not closed is to be reported here, not in a test of another module.
    made.clear()
    gc.collect()


async def _migrated(servers: Servers, service: str) -> str:
    """A template built by the service's migrations: the service's own database may be in use, which forbids copying it."""
    name = f"pipeline_{service}"
    await _create(servers, name, make_url(servers.database_url(service)).username or "", "template1")
    url = _in(servers.database_url(service), name)
    await asyncio.to_thread(migrations.upgrade, f"services.{service}", url)
    return url


async def _copied(servers: Servers, template_url: str, number: int) -> str:
    url = make_url(template_url)
    name = f"{url.database}_{number}"
    await _create(servers, name, url.username or "", url.database or "")
    return _in(template_url, name)


async def _create(servers: Servers, name: str, owner: str, template: str) -> None:
    async with await psycopg.AsyncConnection.connect(servers.postgres_admin_url, autocommit=True) as connection:
        names = [sql.Identifier(each) for each in (name, owner, template)]
        # Another module of the same test run may have created it before.
        await connection.execute(sql.SQL("DROP DATABASE IF EXISTS {}").format(*names))
        await connection.execute(sql.SQL("CREATE DATABASE {} OWNER {} TEMPLATE {}").format(*names))


def _in(url: str, database: str) -> str:
    return make_url(url).set(database=database).render_as_string(hide_password=False)
