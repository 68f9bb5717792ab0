"""storymesh.notification.v1.BounceService."""

from __future__ import annotations

from typing import Any

from grpc.aio import ServicerContext
from storymesh.notification.v1 import bounce_service_pb2 as pb
from storymesh.notification.v1 import bounce_service_pb2_grpc

from kit.identity.caller import current_metadata

from ..operations.bounces import ProviderBounces, SignedCall, Taken

Context = ServicerContext[Any, Any]


class BounceServicer(bounce_service_pb2_grpc.BounceServiceServicer):
    """Implements storymesh.notification.v1.BounceService."""

    def __init__(self, bounces: ProviderBounces) -> None:
        self._bounces = bounces

    async def ReportBounces(self, request: pb.ReportBouncesRequest, context: Context) -> pb.ReportBouncesResponse:
        headers = dict(current_metadata.get())
        taken = await self._bounces.take(
            SignedCall(
                id=str(headers.get("webhook-id", "")),
                timestamp=str(headers.get("webhook-timestamp", "")),
                signatures=str(headers.get("webhook-signature", "")),
                media_type=request.report.content_type,
                body=request.report.data,
            )
        )
        recorded = sum(each is Taken.RECORDED for each in taken)
        return pb.ReportBouncesResponse(recorded=recorded, ignored=len(taken) - recorded)
