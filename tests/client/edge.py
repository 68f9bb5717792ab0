"""A small edge with the contracts' sessions, accounts, stories and keys, and with faults that tests inject."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import grpc
from google.protobuf import any_pb2, duration_pb2
from google.rpc import error_details_pb2, status_pb2
from grpc import StatusCode
from grpc_status import rpc_status
from storymesh.auth.v1 import account_service_pb2, key_service_pb2, session_pb2, session_service_pb2, tokens_pb2
from storymesh.auth.v1.account_service_pb2_grpc import AccountServiceServicer
from storymesh.auth.v1.key_service_pb2_grpc import KeyServiceServicer
from storymesh.auth.v1.session_service_pb2_grpc import SessionServiceServicer
from storymesh.auth.v1.user_pb2 import ROLE_USER, User
from storymesh.story.v1 import story_pb2, story_service_pb2
from storymesh.story.v1.story_service_pb2_grpc import StoryServiceServicer

Context = grpc.aio.ServicerContext[Any, Any]

LOGIN, PASSWORD = "ada@example.org", "correct horse battery staple"
CHALLENGE, CODE = "0197a0de-0000-7000-8000-000000000000", "1728 0264"
KID = "k" * 43


@dataclass
class Edge:
    """The state of the edge: one account, whose session has generations of tokens. Tests change it between calls."""

    access_seconds: float = 600.0
    generation: int = 0
    live: bool = False
    administrator: bool = True
    revoked_access: set[str] = field(default_factory=set)
    faults: list[StatusCode] = field(default_factory=list)
    """Statuses that the next calls of GetAccount and UpdateAccount get instead of an answer."""
    lost_refreshes: int = 0
    """Number of next refreshes that are executed but whose answers are lost."""
    refreshing: asyncio.Event = field(default_factory=asyncio.Event)
    """Set while refreshes are answered; while it is cleared, they wait."""
    refreshes: list[str] = field(default_factory=list)
    calls: list[str] = field(default_factory=list)
    authorizations: list[str] = field(default_factory=list)
    device_tokens: list[str] = field(default_factory=list)
    deadlines: list[float] = field(default_factory=list)
    sessions: list[session_pb2.Session] = field(default_factory=list)
    story: list[story_service_pb2.WatchStoryResponse | StatusCode] = field(default_factory=list)
    """Messages of the next watches, in order; a status ends a watch."""
    resumed: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.refreshing.set()

    def issue(self) -> tokens_pb2.Tokens:
        tokens = tokens_pb2.Tokens(access_token=f"access-{self.generation}", refresh_token=f"refresh-{self.generation}")
        now = datetime.now(UTC)
        tokens.access_token_expire_time.FromDatetime(now + timedelta(seconds=self.access_seconds))
        tokens.refresh_token_expire_time.FromDatetime(now + timedelta(days=30))
        return tokens

    async def admit(self, context: Context, name: str) -> None:
        authorization = str(dict(context.invocation_metadata() or ()).get("authorization", ""))
        self.calls.append(name)
        self.authorizations.append(authorization)
        self.deadlines.append(context.time_remaining())
        if not self.live:
            await refuse(context, StatusCode.UNAUTHENTICATED, "SESSION_REVOKED")
        token = authorization.removeprefix("Bearer ")
        if token != f"access-{self.generation}" or token in self.revoked_access:
            await refuse(context, StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED")


async def refuse(context: Context, code: StatusCode, reason: str, *, field: str = "", retry_seconds: int = 0) -> None:
    """End the call with an error in kit's form."""
    details: list[Any] = [error_details_pb2.ErrorInfo(reason=reason, domain="storymesh")]
    if field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description="is not good")
        details.append(error_details_pb2.BadRequest(field_violations=[violation]))
    if retry_seconds:
        details.append(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=retry_seconds)))
    number: int = code.value[0]
    status = status_pb2.Status(code=number, message=f"refused: {reason.lower()}")
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    await context.abort_with_status(rpc_status.to_status(status))


