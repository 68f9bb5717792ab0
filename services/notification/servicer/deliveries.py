"""storymesh.notification.v1.DeliveryService."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from grpc.aio import ServicerContext
from storymesh.notification.v1 import delivery_pb2, delivery_service_pb2_grpc
from storymesh.notification.v1 import delivery_service_pb2 as pb

from kit.identity.caller import caller_of
from kit.rpc.timestamps import set_time

from ..model.deliveries import Channel, DeliveryState
from ..model.records import DeliveryQuery, DeliveryRecord, Explanation, FinalDecision, StepRecord
from ..model.suppressions import Suppression, SuppressionReason, SuppressionSource
from ..operations.deliveries import Deliveries
from ..operations.suppressions import Suppressions

Context = ServicerContext[Any, Any]

STATES = {
    DeliveryState.QUEUED: delivery_pb2.DELIVERY_STATE_QUEUED,
    DeliveryState.SENDING: delivery_pb2.DELIVERY_STATE_SENDING,
    DeliveryState.SENT: delivery_pb2.DELIVERY_STATE_SENT,
    DeliveryState.UNKNOWN: delivery_pb2.DELIVERY_STATE_UNKNOWN,
    DeliveryState.FAILED: delivery_pb2.DELIVERY_STATE_FAILED,
    DeliveryState.SUPPRESSED: delivery_pb2.DELIVERY_STATE_SUPPRESSED,
    DeliveryState.EXPIRED: delivery_pb2.DELIVERY_STATE_EXPIRED,
}
STATE_OF = {number: state for state, number in STATES.items()}

_CHANNELS = {
    Channel.EMAIL: delivery_pb2.DELIVERY_CHANNEL_EMAIL,
    Channel.IN_APP: delivery_pb2.DELIVERY_CHANNEL_IN_APP,
    Channel.WEBHOOK: delivery_pb2.DELIVERY_CHANNEL_WEBHOOK,
    Channel.SYSTEM_WEBHOOK: delivery_pb2.DELIVERY_CHANNEL_SYSTEM_WEBHOOK,
}

_REASONS = {
    SuppressionReason.NO_ADDRESS: delivery_pb2.SUPPRESSION_REASON_NO_ADDRESS,
    SuppressionReason.MAILBOX: delivery_pb2.SUPPRESSION_REASON_MAILBOX,
    SuppressionReason.COMPLAINT: delivery_pb2.SUPPRESSION_REASON_COMPLAINT,
}

_SOURCES = {
    SuppressionSource.ANSWER: delivery_pb2.SUPPRESSION_SOURCE_ANSWER,
    SuppressionSource.REPORT: delivery_pb2.SUPPRESSION_SOURCE_REPORT,
    SuppressionSource.PROVIDER: delivery_pb2.SUPPRESSION_SOURCE_PROVIDER,
}


class DeliveryServicer(delivery_service_pb2_grpc.DeliveryServiceServicer):
    """Implements storymesh.notification.v1.DeliveryService."""

    def __init__(self, deliveries: Deliveries, suppressions: Suppressions) -> None:
        self._deliveries = deliveries
        self._suppressions = suppressions

    async def ListDeliveries(self, request: pb.ListDeliveriesRequest, context: Context) -> pb.ListDeliveriesResponse:
        query = DeliveryQuery(
            user_id=_uuid(request.user_id),
            event_id=_uuid(request.event_id),
            state=STATE_OF.get(request.state),
            since=_time(request, "start_time"),
            before=_time(request, "end_time"),
            target=request.target,
        )
        page = await self._deliveries.list(query, request.page_size, request.page_token)
        return pb.ListDeliveriesResponse(deliveries=map(_delivery, page.items), next_page_token=page.next_token)

    async def ExplainNotification(
        self, request: pb.ExplainNotificationRequest, context: Context
    ) -> pb.ExplainNotificationResponse:
        query = DeliveryQuery(
            user_id=_uuid(request.user_id),
            event_id=_uuid(request.event_id),
            since=_time(request, "start_time"),
            before=_time(request, "end_time"),
        )
        notices, following = await self._deliveries.explain(query, request.page_size, request.page_token)
        return pb.ExplainNotificationResponse(notices=map(_explanation, notices), next_page_token=following)

    async def ResendDelivery(self, request: pb.ResendDeliveryRequest, context: Context) -> pb.ResendDeliveryResponse:
        resent = await self._deliveries.resend(caller_of(context), UUID(request.delivery_id), request.reason)
        return pb.ResendDeliveryResponse(delivery=_delivery(resent))

    async def SettleDelivery(self, request: pb.SettleDeliveryRequest, context: Context) -> pb.SettleDeliveryResponse:
        settled = await self._deliveries.settle(
            caller_of(context), UUID(request.delivery_id), STATE_OF[request.state], request.reason
        )
        return pb.SettleDeliveryResponse(delivery=_delivery(settled))

    async def ListSuppressions(
        self, request: pb.ListSuppressionsRequest, context: Context
    ) -> pb.ListSuppressionsResponse:
        page = await self._suppressions.list(_uuid(request.user_id), request.page_size, request.page_token)
        return pb.ListSuppressionsResponse(suppressions=map(_suppression, page.items), next_page_token=page.next_token)

    async def FindSuppression(self, request: pb.FindSuppressionRequest, context: Context) -> pb.FindSuppressionResponse:
        found = await self._suppressions.find(request.email)
        return pb.FindSuppressionResponse(suppression=_suppression(found))

    async def DeleteSuppression(
        self, request: pb.DeleteSuppressionRequest, context: Context
    ) -> pb.DeleteSuppressionResponse:
        await self._suppressions.lift(caller_of(context), UUID(request.suppression_id))
        return pb.DeleteSuppressionResponse()


def _delivery(record: DeliveryRecord) -> delivery_pb2.Delivery:
    message = delivery_pb2.Delivery(
        id=str(record.id),
        event_id=str(record.event_id),
        channel=_channel(record.channel),
        target=record.target,
        user_id=str(record.user_id or ""),
        kind=record.kind,
        state=STATES[record.state],
        reason=record.reason,
        answer=record.answer,
        attempts=record.attempts,
    )
    set_time(message.create_time, record.created_at)
    set_time(message.change_time, record.changed_at)
    set_time(message.due_time, record.due_at if record.unfinished else None)
    set_time(message.expire_time, record.expires_at)
    return message


def _explanation(explanation: Explanation) -> delivery_pb2.NoticeExplanation:
    return delivery_pb2.NoticeExplanation(
        event_id=str(explanation.event_id),
        user_id=str(explanation.user_id or ""),
        steps=map(_step, explanation.steps),
        final_decisions=map(_final_decision, explanation.final),
        deliveries=map(_delivery, explanation.deliveries),
    )


def _step(step: StepRecord) -> delivery_pb2.DeliveryStep:
    message = delivery_pb2.DeliveryStep(
        channel=_channel(step.channel), target=step.target, decision=step.decision, detail=step.detail
    )
    set_time(message.occur_time, step.occurred_at)
    return message


def _final_decision(final: FinalDecision) -> delivery_pb2.FinalDecision:
    message = delivery_pb2.FinalDecision(
        channel=_channel(final.channel), target=final.target, decision=final.decision, detail=final.detail
    )
    set_time(message.decide_time, final.decided_at)
    return message


def _suppression(suppression: Suppression) -> delivery_pb2.Suppression:
    message = delivery_pb2.Suppression(
        id=str(suppression.id),
        user_id=str(suppression.user_id or ""),
        event_id=str(suppression.event_id),
        reason=_REASONS[suppression.reason],
        code=suppression.code,
        source=_SOURCES[suppression.source],
    )
    set_time(message.create_time, suppression.created_at)
    return message


def _channel(name: str) -> delivery_pb2.DeliveryChannel.ValueType:
    """The channel; unspecified for one that only a later version knows."""
    return _CHANNELS[Channel(name)] if name in _CHANNELS else delivery_pb2.DELIVERY_CHANNEL_UNSPECIFIED


def _uuid(text: str) -> UUID | None:
    return UUID(text) if text else None


def _time(request: pb.ListDeliveriesRequest | pb.ExplainNotificationRequest, field: str) -> datetime | None:
    """A time field in UTC; None if it is unset."""
    if not request.HasField(field):  # type: ignore[arg-type]  # both messages have the names that are passed
        return None
    moment: datetime = getattr(request, field).ToDatetime(UTC)
    return moment
