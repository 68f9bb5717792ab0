"""Translation between protobuf messages and operations."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Protocol
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
    revocation_service_pb2,
    revocation_service_pb2_grpc,
    session_pb2,
    session_service_pb2,
    session_service_pb2_grpc,
    tokens_pb2,
    user_pb2,
)

from kit.identity.caller import Caller, Role, caller_of, origin_of
from kit.identity.revocations import Revocation, RevocationKind
from kit.rpc.server import Server
from kit.rpc.timestamps import set_time

from .model import CodeAnswer, OwnProof, Profile, ProfileChange, Session, Tokens, User
from .operations import Operations
from .operations.accounts import Accounts
from .operations.email_changes import EmailChanges
from .operations.email_stops import EmailStops
from .operations.keys import KeyRotation, SigningKeys
from .operations.password_changes import PasswordChanges
from .operations.registrations import Registrations
from .operations.response_padding import ResponsePadding
from .operations.revocations import RevocationFeed
from .operations.sessions import Sessions
from .operations.sign_in import CodeSignIn, PasswordSignIn, device_of

Context = ServicerContext[Any, Any]

_SIGN_IN = "/storymesh.auth.v1.SessionService/CreateSession"

_ROLES = {Role.USER: user_pb2.ROLE_USER, Role.ADMIN: user_pb2.ROLE_ADMIN}


def add_servicers(server: Server, ops: Operations) -> None:
    """Register every service of the contract that auth implements."""
    registration = RegistrationServicer(ops.registrations, ops.padding)
    server.add(registration_service_pb2_grpc.add_RegistrationServiceServicer_to_server, registration)
    session = SessionServicer(ops.sessions, ops.password_sign_in, ops.code_sign_in, ops.padding)
    server.add(session_service_pb2_grpc.add_SessionServiceServicer_to_server, session)
    server.add_load_check(_SIGN_IN, ops.passwords.require_place)
    account = AccountServicer(ops.accounts, ops.password_changes, ops.email_changes, ops.email_stops, ops.padding)
    server.add(account_service_pb2_grpc.add_AccountServiceServicer_to_server, account)
    server.add(directory_service_pb2_grpc.add_DirectoryServiceServicer_to_server, DirectoryServicer(ops.accounts))
    server.add(revocation_service_pb2_grpc.add_RevocationServiceServicer_to_server, RevocationServicer(ops.feed))
    server.add(key_service_pb2_grpc.add_KeyServiceServicer_to_server, KeyServicer(ops.keys, ops.key_rotation))


class RegistrationServicer(registration_service_pb2_grpc.RegistrationServiceServicer):
    """Implements storymesh.auth.v1.RegistrationService."""

    def __init__(self, registrations: Registrations, padding: ResponsePadding) -> None:
        self._registrations = registrations
        self._padding = padding

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
        password = request.password if request.HasField("password") else None
        started = await self._padding.padded(self._registrations.start(profile, password, origin_of(context)))
        response = registration_service_pb2.CreateRegistrationResponse(registration_id=str(started.id))
        set_time(response.code_expire_time, started.code_expires_at)
        return response

    async def ResendRegistrationCode(
        self, request: registration_service_pb2.ResendRegistrationCodeRequest, context: Context
    ) -> registration_service_pb2.ResendRegistrationCodeResponse:
        response = registration_service_pb2.ResendRegistrationCodeResponse()
        resending = self._registrations.resend(UUID(request.registration_id), origin_of(context))
        expires_at = await self._padding.padded(resending)
        set_time(response.code_expire_time, expires_at)
        return response

    async def CompleteRegistration(
        self, request: registration_service_pb2.CompleteRegistrationRequest, context: Context
    ) -> registration_service_pb2.CompleteRegistrationResponse:
        device = device_of(request.device_name, origin_of(context))
        username = request.username if request.HasField("username") else None
        completing = self._registrations.complete(UUID(request.registration_id), request.code, device, username)
        signed_in = await self._padding.padded(completing)
        return registration_service_pb2.CompleteRegistrationResponse(
            user=_user(signed_in.user), tokens=_tokens(signed_in.tokens), device_token=signed_in.device_token
        )


class SessionServicer(session_service_pb2_grpc.SessionServiceServicer):
    """Implements storymesh.auth.v1.SessionService."""

    def __init__(
        self, sessions: Sessions, password_sign_in: PasswordSignIn, code_sign_in: CodeSignIn, padding: ResponsePadding
    ) -> None:
        self._sessions = sessions
        self._password_sign_in = password_sign_in
        self._code_sign_in = code_sign_in
        self._padding = padding

    async def CreateSession(
        self, request: session_service_pb2.CreateSessionRequest, context: Context
    ) -> session_service_pb2.CreateSessionResponse:
        device = device_of(request.device_name, origin_of(context))
        signing_in = self._password_sign_in.sign_in(request.login, request.password, device, request.device_token)
        signed_in = await self._padding.padded(signing_in)
        return session_service_pb2.CreateSessionResponse(
            user=_user(signed_in.user), tokens=_tokens(signed_in.tokens), device_token=signed_in.device_token
        )

    async def StartSessionCode(
        self, request: session_service_pb2.StartSessionCodeRequest, context: Context
    ) -> session_service_pb2.StartSessionCodeResponse:
        starting = self._code_sign_in.start(request.email, origin_of(context), request.device_token)
        started = await self._padding.padded(starting)
        response = session_service_pb2.StartSessionCodeResponse(challenge_id=str(started.id))
        set_time(response.code_expire_time, started.code_expires_at)
        return response

    async def CompleteSessionCode(
        self, request: session_service_pb2.CompleteSessionCodeRequest, context: Context
    ) -> session_service_pb2.CompleteSessionCodeResponse:
        device = device_of(request.device_name, origin_of(context))
        signed_in = await self._padding.padded(
            self._code_sign_in.complete(_answer(request), device, request.device_token)
        )
        return session_service_pb2.CompleteSessionCodeResponse(
            user=_user(signed_in.user), tokens=_tokens(signed_in.tokens), device_token=signed_in.device_token
        )

    async def ListSessions(
        self, request: session_service_pb2.ListSessionsRequest, context: Context
    ) -> session_service_pb2.ListSessionsResponse:
        caller = caller_of(context)
        page = await self._sessions.list(caller, request.page_size, request.page_token)
        return session_service_pb2.ListSessionsResponse(
            sessions=[_session(session, caller) for session in page.items], next_page_token=page.next_token
        )

    async def RevokeSession(
        self, request: session_service_pb2.RevokeSessionRequest, context: Context
    ) -> session_service_pb2.RevokeSessionResponse:
        await self._sessions.revoke(caller_of(context), UUID(request.session_id), origin_of(context))
        return session_service_pb2.RevokeSessionResponse()

    async def RevokeOtherSessions(
        self, request: session_service_pb2.RevokeOtherSessionsRequest, context: Context
    ) -> session_service_pb2.RevokeOtherSessionsResponse:
        count = await self._sessions.revoke_others(caller_of(context), origin_of(context))
        return session_service_pb2.RevokeOtherSessionsResponse(revoked_count=count)

    async def RefreshSession(
        self, request: session_service_pb2.RefreshSessionRequest, context: Context
    ) -> session_service_pb2.RefreshSessionResponse:
        tokens = await self._sessions.refresh(request.refresh_token, origin_of(context))
        return session_service_pb2.RefreshSessionResponse(tokens=_tokens(tokens))

    async def Logout(
        self, request: session_service_pb2.LogoutRequest, context: Context
    ) -> session_service_pb2.LogoutResponse:
        await self._sessions.log_out(caller_of(context), origin_of(context))
        return session_service_pb2.LogoutResponse()


class AccountServicer(account_service_pb2_grpc.AccountServiceServicer):
    """Implements storymesh.auth.v1.AccountService."""

    def __init__(
        self,
        accounts: Accounts,
        password_changes: PasswordChanges,
        email_changes: EmailChanges,
        email_stops: EmailStops,
        padding: ResponsePadding,
    ) -> None:
        self._accounts = accounts
        self._password_changes = password_changes
        self._email_changes = email_changes
        self._email_stops = email_stops
        self._padding = padding

    async def GetAccount(
        self, request: account_service_pb2.GetAccountRequest, context: Context
    ) -> account_service_pb2.GetAccountResponse:
        return account_service_pb2.GetAccountResponse(user=_user(await self._accounts.own(caller_of(context))))

    async def UpdateAccount(
        self, request: account_service_pb2.UpdateAccountRequest, context: Context
    ) -> account_service_pb2.UpdateAccountResponse:
        change = ProfileChange(
            username=request.username if request.HasField("username") else None,
            first_name=request.first_name if request.HasField("first_name") else None,
            last_name=request.last_name if request.HasField("last_name") else None,
            # The contract allows strings only.
            preferences=tuple(map(str, request.preferences)) if request.HasField("preferences") else None,
        )
        user = await self._accounts.update(caller_of(context), change, origin_of(context))
        return account_service_pb2.UpdateAccountResponse(user=_user(user))

    async def ChangePassword(
        self, request: account_service_pb2.ChangePasswordRequest, context: Context
    ) -> account_service_pb2.ChangePasswordResponse:
        proof = _proof(request, request.current_password)
        await self._password_changes.change(caller_of(context), proof, request.new_password, origin_of(context))
        return account_service_pb2.ChangePasswordResponse()

    async def StartPasswordReset(
        self, request: account_service_pb2.StartPasswordResetRequest, context: Context
    ) -> account_service_pb2.StartPasswordResetResponse:
        starting = self._password_changes.start_reset(request.email, origin_of(context), request.device_token)
        started = await self._padding.padded(starting)
        response = account_service_pb2.StartPasswordResetResponse(challenge_id=str(started.id))
        set_time(response.code_expire_time, started.code_expires_at)
        return response

    async def CompletePasswordReset(
        self, request: account_service_pb2.CompletePasswordResetRequest, context: Context
    ) -> account_service_pb2.CompletePasswordResetResponse:
        answer, origin = _answer(request), origin_of(context)
        await self._padding.padded(self._password_changes.complete_reset(answer, request.new_password, origin))
        return account_service_pb2.CompletePasswordResetResponse()

    async def StartEmailChange(
        self, request: account_service_pb2.StartEmailChangeRequest, context: Context
    ) -> account_service_pb2.StartEmailChangeResponse:
        proof = _proof(request, request.password)
        starting = self._email_changes.start(caller_of(context), request.new_email, proof, origin_of(context))
        started = await self._padding.padded(starting)
        response = account_service_pb2.StartEmailChangeResponse(challenge_id=str(started.id))
        set_time(response.code_expire_time, started.code_expires_at)
        return response

    async def CompleteEmailChange(
        self, request: account_service_pb2.CompleteEmailChangeRequest, context: Context
    ) -> account_service_pb2.CompleteEmailChangeResponse:
        user = await self._email_changes.complete(caller_of(context), _answer(request), origin_of(context))
        return account_service_pb2.CompleteEmailChangeResponse(user=_user(user))

    async def StopEmailChange(
        self, request: account_service_pb2.StopEmailChangeRequest, context: Context
    ) -> account_service_pb2.StopEmailChangeResponse:
        await self._email_stops.stop(request.stop_token.strip(), origin_of(context))
        return account_service_pb2.StopEmailChangeResponse()

    async def DeleteAccount(
        self, request: account_service_pb2.DeleteAccountRequest, context: Context
    ) -> account_service_pb2.DeleteAccountResponse:
        await self._accounts.delete(caller_of(context), _proof(request, request.password), origin_of(context))
        return account_service_pb2.DeleteAccountResponse()


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

    def __init__(self, keys: SigningKeys, rotation: KeyRotation) -> None:
        self._keys = keys
        self._rotation = rotation

    async def GetJwks(
        self, request: key_service_pb2.GetJwksRequest, context: Context
    ) -> key_service_pb2.GetJwksResponse:
        return key_service_pb2.GetJwksResponse(
            keys=[key_service_pb2.JsonWebKey(**key) for key in self._keys.published()]
        )

    async def RotateKeys(
        self, request: key_service_pb2.RotateKeysRequest, context: Context
    ) -> key_service_pb2.RotateKeysResponse:
        kid, activates_at = await self._rotation.rotate(caller_of(context), origin_of(context))
        response = key_service_pb2.RotateKeysResponse(kid=kid)
        set_time(response.activate_time, activates_at)
        return response

    async def DropKey(
        self, request: key_service_pb2.DropKeyRequest, context: Context
    ) -> key_service_pb2.DropKeyResponse:
        active = await self._rotation.drop(request.kid, caller_of(context), origin_of(context))
        # Reread at once, because a refresh on this replica would otherwise be signed with the dropped key.
        await self._keys.refresh()
        return key_service_pb2.DropKeyResponse(active_kid=active)


class RevocationServicer(revocation_service_pb2_grpc.RevocationServiceServicer):
    """Implements storymesh.auth.v1.RevocationService."""

    def __init__(self, feed: RevocationFeed) -> None:
        self._feed = feed

    async def WatchRevocations(
        self, request: revocation_service_pb2.WatchRevocationsRequest, context: Context
    ) -> AsyncIterator[revocation_service_pb2.WatchRevocationsResponse]:
        async for told in self._feed.watch():
            message = revocation_service_pb2.WatchRevocationsResponse()
            match told:
                case None:
                    message.heartbeat.SetInParent()
                case Revocation():
                    message.revocation.CopyFrom(_revocation(told))
                case _:
                    message.snapshot.SetInParent()
                    message.snapshot.revocations.extend(map(_revocation, told))
            yield message


class _CodeAnswer(Protocol):
    @property
    def challenge_id(self) -> str: ...
    @property
    def code(self) -> str: ...


def _answer(request: _CodeAnswer) -> CodeAnswer:
    return CodeAnswer(UUID(request.challenge_id), request.code)


def _proof(request: _CodeAnswer, password: str) -> OwnProof:
    return OwnProof(password, _answer(request) if request.code else None)


def _revocation(revocation: Revocation) -> revocation_service_pb2.Revocation:
    message = revocation_service_pb2.Revocation()
    match revocation.kind:
        case RevocationKind.SESSION:
            message.session_id = revocation.value
        case RevocationKind.USER:
            message.user_id = revocation.value
            message.before_epoch = revocation.before_epoch or 0
            message.excepted_session_id = str(revocation.excepted or "")
        case RevocationKind.KEY:
            message.kid = revocation.value
    set_time(message.expire_time, revocation.expires_at)
    return message


def _session(session: Session, caller: Caller) -> session_pb2.Session:
    message = session_pb2.Session(
        id=str(session.id),
        device_name=session.device.name,
        user_agent=session.device.user_agent,
        ip=session.device.ip,
        current=session.id == caller.session_id,
    )
    set_time(message.create_time, session.created_at)
    set_time(message.last_use_time, session.last_used_at)
    set_time(message.expire_time, session.expires_at)
    return message


def _user(user: User) -> user_pb2.User:
    message = user_pb2.User(
        id=str(user.id),
        email=user.profile.email,
        username=user.profile.username or "",
        first_name=user.profile.first_name,
        last_name=user.profile.last_name,
        preferences=user.profile.preferences,
        role=_ROLES[user.role],
        has_password=user.has_password,
    )
    set_time(message.create_time, user.created_at)
    return message


def _tokens(tokens: Tokens) -> tokens_pb2.Tokens:
    message = tokens_pb2.Tokens(access_token=tokens.access_token, refresh_token=tokens.refresh_token)
    set_time(message.access_token_expire_time, tokens.access_expires_at)
    set_time(message.refresh_token_expire_time, tokens.refresh_expires_at)
    return message