class Sessions(SessionServiceServicer):
    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def CreateSession(
        self, request: session_service_pb2.CreateSessionRequest, context: Context
    ) -> session_service_pb2.CreateSessionResponse:
        self._edge.calls.append("CreateSession")
        self._edge.device_tokens.append(request.device_token)
        if request.password == "too often":
            await refuse(context, StatusCode.RESOURCE_EXHAUSTED, "TOO_MANY_SIGN_INS", retry_seconds=7)
        if request.login != LOGIN or request.password != PASSWORD:
            await refuse(context, StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS")
        self._edge.live = True
        self._edge.generation += 1
        return session_service_pb2.CreateSessionResponse(
            user=user(), tokens=self._edge.issue(), device_token="known-device"
        )

    async def StartSessionCode(
        self, request: session_service_pb2.StartSessionCodeRequest, context: Context
    ) -> session_service_pb2.StartSessionCodeResponse:
        self._edge.device_tokens.append(request.device_token)
        return session_service_pb2.StartSessionCodeResponse(challenge_id=CHALLENGE)

    async def CompleteSessionCode(
        self, request: session_service_pb2.CompleteSessionCodeRequest, context: Context
    ) -> session_service_pb2.CompleteSessionCodeResponse:
        self._edge.device_tokens.append(request.device_token)
        if (request.challenge_id, request.code) != (CHALLENGE, CODE):
            await refuse(context, StatusCode.UNAUTHENTICATED, "CODE_INVALID")
        self._edge.live = True
        self._edge.generation += 1
        return session_service_pb2.CompleteSessionCodeResponse(
            user=user(), tokens=self._edge.issue(), device_token="known-device"
        )

    async def RefreshSession(
        self, request: session_service_pb2.RefreshSessionRequest, context: Context
    ) -> session_service_pb2.RefreshSessionResponse:
        edge = self._edge
        edge.refreshes.append(request.refresh_token)
        await edge.refreshing.wait()
        if not edge.live:
            await refuse(context, StatusCode.UNAUTHENTICATED, "SESSION_REVOKED")
        # As in auth's grace period, the token before the newest gets the same successor again.
        if request.refresh_token == f"refresh-{edge.generation}":
            edge.generation += 1
        elif request.refresh_token != f"refresh-{edge.generation - 1}":
            edge.live = False
            await refuse(context, StatusCode.UNAUTHENTICATED, "REFRESH_REUSED")
        if edge.lost_refreshes:
            edge.lost_refreshes -= 1
            await context.abort(StatusCode.UNAVAILABLE, "connection lost")
        return session_service_pb2.RefreshSessionResponse(tokens=edge.issue())

    async def Logout(
        self, request: session_service_pb2.LogoutRequest, context: Context
    ) -> session_service_pb2.LogoutResponse:
        await self._edge.admit(context, "Logout")
        if self._edge.faults:
            await context.abort(self._edge.faults.pop(0), "ordered")
        self._edge.live = False
        return session_service_pb2.LogoutResponse()

    async def ListSessions(
        self, request: session_service_pb2.ListSessionsRequest, context: Context
    ) -> session_service_pb2.ListSessionsResponse:
        """Lists one session per page."""
        await self._edge.admit(context, "ListSessions")
        place = int(request.page_token or 0)
        more = place + 1 < len(self._edge.sessions)
        return session_service_pb2.ListSessionsResponse(
            sessions=self._edge.sessions[place : place + 1], next_page_token=str(place + 1) if more else ""
        )

    async def RevokeSession(
        self, request: session_service_pb2.RevokeSessionRequest, context: Context
    ) -> session_service_pb2.RevokeSessionResponse:
        await self._edge.admit(context, "RevokeSession")
        if request.session_id not in {session.id for session in self._edge.sessions}:
            await refuse(context, StatusCode.NOT_FOUND, "SESSION_NOT_FOUND")
        return session_service_pb2.RevokeSessionResponse()

    async def RevokeOtherSessions(
        self, request: session_service_pb2.RevokeOtherSessionsRequest, context: Context
    ) -> session_service_pb2.RevokeOtherSessionsResponse:
        await self._edge.admit(context, "RevokeOtherSessions")
        return session_service_pb2.RevokeOtherSessionsResponse(revoked_count=2)


class Accounts(AccountServiceServicer):
    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def GetAccount(
        self, request: account_service_pb2.GetAccountRequest, context: Context
    ) -> account_service_pb2.GetAccountResponse:
        await self._edge.admit(context, "GetAccount")
        if self._edge.faults:
            await context.abort(self._edge.faults.pop(0), "ordered")
        return account_service_pb2.GetAccountResponse(user=user())

    async def UpdateAccount(
        self, request: account_service_pb2.UpdateAccountRequest, context: Context
    ) -> account_service_pb2.UpdateAccountResponse:
        await self._edge.admit(context, "UpdateAccount")
        if self._edge.faults:
            await context.abort(self._edge.faults.pop(0), "ordered")
        await refuse(context, StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT", field="username")
        return account_service_pb2.UpdateAccountResponse()

    async def ChangePassword(
        self, request: account_service_pb2.ChangePasswordRequest, context: Context
    ) -> account_service_pb2.ChangePasswordResponse:
        await self._edge.admit(context, "ChangePassword")
        await refuse(context, StatusCode.UNAUTHENTICATED, "INVALID_CREDENTIALS")
        return account_service_pb2.ChangePasswordResponse()


class Keys(KeyServiceServicer):
    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def RotateKeys(
        self, request: key_service_pb2.RotateKeysRequest, context: Context
    ) -> key_service_pb2.RotateKeysResponse:
        await self._edge.admit(context, "RotateKeys")
        response = key_service_pb2.RotateKeysResponse(kid=KID)
        response.activate_time.FromDatetime(datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC))
        return response

    async def DropKey(
        self, request: key_service_pb2.DropKeyRequest, context: Context
    ) -> key_service_pb2.DropKeyResponse:
        await self._edge.admit(context, "DropKey")
        if not self._edge.administrator:
            await refuse(context, StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED")
        return key_service_pb2.DropKeyResponse(active_kid=f"not {request.kid}")


class Stories(StoryServiceServicer):
    def __init__(self, edge: Edge) -> None:
        self._edge = edge

    async def ListStories(
        self, request: story_service_pb2.ListStoriesRequest, context: Context
    ) -> story_service_pb2.ListStoriesResponse:
        await self._edge.admit(context, "ListStories")
        story = story_pb2.Story(id="s1", state=story_pb2.STORY_STATE_COMPLETED, title="The \x1b[31mRed\x1b[0m Door")
        return story_service_pb2.ListStoriesResponse(stories=[story])

    async def CreateStory(
        self, request: story_service_pb2.CreateStoryRequest, context: Context
    ) -> story_service_pb2.CreateStoryResponse:
        await self._edge.admit(context, "CreateStory")
        return story_service_pb2.CreateStoryResponse(story=story_pb2.Story(id="s1", theme=request.theme))

    async def WatchStory(
        self, request: story_service_pb2.WatchStoryRequest, context: Context
    ) -> AsyncIterator[story_service_pb2.WatchStoryResponse]:
        await self._edge.admit(context, "WatchStory")
        self._edge.resumed.append(request.resume_token)
        while self._edge.story:
            said = self._edge.story.pop(0)
            if isinstance(said, StatusCode):
                await context.abort(said, "ordered")
            yield said
            if said.WhichOneof("event") in ("done", "reconnect"):
                return


def user() -> User:
    return User(id="u1", email=LOGIN, username="ada", role=ROLE_USER)
