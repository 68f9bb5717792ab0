"""What a process of a service stands on: database, Redis, channels to other services, and what tells who calls.

Each is opened from the settings when it is first asked for, so a process holds only what it uses. All are closed together, the last
opened first.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from functools import cached_property
from typing import TYPE_CHECKING, Self

from grpc.aio import Channel
from redis.asyncio import Redis

from kit.data import redis as kit_redis
from kit.data.blocking_redis import BlockingRedis
from kit.data.database import Database
from kit.identity.jwks import fetch_from
from kit.identity.revocation_feed import RevocationFollower
from kit.identity.revocations import Revocations
from kit.identity.tokens import AccessTokens, KeySet, ServiceTokens
from kit.runtime.clock import Clock, system_clock
from kit.runtime.health import Check
from kit.runtime.settings import DatabaseSettings, ObjectStoreSettings, ServiceSettings

from . import channels
from .server import Background, Server

if TYPE_CHECKING:
    from kit.data.objects import Objects

_ISSUER = "auth"
"""The service that issues access tokens and tells which are revoked."""


class Resources:
    """To be entered before use; leaving closes what was opened.

    Tests give what they share: a database, a Redis, a bucket or a list of revocations that is given is used, and left open.
    """

    def __init__(
        self,
        service: str,
        settings: ServiceSettings,
        *,
        clock: Clock = system_clock,
        random: Callable[[int], bytes] = secrets.token_bytes,
        db: Database | None = None,
        redis: Redis | None = None,
        objects: Objects | None = None,
        revocations: Revocations | None = None,
    ) -> None:
        self._settings = settings
        self._given_db = db
        self._given_redis = redis
        self._given_objects = objects
        self._channels: dict[str, Channel] = {}
        self._watches: list[Background] = []
        self._closing = AsyncExitStack()
        self.service = service
        self.clock = clock
        self.random = random
        """Makes as many random bytes as it is asked for."""
        self.revocations = Revocations(clock) if revocations is None else revocations
        """Unknown until a feed has told them."""
        self.service_tokens = ServiceTokens(settings.mesh_key.get_secret_value(), service=service, clock=clock)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._closing.aclose()

    def when_closing(self, close: Callable[[], object]) -> None:
        """Call this on leaving, before what is open by then is closed."""
        self._closing.callback(close)

    @property
    def database_url(self) -> str:
        """For connections that listen. Raises TypeError when the settings name no database."""
        return self._database_settings.database_url.get_secret_value()

    @cached_property
    def db(self) -> Database:
        """The service's database, with as many connections as the settings say. Raises TypeError when they name none."""
        return self.database(pool=self._database_settings.database_pool)

    def database(self, *, pool: int) -> Database:
        """Connections apart from those of `db`, which a flood of calls may occupy. Raises TypeError like `db`."""
        if self._given_db:
            return self._given_db
        opened = Database(self.database_url, pool=pool)
        self._closing.push_async_callback(opened.close)
        self._watches.append(opened.watch)
        return opened

    @cached_property
    def redis(self) -> Redis:
        if self._given_redis:
            return self._given_redis
        opened = kit_redis.connect(self._settings.redis_url.get_secret_value())
        self._closing.push_async_callback(opened.aclose)
        self._watches.append(kit_redis.liveness(opened).watch)
        return opened

    def blocking_redis(self) -> BlockingRedis:
        """A connection to the same Redis for a thread that may block."""
        opened = BlockingRedis(self.redis)
        self.when_closing(opened.close)
        return opened

    @cached_property
    def objects(self) -> Objects:
        """The service's bucket. Raises TypeError when the settings name none."""
        if self._given_objects:
            return self._given_objects
        if not isinstance(self._settings, ObjectStoreSettings):
            raise TypeError(f"the settings of {self.service} name no bucket")
        # Only here, because it loads the S3 client, which most services never need.
        from kit.data import objects

        opened = objects.Objects(objects.store_of(self._settings), clock=self.clock)
        self._closing.push_async_callback(opened.close)
        return opened

    def channel(self, callee: str) -> Channel:
        """The channel to another service, at the address of the setting `<callee>_target`. Raises AttributeError without one."""
        if callee not in self._channels:
            target: str = getattr(self._settings, f"{callee}_target")
            self._channels[callee] = channels.connect(target, callee, self.service_tokens)
            self._closing.push_async_callback(self._channels[callee].close)
        return self._channels[callee]

    @cached_property
    def access_tokens(self) -> AccessTokens:
        """Verifies by auth's keys and by `revocations`."""
        return self.access_tokens_of(KeySet(fetch_from(self.channel(_ISSUER)), self.clock))

    def access_tokens_of(self, keys: KeySet) -> AccessTokens:
        """Verifies by these keys and by `revocations`."""
        issuer, audience = self._settings.token_issuer, self._settings.token_audience
        return AccessTokens(keys, self.revocations, issuer=issuer, audience=audience, clock=self.clock)

    @cached_property
    def revocation_feed(self) -> RevocationFollower:
        """Keeps `revocations` as auth tells them, in the background of a server."""
        return RevocationFollower(self.channel(_ISSUER), self.revocations)

    @property
    def _database_settings(self) -> DatabaseSettings:
        if not isinstance(self._settings, DatabaseSettings):
            raise TypeError(f"the settings of {self.service} name no database")
        return self._settings

    def api(
        self, *, required: Mapping[str, Check] | None = None, optional: Mapping[str, Check] | None = None
    ) -> Server:
        """A server for people and services, ready once database and revocations are known; it watches what was opened so far."""
        server = self._server(
            {"revocation_snapshot": self.revocations.check_known, **(required or {})},
            {"revocations": self.revocations.check_fresh, **(optional or {})},
        )
        self.revocations.show_in(server.metrics)
        return server

    def worker(self, *, optional: Mapping[str, Check] | None = None) -> Server:
        """A server without methods, for a process that takes or publishes events: ready while database and Redis answer."""
        return self._server({"redis": self.redis.ping}, optional or {})

    def _server(self, required: Mapping[str, Check], optional: Mapping[str, Check]) -> Server:
        if isinstance(self._settings, DatabaseSettings):
            required = {"postgres": self.db.check, **required}
        server = Server(self._settings, required=required, optional=optional)
        for watch in self._watches:
            server.background(watch)
        return server
