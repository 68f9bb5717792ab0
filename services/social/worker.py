"""The inboxes of the social service."""

from __future__ import annotations

from collections.abc import Mapping

from storymesh.events.v1 import auth_events_pb2, file_events_pb2
from storymesh.events.v1 import social_events_pb2 as events

from kit.events.envelope import Event, uuid_in
from kit.events.handlers import Handler
from kit.events.inbox import Inbox
from kit.rpc.resources import Resources

from .config import SocialWorkerSettings
from .operations import WorkerOperations

_AT_A_TIME = 4
_ERASED_AT_A_TIME = 2


def social_inbox(settings: SocialWorkerSettings, resources: Resources, ops: WorkerOperations) -> Inbox:
    """The inbox of UserRegistered, which makes profiles, and of FileErased, which takes avatars out of them."""

    async def make(event: Event) -> None:
        # No row in processed_events: whoever has or had a profile gets none by a repeated event.
        await ops.registering.make(uuid_in(event.decode(auth_events_pb2.UserRegistered), "user_id"))

    async def lose(event: Event) -> None:
        await ops.lost_avatars.take(uuid_in(event.decode(file_events_pb2.FileErased), "file_id"))

    handlers = {
        auth_events_pb2.UserRegistered.DESCRIPTOR.full_name: make,
        file_events_pb2.FileErased.DESCRIPTOR.full_name: lose,
    }
    return _inbox(settings, resources, ops, "social", handlers, concurrency=_AT_A_TIME)


def accounts_inbox(settings: SocialWorkerSettings, resources: Resources, ops: WorkerOperations) -> Inbox:
    """The inbox of erasures, apart from `social_inbox` so that a new profile does not wait for one."""

    async def erase(event: Event) -> None:
        await ops.erasing.erase(uuid_in(event.decode(auth_events_pb2.UserDeleted), "user_id"))

    async def erase_profile(event: Event) -> None:
        # No row in processed_events here either: only a profile that is marked for it is erased.
        await ops.erasing.erase_profile(uuid_in(event.decode(events.ProfileDeleted), "user_id"))

    handlers = {
        auth_events_pb2.UserDeleted.DESCRIPTOR.full_name: erase,
        events.ProfileDeleted.DESCRIPTOR.full_name: erase_profile,
    }
    return _inbox(settings, resources, ops, "social-accounts", handlers, concurrency=_ERASED_AT_A_TIME)


def _inbox(
    settings: SocialWorkerSettings,
    resources: Resources,
    ops: WorkerOperations,
    name: str,
    handlers: Mapping[str, Handler],
    *,
    concurrency: int,
) -> Inbox:
    return Inbox(
        resources.db,
        resources.redis,
        name,
        handlers,
        lease_seconds=settings.lease_seconds,
        concurrency=concurrency,
        max_failures=settings.max_failures,
        forgotten=ops.erasing.forgotten,
    )
