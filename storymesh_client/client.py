"""A signed-in channel to one edge, with a typed stub for every service behind it."""

from __future__ import annotations

import os
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Self

from storymesh.auth.v1 import session_service_pb2
from storymesh.auth.v1.user_pb2 import User
from storymesh.file.v1.file_pb2 import File
from storymesh.file.v1.file_service_pb2 import CreateFileRequest
from storymesh.methods import METHODS
from storymesh.stubs import Stubs

from . import calls, channels, downloads, uploads
from .errors import StorymeshError
from .session import Clock, Session, system_clock
from .tokens import MemoryTokens, Tokens, TokenStore
from .transfers import Transfers
from .uploads import Progress, no_progress

DEFAULT_TARGET = "127.0.0.1:8080"

_REFRESH_SECONDS = 5.0
"""Deadline of one refresh; several tries fit into the period in which a refresh can be repeated safely."""


class Storymesh(Stubs):
    """A signed-in client of one edge, to be used in `async with` from one event loop.

        async with Storymesh("edge.example.com:443", tokens=FileTokens(path)) as mesh:
            await mesh.sign_in("ada@example.org", password)
            stories = await mesh.stories.ListStories(ListStoriesRequest())

    Calls that need a session carry its access token, which is renewed as needed. Without a session they raise
    StorymeshError with the reason NOT_SIGNED_IN. Unary calls have a deadline of `call_seconds` unless they set their own.
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
        """If `tls` is None, the channel is encrypted unless the target is on this machine. `root_certificates` are PEM; None means
        gRPC's default ones.

        Raises TokenFileError when stored tokens cannot be read.
        """
        self._root_certificates = root_certificates
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
        """Whether there is a session; only a call shows whether the server still accepts it."""
        return self._session.signed_in

    async def sign_in(self, login: str, password: str, *, device_name: str | None = None) -> User:
        """Begins a session and stores its tokens. Sends the device token if this device has signed in to the account before.

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
        """Lets the server mail a code to the account's address, and returns the id of the challenge that the code answers.

        Raises StorymeshError: TOO_MANY_CODES.
        """
        request = session_service_pb2.StartSessionCodeRequest(
            email=email, device_token=self._session.device_token(email)
        )
        return (await self.sessions.StartSessionCode(request)).challenge_id

    async def sign_in_with_code(
        self, email: str, challenge_id: str, code: str, *, device_name: str | None = None
    ) -> User:
        """Begins a session as `sign_in` does, by a mailed code. Raises StorymeshError: CODE_INVALID."""
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
        """Ends the session at the server and forgets its tokens. No effect without a session. Raises StorymeshError."""
        try:
            await self.sessions.Logout(session_service_pb2.LogoutRequest())
        except StorymeshError as error:
            if error.code().name != "UNAUTHENTICATED":
                # The session still exists at the server, so its tokens are kept for another try.
                raise
        self._session.end()

    async def upload(
        self,
        path: str | os.PathLike[str],
        *,
        purpose: str = "document",
        name: str | None = None,
        media_type: str | None = None,
        resume: bool = False,
        wait: bool = True,
        progress: Progress = no_progress,
    ) -> File:
        """Uploads a file of the disk, and returns it as it is once the mesh has checked it: `state` says whether it was taken.

        `purpose` is that of the contract in lower case. If they are None, `name` is the path's last part, and `media_type` follows
        its ending. `resume` goes on with an upload of the same bytes that was interrupted, if there is one. Without `wait` the
        file may still be in checking. `progress` is told how many bytes have gone, and of how many.

        Raises StorymeshError, TransferFailed, OSError when the file cannot be read, and ValueError for no purpose.
        """
        source = Path(path)
        request = CreateFileRequest(
            purpose=uploads.purpose(purpose),
            name=source.name if name is None else name,
            media_type=media_type or uploads.media_type_of(source),
        )
        with closing(Transfers(self._root_certificates)) as transfers:
            read = await uploads.Source.of(source, transfers)
            request.size, request.sha256 = read.size, read.sha256.hex()
            file = await uploads.Upload(self, transfers, read, progress).run(request, resume=resume)
        return await uploads.checked(self, file) if wait else file

    async def download(
        self,
        file_id: str,
        path: str | os.PathLike[str],
        *,
        target: int = 0,
        progress: Progress = no_progress,
    ) -> None:
        """Downloads a file to `path`, which is replaced once all of it is there and its checksum is right.

        `target` chooses a rendition of an image: 96, 512 or 1600; 0 is the largest. What an interrupted download left beside `path`
        is gone on with. The file's name in the mesh is not asked for.

        Raises StorymeshError, TransferFailed, and OSError when the file cannot be written.
        """
        with closing(Transfers(self._root_certificates)) as transfers:
            await downloads.Download(self, transfers, file_id, target, progress).run(Path(path))

    async def close(self) -> None:
        """Closes the channel, after waiting for a renewal in progress, so that its tokens are stored."""
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
