"""Protobuf in, protobuf out."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from grpc.aio import ServicerContext
from storymesh.auth.v1 import (
    account_service_pb2,
    account_service_pb2_grpc,
    directory_service_pb2,
    directory_service_pb2_grpc,
    key_service_pb2,
    key_service_pb2_grpc,
    registration_service_pb2,
    registration_service_pb2_grpc,
    session_service_pb2,
    session_service_pb2_grpc,
    tokens_pb2,
    user_pb2,
)

from services.kit.caller import Role, caller_of, origin_of
from services.kit.timestamps import set_time

from .accounts import Accounts
from .keys import SigningKeys
from .model import Profile, Tokens, User
from .registrations import Registrations
from .sessions import PasswordSignIn, Sessions, device_of

Context = ServicerContext[Any, Any]

_ROLES = {Role.USER: user_pb2.ROLE_USER, Role.ADMIN: user_pb2.ROLE_ADMIN}


class RegistrationServicer(registration_service_pb2_grpc.RegistrationServiceServicer):
    """Implements storymesh.auth.v1.RegistrationService."""

    def __init__(self, registrations: Registrations) -> None:
        self._registrations = registrations

    async def CreateRegistration(
        self, request: registration_service_pb2.CreateRegistrationRequest, context: Context
    ) -> registration_service_pb2.CreateRegistrationResponse:
        profile = Profile(
            email=request.email,
            username=request.username or None,
            first_name=request.first_name,
            last_name=request.last_name,
            preferences=tuple(request.preferences),
        )
        started = await self._registrations.start(profile, request.password)
        response = registration_service_pb2.CreateRegistrationResponse(registration_id=str(started.id))
        set_time(response.code_expire_time, started.code_expires_at)
        return response

    async def ResendRegistrationCode(
        self, request: registration_service_pb2.ResendRegistrationCodeRequest, context: Context
    ) -> registration_service_pb2.ResendRegistrationCodeResponse:
        response = registration_service_pb2.ResendRegistrationCodeResponse()
        set_time(response.code_expire_time, await self._registrations.resend(UUID(request.registration_id)))
        return response

    async def CompleteRegistration(
        self, request: registration_service_pb2.CompleteRegistrationRequest, context: Context
    ) -> registration_service_pb2.CompleteRegistrationResponse:
        device = device_of(request.device_name, origin_of(context))
        signed_in = await self._registrations.complete(UUID(request.registration_id), request.code, device)
        return registration_service_pb2.CompleteRegistrationResponse(
            user=_user(signed_in.user), tokens=_tokens(signed_in.tokens)
        )


class SessionServicer(session_service_pb2_grpc.SessionServiceServicer):
    """Implements storymesh.auth.v1.SessionService."""

    def __init__(self, sessions: Sessions, password_sign_in: PasswordSignIn) -> None:
        self._sessions = sessions
        self._password_sign_in = password_sign_in

    async def CreateSession(
        self, request: session_service_pb2.CreateSessionRequest, context: Context
    ) -> session_service_pb2.CreateSessionResponse:
        device = device_of(request.device_name, origin_of(context))
        signed_in = await self._password_sign_in.sign_in(request.login, request.password, device)
        return session_service_pb2.CreateSessionResponse(user=_user(signed_in.user), tokens=_tokens(signed_in.tokens))

    async def RefreshSession(
        self, request: session_service_pb2.RefreshSessionRequest, context: Context
    ) -> session_service_pb2.RefreshSessionResponse:
        tokens = await self._sessions.refresh(request.refresh_token, origin_of(context))
        return session_service_pb2.RefreshSessionResponse(tokens=_tokens(tokens))

    async def Logout(
        self, request: session_service_pb2.LogoutRequest, context: Context
    ) -> session_service_pb2.LogoutResponse:
        await self._sessions.log_out(caller_of(context))
        return session_service_pb2.LogoutResponse()


class AccountServicer(account_service_pb2_grpc.AccountServiceServicer):
    """Implements storymesh.auth.v1.AccountService."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    async def GetAccount(
        self, request: account_service_pb2.GetAccountRequest, context: Context
    ) -> account_service_pb2.GetAccountResponse:
        return account_service_pb2.GetAccountResponse(user=_user(await self._accounts.own(caller_of(context))))


class DirectoryServicer(directory_service_pb2_grpc.DirectoryServiceServicer):
    """Implements storymesh.auth.v1.DirectoryService."""

    def __init__(self, accounts: Accounts) -> None:
        self._accounts = accounts

    async def GetUser(
        self, request: directory_service_pb2.GetUserRequest, context: Context
    ) -> directory_service_pb2.GetUserResponse:
        return directory_service_pb2.GetUserResponse(user=_user(await self._accounts.get(UUID(request.user_id))))


class KeyServicer(key_service_pb2_grpc.KeyServiceServicer):
    """Implements storymesh.auth.v1.KeyService."""

    def __init__(self, keys: SigningKeys) -> None:
        self._keys = keys

    async def GetJwks(
        self, request: key_service_pb2.GetJwksRequest, context: Context
    ) -> key_service_pb2.GetJwksResponse:
        return key_service_pb2.GetJwksResponse(
            keys=[key_service_pb2.JsonWebKey(**key) for key in self._keys.published()]
        )


def _user(user: User) -> user_pb2.User:
    message = user_pb2.User(
        id=str(user.id),
        email=user.profile.email,
        username=user.profile.username or "",
        first_name=user.profile.first_name,
        last_name=user.profile.last_name,
        preferences=user.profile.preferences,
        role=_ROLES[user.role],
    )
    set_time(message.create_time, user.created_at)
    return message


def _tokens(tokens: Tokens) -> tokens_pb2.Tokens:
    message = tokens_pb2.Tokens(access_token=tokens.access_token, refresh_token=tokens.refresh_token)
    set_time(message.access_token_expire_time, tokens.access_expires_at)
    set_time(message.refresh_token_expire_time, tokens.refresh_expires_at)
    return message
