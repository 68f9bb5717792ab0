"""Decides who may make a call, from the policy in the method's contract."""

from __future__ import annotations

from collections.abc import Iterable

from grpc.aio import Metadata
from storymesh.options.v1 import policy_pb2

from .caller import Caller, Role
from .errors import PermissionDenied, Unauthenticated
from .policies import access_of, methods_of
from .tokens import AccessTokens, ServiceTokens


class AccessControl:
    """Raises ValueError at start-up when a served method has no policy."""

    def __init__(self, services: Iterable[str], access_tokens: AccessTokens, service_tokens: ServiceTokens) -> None:
        self._access = {path: access_of(method) for path, method in methods_of(services).items()}
        self._access_tokens = access_tokens
        self._service_tokens = service_tokens

    async def admit(self, path: str, metadata: Metadata | None) -> Caller | None:
        """The person calling, None for a public call or another service's. Raises Unauthenticated or PermissionDenied."""
        access = self._access[path]
        if access == policy_pb2.ACCESS_PUBLIC:
            return None
        token = _bearer(metadata)
        if access == policy_pb2.ACCESS_SERVICE:
            self._service_tokens.verify(token)
            return None
        caller = await self._access_tokens.verify(token)
        if access == policy_pb2.ACCESS_ADMIN and caller.role is not Role.ADMIN:
            raise PermissionDenied
        return caller


def _bearer(metadata: Metadata | None) -> str:
    values = [value for key, value in metadata or () if key == "authorization"]
    # Two different credentials would leave it open whose call this is.
    if len(values) != 1:
        raise Unauthenticated
    scheme, _, token = str(values[0]).partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise Unauthenticated
    return token.strip()
