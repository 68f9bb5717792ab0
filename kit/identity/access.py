"""Decides who may make a call, from the policy in the method's contract."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager

from kit.errors import PermissionDenied, RevocationsUnknown, SessionRevoked, Unauthenticated
from mesh import contract
from mesh.contract import Access

from .caller import Caller, Metadata, Role
from .tokens import AccessTokens, ServiceTokens

_BEARER = re.compile(r"[ \t]*bearer[ \t]+([\w.~+/-]+=*)[ \t]*", re.ASCII | re.IGNORECASE)
"""RFC 6750, 2.1; the scheme is free of case, and what stands around the token may be any blanks (RFC 9110, 11.1 and 11.4)."""


class AccessControl:
    """Raises ValueError at start-up when a served method has no policy."""

    def __init__(self, services: Iterable[str], access_tokens: AccessTokens, service_tokens: ServiceTokens) -> None:
        self._methods = contract.linked(services)
        self._access_tokens = access_tokens
        self._service_tokens = service_tokens

    async def admit(self, path: str, metadata: Metadata) -> Caller | None:
        """The person calling, None for a public call or another service's.

        Raises Unauthenticated, SessionRevoked or PermissionDenied; RevocationsUnknown for what would change something while the
        list of revocations is stale. Reads go on then: that somebody who was signed out reads what was theirs for some minutes
        more is the lesser harm, and the token's end bounds it.
        """
        method = self._methods[path]
        if method.access is Access.PUBLIC:
            return None
        token = bearer_token(metadata)
        if method.access is Access.SERVICE:
            self._service_tokens.verify(token)
            return None
        caller = await self._access_tokens.verify(token)
        if method.access is Access.ADMIN and caller.role is not Role.ADMIN:
            raise PermissionDenied
        if not method.reads and self._access_tokens.revocations.stale:
            raise RevocationsUnknown
        return caller

    @asynccontextmanager
    async def standing(self, caller: Caller | None) -> AsyncIterator[None]:
        """Interrupts what runs inside as soon as the person's token is revoked, and raises SessionRevoked then."""
        if caller is None:
            yield
            return
        # A timeout without a time: it ends the task's wait, wherever that is, and tells its own cancellation from others'.
        interrupt = asyncio.timeout(None)

        def revoked() -> None:
            # Revoked again while it ends already.
            if not interrupt.expired():
                interrupt.reschedule(0)

        revocations = self._access_tokens.revocations
        try:
            async with interrupt:
                with revocations.calling(
                    revoked,
                    session_id=caller.session_id,
                    user_id=caller.user_id,
                    kid=caller.kid,
                    epoch=caller.epoch,
                ):
                    yield
        except TimeoutError:
            if not interrupt.expired():
                raise
        # Also when what ran inside kept the interruption to itself.
        if interrupt.expired():
            raise SessionRevoked


def bearer_token(metadata: Metadata) -> str:
    """The credential that came with a call. Raises Unauthenticated when there is none of the right form, or more than one."""
    values = [value for key, value in metadata if key == "authorization"]
    # Two different credentials would leave it open whose call this is.
    found = _BEARER.fullmatch(str(values[0])) if len(values) == 1 else None
    if found is None:
        raise Unauthenticated
    return found[1]
