"""The service as administrators call it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import pytest
from storymesh.notification.v1 import delivery_pb2
from storymesh.notification.v1 import delivery_service_pb2 as pb
from storymesh.notification.v1.delivery_service_pb2_grpc import DeliveryServiceStub
from uuid_utils.compat import uuid7

from kit.events.envelope import Event
from services.notification import store
from services.notification.model.suppressions import AddressDigests, Suppression, SuppressionReason, SuppressionSource
from tests.identity import Issuer, bearer
from tests.notification.keys import ADDRESS_KEY
from tests.notification.serving import serving_api

if TYPE_CHECKING:
    from storymesh.notification.v1.delivery_service_pb2_grpc import DeliveryServiceAsyncStub

    from tests.notification.conftest import MailWorld

ADMIN = uuid4()


class Desk:
    """The service as administrators call it."""

    def __init__(self, stub: DeliveryServiceAsyncStub, issuer: Issuer) -> None:
        self.stub = stub
        self.auth = bearer(issuer.token(ADMIN, "ADMIN"))
        self.user_auth = bearer(issuer.token(uuid4()))

    async def deliveries(self, **fields: Any) -> list[delivery_pb2.Delivery]:
        """All pages of a list."""
        found: list[delivery_pb2.Delivery] = []
        token = ""
        while True:
            request = pb.ListDeliveriesRequest(**fields, page_token=token)
            answer = await self.stub.ListDeliveries(request, metadata=self.auth)
            found += answer.deliveries
            token = answer.next_page_token
            if not token:
                return found

    async def explain(self, **fields: Any) -> list[delivery_pb2.NoticeExplanation]:
        found: list[delivery_pb2.NoticeExplanation] = []
        token = ""
        while True:
            request = pb.ExplainNotificationRequest(**fields, page_token=token)
            answer = await self.stub.ExplainNotification(request, metadata=self.auth)
            found += answer.notices
            token = answer.next_page_token
            if not token:
                return found

    async def explain_event(self, about: Event) -> delivery_pb2.NoticeExplanation:
        (notice,) = await self.explain(event_id=str(about.id))
        return notice

    async def resend(self, delivery_id: str) -> delivery_pb2.Delivery:
        request = pb.ResendDeliveryRequest(delivery_id=delivery_id, reason="the server has no trace of it")
        return (await self.stub.ResendDelivery(request, metadata=self.auth)).delivery

    async def settle(self, delivery_id: str, state: delivery_pb2.DeliveryState.ValueType) -> delivery_pb2.Delivery:
        request = pb.SettleDeliveryRequest(delivery_id=delivery_id, state=state, reason="seen in the server's log")
        return (await self.stub.SettleDelivery(request, metadata=self.auth)).delivery

    async def suppressions(self, **fields: Any) -> list[delivery_pb2.Suppression]:
        request = pb.ListSuppressionsRequest(**fields)
        return list((await self.stub.ListSuppressions(request, metadata=self.auth)).suppressions)


@pytest.fixture
async def desk(world: MailWorld) -> AsyncIterator[Desk]:
    async with serving_api(world.db, world.database_url) as served:
        yield Desk(DeliveryServiceStub(served.channel), served.issuer)


def shown(notice: delivery_pb2.NoticeExplanation) -> list[tuple[str, str, str]]:
    """The final decisions of a notice."""
    name = delivery_pb2.DeliveryChannel.Name
    return [
        (name(each.channel).removeprefix("DELIVERY_CHANNEL_"), each.decision, each.detail)
        for each in notice.final_decisions
    ]


async def suppress(world: MailWorld, address: str, user: UUID | None, event_id: UUID | None = None) -> Suppression:
    """Suppress an address."""
    suppression = Suppression(
        id=uuid7(),
        address_digest=AddressDigests(ADDRESS_KEY).of(address),
        user_id=user,
        event_id=event_id or uuid4(),
        reason=SuppressionReason.NO_ADDRESS,
        code="5.1.1",
        source=SuppressionSource.PROVIDER,
        created_at=datetime.now(UTC),
    )
    async with world.db.transaction() as tx:
        await store.suppressions.add(tx, suppression)
    return suppression
