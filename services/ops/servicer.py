"""storymesh.ops.v1.RateLimitService, as the edge asks for it: each call goes on to the limiter, in the administrator's name."""

from __future__ import annotations

from typing import Any, TypeVar

from google.protobuf.message import Message
from grpc.aio import ServicerContext
from storymesh.ops.v1 import rate_limit_service_pb2 as pb
from storymesh.ops.v1.rate_limit_service_pb2_grpc import RateLimitServiceServicer

from kit.events.dead_letter_model import Administrator
from kit.identity.access import bearer_token
from kit.identity.caller import caller_of, current_metadata

from .peers import RateLimits

Context = ServicerContext[Any, Any]

M = TypeVar("M", bound=Message)


class RateLimitServicer(RateLimitServiceServicer):
    """Passes requests and answers on as they are."""

    def __init__(self, limits: RateLimits) -> None:
        self._limits = limits

    async def ExplainRateLimit(
        self, request: pb.ExplainRateLimitRequest, context: Context
    ) -> pb.ExplainRateLimitResponse:
        return await self._passed_on("ExplainRateLimit", request, context, pb.ExplainRateLimitResponse)

    async def InspectRateLimit(
        self, request: pb.InspectRateLimitRequest, context: Context
    ) -> pb.InspectRateLimitResponse:
        return await self._passed_on("InspectRateLimit", request, context, pb.InspectRateLimitResponse)

    async def ResetRateLimit(self, request: pb.ResetRateLimitRequest, context: Context) -> pb.ResetRateLimitResponse:
        return await self._passed_on("ResetRateLimit", request, context, pb.ResetRateLimitResponse)

    async def GrantRateLimit(self, request: pb.GrantRateLimitRequest, context: Context) -> pb.GrantRateLimitResponse:
        return await self._passed_on("GrantRateLimit", request, context, pb.GrantRateLimitResponse)

    async def BanCaller(self, request: pb.BanCallerRequest, context: Context) -> pb.BanCallerResponse:
        return await self._passed_on("BanCaller", request, context, pb.BanCallerResponse)

    async def ListRateLimitOverrides(
        self, request: pb.ListRateLimitOverridesRequest, context: Context
    ) -> pb.ListRateLimitOverridesResponse:
        return await self._passed_on("ListRateLimitOverrides", request, context, pb.ListRateLimitOverridesResponse)

    async def LiftRateLimitOverride(
        self, request: pb.LiftRateLimitOverrideRequest, context: Context
    ) -> pb.LiftRateLimitOverrideResponse:
        return await self._passed_on("LiftRateLimitOverride", request, context, pb.LiftRateLimitOverrideResponse)

    async def ListRateLimitRules(
        self, request: pb.ListRateLimitRulesRequest, context: Context
    ) -> pb.ListRateLimitRulesResponse:
        return await self._passed_on("ListRateLimitRules", request, context, pb.ListRateLimitRulesResponse)

    async def ListRateLimitOffenders(
        self, request: pb.ListRateLimitOffendersRequest, context: Context
    ) -> pb.ListRateLimitOffendersResponse:
        return await self._passed_on("ListRateLimitOffenders", request, context, pb.ListRateLimitOffendersResponse)

    async def StartRateLimitRecording(
        self, request: pb.StartRateLimitRecordingRequest, context: Context
    ) -> pb.StartRateLimitRecordingResponse:
        return await self._passed_on("StartRateLimitRecording", request, context, pb.StartRateLimitRecordingResponse)

    async def StopRateLimitRecording(
        self, request: pb.StopRateLimitRecordingRequest, context: Context
    ) -> pb.StopRateLimitRecordingResponse:
        return await self._passed_on("StopRateLimitRecording", request, context, pb.StopRateLimitRecordingResponse)

    async def TryRateLimitRules(
        self, request: pb.TryRateLimitRulesRequest, context: Context
    ) -> pb.TryRateLimitRulesResponse:
        return await self._passed_on("TryRateLimitRules", request, context, pb.TryRateLimitRulesResponse)

    async def ListRateLimitChanges(
        self, request: pb.ListRateLimitChangesRequest, context: Context
    ) -> pb.ListRateLimitChangesResponse:
        return await self._passed_on("ListRateLimitChanges", request, context, pb.ListRateLimitChangesResponse)

    async def _passed_on(self, method: str, request: Message, context: Context, answer: type[M]) -> M:
        administrator = Administrator(caller_of(context).user_id, bearer_token(current_metadata.get()))
        return await self._limits.call(administrator, method, request, answer)
