"""A signed-in channel to one edge, with a typed stub for every service behind it."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from storymesh.auth.v1 import session_service_pb2
from storymesh.auth.v1.user_pb2 import User
from storymesh.methods import METHODS
from storymesh.stubs import Stubs

from . import calls, channels
from .errors import StorymeshError
from .session import Clock, Session, system_clock
from .tokens import MemoryTokens, Tokens, TokenStore

DEFAULT_TARGET = "127.0.0.1:8080"

_REFRESH_SECONDS = 5.0
"""For one try, so that several fit into the time in which a refresh may be repeated."""


class Storymesh(Stubs):
    """Use it in `async with`, from one event loop.

        async with Storymesh("edge.example.com:443", tokens=FileTokens(path)) as mesh:
            await mesh.sign_in("ada@example.org", password)
            stories = await mesh.stories.ListStories(ListStoriesRequest())

    Calls that need a session carry its access token, which is renewed as needed; those that nobody signed in for raise
    StorymeshError with the reason NOT_SIGNED_IN. Unary calls end after `call_seconds` unless they say otherwise.
    """

    def __init__(
        self,
        target: str = DEFAULT_TARGET,
        *,
        tls: bool | None = None,
        root_certificates: bytes | None = None,
        tokens: TokenStore | None = None,
        call_seconds: float = 20.0,
        user_agent: str = "storymesh-client",
        clock: Clock = system_clock,
    ) -> None:
        """`tls` None: encrypted unless the target is on this machine. `root_certificates` in PEM; None: those of the system.

        Raises TokenFileError when kept tokens cannot be read.
        """
        self._session = Session(tokens or MemoryTokens(), target, self._exchange, clock=clock)
        self._channel = channels.open_channel(
            target,
            METHODS,
            calls.interceptors(METHODS, lambda: self._session, call_seconds),
            tls=not channels.stays_here(target) if tls is None else tls,
            root_certificates=root_certificates,
            user_agent=user_agent,
        )
        super().__init__(self._channel)

    @property
    def signed_in(self) -> bool:
        """Whether there is a session to make calls with; only a call shows whether it still holds."""
        return self._session.signed_in

    async def sign_in(self, login: str, password: str, *, device_name: str | None = None) -> User:
        """Begins a session and keeps its tokens. Says which device this is where it has signed in before.

        Raises StorymeshError: INVALID_CREDENTIALS, TOO_MANY_SIGN_INS, OVERLOADED.
        """
        response = await self.sessions.CreateSession(
            session_service_pb2.CreateSessionRequest(
                login=login,
                password=password,
                device_name=device_name,
                device_token=self._session.device_token(login),
            )
        )
        self._session.begin(login, Tokens.from_proto(response.tokens), response.device_token)
        return response.user

    async def mail_code(self, email: str) -> str:
        """Mails a code to the account's address, and returns the challenge that it answers.

        Raises StorymeshError: TOO_MANY_CODES.
        """
        request = session_service_pb2.StartSessionCodeRequest(
            email=email, device_token=self._session.device_token(email)
        )
        return (await self.sessions.StartSessionCode(request)).challenge_id

    async def sign_in_with_code(
        self, email: str, challenge_id: str, code: str, *, device_name: str | None = None
    ) -> User:
        """Begins a session as `sign_in` does, without a password. Raises StorymeshError: CODE_INVALID."""
        response = await self.sessions.CompleteSessionCode(
            session_service_pb2.CompleteSessionCodeRequest(
                challenge_id=challenge_id,
                code=code,
                device_name=device_name,
                device_token=self._session.device_token(email),
            )
        )
        self._session.begin(email, Tokens.from_proto(response.tokens), response.device_token)
        return response.user

    async def sign_out(self) -> None:
        """Ends the session here and at the server; without effect when there is none. Raises StorymeshError."""
        try:
            await self.sessions.Logout(session_service_pb2.LogoutRequest())
        except StorymeshError as error:
            if error.code().name != "UNAUTHENTICATED":
                # The session goes on there: whoever tries again still needs its token.
                raise
        self._session.end()

    async def close(self) -> None:
        """Waits for a renewal that is under way, so that its answer is kept."""
        await self._session.settled()
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _exchange(self, refresh_token: str) -> Tokens:
        request = session_service_pb2.RefreshSessionRequest(refresh_token=refresh_token)
        response = await self.sessions.RefreshSession(request, timeout=_REFRESH_SECONDS)
        return Tokens.from_proto(response.tokens)
