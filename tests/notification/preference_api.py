"""The API of preferences as clients call it, in JSON's terms."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest
from google.protobuf.json_format import MessageToDict, ParseDict
from google.rpc.error_details_pb2 import BadRequest
from grpc import StatusCode
from grpc.aio import AioRpcError
from storymesh.notification.v1 import preference_service_pb2 as pb
from storymesh.notification.v1.preference_service_pb2_grpc import PreferenceServiceStub

from kit.data.database import Database
from kit.runtime.clock import Clock, system_clock
from tests.identity import Issuer, bearer
from tests.notification.serving import serving_api
from tests.statuses import detail

if TYPE_CHECKING:
    from storymesh.notification.v1.preference_service_pb2_grpc import PreferenceServiceAsyncStub

OFF, AT_ONCE, DAILY = (f"NOTIFICATION_TIMING_{name}" for name in ("OFF", "AT_ONCE", "DAILY"))
UNTOUCHED = {
    "language": "",
    "time_zone": "UTC",
    "paused": False,
    "digest_time": "08:00",
    "digest_day": "DAY_OF_WEEK_MONDAY",
    "mails_per_day": 0,
}


def choice(timing: str = "", kind: str = "STORY_READY", channel: str = "EMAIL") -> dict[str, str]:
    chosen = {"kind": kind, "channel": f"NOTIFICATION_CHANNEL_{channel}"}
    return {**chosen, "timing": timing} if timing else chosen


@dataclass
class Api:
    db: Database
    stub: PreferenceServiceAsyncStub
    issuer: Issuer

    async def read(self, user: UUID) -> dict[str, Any]:
        request = pb.GetNotificationPreferencesRequest()
        answer = await self.stub.GetNotificationPreferences(request, metadata=bearer(self.issuer.token(user)))
        return _json(answer.preferences)

    async def change(self, user: UUID, **fields: Any) -> dict[str, Any]:
        request = ParseDict(fields, pb.UpdateNotificationPreferencesRequest())
        answer = await self.stub.UpdateNotificationPreferences(request, metadata=bearer(self.issuer.token(user)))
        return _json(answer.preferences)

    async def refused(self, user: UUID, **fields: Any) -> list[tuple[str, str]]:
        """The fields of a refused change, with the reasons."""
        with pytest.raises(AioRpcError) as raised:
            await self.change(user, **fields)
        assert raised.value.code() is StatusCode.INVALID_ARGUMENT
        request = detail(raised.value, BadRequest)
        return [(each.field, each.reason) for each in request.field_violations] if request else []


def _json(message: Any) -> dict[str, Any]:
    found: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return found


def settings_of(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name not in ("choices", "languages")}


def timings(found: dict[str, Any], kind: str = "STORY_READY") -> dict[str, str]:
    return {each["channel"][21:]: each["timing"][20:] for each in found["choices"] if each["kind"] == kind}


@asynccontextmanager
async def serving_preferences(db: Database, database_url: str, *, clock: Clock = system_clock) -> AsyncIterator[Api]:
    """Serve the API on the database."""
    async with serving_api(db, database_url, clock=clock) as served:
        yield Api(db, PreferenceServiceStub(served.channel), served.issuer)
