"""The upstreams of the edge in these tests: the contract's services and a limiter, with scripted answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import grpc
from foreign import rls_pb2, rls_pb2_grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from storymesh.auth.v1 import account_service_pb2 as account
from storymesh.auth.v1 import account_service_pb2_grpc as account_grpc
from storymesh.auth.v1 import directory_service_pb2 as directory
from storymesh.auth.v1 import directory_service_pb2_grpc as directory_grpc
from storymesh.auth.v1 import key_service_pb2 as key
from storymesh.auth.v1 import key_service_pb2_grpc as key_grpc
from storymesh.auth.v1 import registration_service_pb2 as registration
from storymesh.auth.v1 import registration_service_pb2_grpc as registration_grpc
from storymesh.auth.v1 import session_service_pb2 as session
from storymesh.auth.v1 import session_service_pb2_grpc as session_grpc
from storymesh.auth.v1 import user_pb2
from storymesh.social.v1 import profile_service_pb2 as profile
from storymesh.social.v1 import profile_service_pb2_grpc as profile_grpc
from storymesh.story.v1 import story_link_service_pb2 as link
from storymesh.story.v1 import story_link_service_pb2_grpc as link_grpc
from storymesh.story.v1 import story_pb2
from storymesh.story.v1 import story_service_pb2 as story
from storymesh.story.v1 import story_service_pb2_grpc as story_grpc

from tests.envoy.tokens import SigningKey

Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True)
class Call:
    """A call as received by a service."""

    method: str
    request: Any
    metadata: dict[str, str]
    deadline: float | None


@dataclass
class Calls:
    """The calls that any service has received, in order, and the scripted answers."""

    seen: list[Call] = field(default_factory=list)
    instead: dict[str, Callable[[Any, Context], Awaitable[Any]]] = field(default_factory=dict)

    @property
    def last(self) -> Call:
        return self.seen[-1]

    async def arrive(self, method: str, request: Any, context: Context) -> Any:
        metadata = {key: str(value) for key, value in context.invocation_metadata() or ()}
        self.seen.append(Call(method, request, metadata, context.time_remaining()))
        return await self.answer(method, request, context)

    async def answer(self, method: str, request: Any, context: Context) -> Any:
        """Return the scripted answer of the method, or None."""
        if method in self.instead:
            return await self.instead[method](request, context)
        return None


@dataclass
class AuthServices(
    account_grpc.AccountServiceServicer,
    directory_grpc.DirectoryServiceServicer,
    key_grpc.KeyServiceServicer,
    registration_grpc.RegistrationServiceServicer,
    session_grpc.SessionServiceServicer,
):
    calls: Calls
    signing_key: SigningKey

    async def GetAccount(self, request: account.GetAccountRequest, context: Context) -> account.GetAccountResponse:
        answer = await self.calls.arrive("GetAccount", request, context)
        return answer or account.GetAccountResponse(user=user_pb2.User(id="1"))

    async def UpdateAccount(
        self, request: account.UpdateAccountRequest, context: Context
    ) -> account.UpdateAccountResponse:
        await self.calls.arrive("UpdateAccount", request, context)
        return account.UpdateAccountResponse()

    async def GetUser(self, request: directory.GetUserRequest, context: Context) -> directory.GetUserResponse:
        await self.calls.arrive("GetUser", request, context)
        return directory.GetUserResponse()

    async def GetJwks(self, request: key.GetJwksRequest, context: Context) -> key.GetJwksResponse:
        # Not recorded, because the edge makes these calls by itself at any time.
        answer = await self.calls.answer("GetJwks", request, context)
        return answer or key.GetJwksResponse(keys=[key.JsonWebKey(**self.signing_key.jwk())])

    async def CreateRegistration(
        self, request: registration.CreateRegistrationRequest, context: Context
    ) -> registration.CreateRegistrationResponse:
        answer = await self.calls.arrive("CreateRegistration", request, context)
        return answer or registration.CreateRegistrationResponse(registration_id="r")

    async def ResendRegistrationCode(
        self, request: registration.ResendRegistrationCodeRequest, context: Context
    ) -> registration.ResendRegistrationCodeResponse:
        await self.calls.arrive("ResendRegistrationCode", request, context)
        return registration.ResendRegistrationCodeResponse()

    async def CompleteRegistration(
        self, request: registration.CompleteRegistrationRequest, context: Context
    ) -> registration.CompleteRegistrationResponse:
        answer = await self.calls.arrive("CompleteRegistration", request, context)
        return answer or registration.CompleteRegistrationResponse()

    async def CreateSession(
        self, request: session.CreateSessionRequest, context: Context
    ) -> session.CreateSessionResponse:
        answer = await self.calls.arrive("CreateSession", request, context)
        return answer or session.CreateSessionResponse()

    async def RefreshSession(
        self, request: session.RefreshSessionRequest, context: Context
    ) -> session.RefreshSessionResponse:
        await self.calls.arrive("RefreshSession", request, context)
        return session.RefreshSessionResponse()

    async def Logout(self, request: session.LogoutRequest, context: Context) -> session.LogoutResponse:
        await self.calls.arrive("Logout", request, context)
        return session.LogoutResponse()


@dataclass
class StoryServices(story_grpc.StoryServiceServicer, link_grpc.StoryLinkServiceServicer):
    """Streams one chunk per item put into `chunks`, and ends at None."""

    calls: Calls
    chunks: asyncio.Queue[str | None] = field(default_factory=asyncio.Queue)

    async def CreateStory(self, request: story.CreateStoryRequest, context: Context) -> story.CreateStoryResponse:
        answer = await self.calls.arrive("CreateStory", request, context)
        return answer or story.CreateStoryResponse(story=story_pb2.Story(id="s"))

    async def GetStory(self, request: story.GetStoryRequest, context: Context) -> story.GetStoryResponse:
        answer = await self.calls.arrive("GetStory", request, context)
        return answer or story.GetStoryResponse(story=story_pb2.Story(id=request.story_id))

    async def ListStories(self, request: story.ListStoriesRequest, context: Context) -> story.ListStoriesResponse:
        answer = await self.calls.arrive("ListStories", request, context)
        return answer or story.ListStoriesResponse()

    async def GetStoryPage(self, request: link.GetStoryPageRequest, context: Context) -> link.GetStoryPageResponse:
        answer = await self.calls.arrive("GetStoryPage", request, context)
        return answer or link.GetStoryPageResponse()

    async def WatchStory(
        self, request: story.WatchStoryRequest, context: Context
    ) -> AsyncIterator[story.WatchStoryResponse]:
        await self.calls.arrive("WatchStory", request, context)
        # A local variable, because the next test replaces the attribute by a new queue.
        chunks = self.chunks
        while (text := await chunks.get()) is not None:
            yield story.WatchStoryResponse(resume_token=text, chunk=story.WatchStoryResponse.Chunk(text=text))


@dataclass
class SocialServices(profile_grpc.ProfileServiceServicer):
    calls: Calls

    async def GetAvatar(self, request: profile.GetAvatarRequest, context: Context) -> profile.GetAvatarResponse:
        answer = await self.calls.arrive("GetAvatar", request, context)
        return answer or profile.GetAvatarResponse()


@dataclass
class Limiter(rls_pb2_grpc.RateLimitServiceServicer):
    """A limiter that records its requests; `verdict` gives the answer, and may raise or hang instead."""

    verdict: Callable[[Context], Awaitable[rls_pb2.RateLimitResponse]]
    asked: list[rls_pb2.RateLimitRequest] = field(default_factory=list)

    async def ShouldRateLimit(self, request: rls_pb2.RateLimitRequest, context: Context) -> rls_pb2.RateLimitResponse:
        self.asked.append(request)
        return await self.verdict(context)

    @property
    def descriptors(self) -> list[list[tuple[str, str]]]:
        """Return the descriptors of the latest request."""
        return [[(entry.key, entry.value) for entry in each.entries] for each in self.asked[-1].descriptors]


class Healthy(health_pb2_grpc.HealthServicer):
    async def Check(self, request: health_pb2.HealthCheckRequest, context: Context) -> health_pb2.HealthCheckResponse:
        return health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
