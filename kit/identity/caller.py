"""Who makes the call that is being served."""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any
from urllib.parse import unquote
from uuid import UUID

from grpc.aio import ServicerContext

from mesh.edge_protocol import CLIENT_ADDRESS_HEADER

from .display_text import visible


class Role(StrEnum):
    USER = "USER"
    ADMIN = "ADMIN"


@dataclass(frozen=True, slots=True)
class Caller:
    """A person with a session."""

    user_id: UUID
    session_id: UUID
    role: Role
    kid: str
    """The key that signed the token which says so."""
    epoch: int = 0
    """That of the session: what ends all sessions of an account begins another one."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where a call came from, as the edge saw it. For records and throttling; never a reason to let somebody in."""

    ip: str
    user_agent: str


Metadata = Sequence[tuple[str, str | bytes]]

current_caller: ContextVar[Caller | None] = ContextVar("current_caller", default=None)
current_metadata: ContextVar[Metadata] = ContextVar("current_metadata", default=())
"""What came with the call, as the interceptor was handed it. To ask the context again would decode all of it each time."""


def caller_of(_context: ServicerContext[Any, Any]) -> Caller:
    """The person behind a call whose policy is USER or ADMIN; the interceptor has verified the token."""
    caller = current_caller.get()
    if caller is None:
        raise RuntimeError("the method's policy admits calls without a person")
    return caller


def origin_of(context: ServicerContext[Any, Any]) -> Origin:
    """The address and agent that the edge reports, or the peer's own when the call did not come through the edge."""
    metadata = dict(current_metadata.get())
    agent = str(metadata.get("x-user-agent") or metadata.get("user-agent") or "")
    return Origin(ip=address_of(context, metadata), user_agent=visible(agent)[:256])


def address_of(context: ServicerContext[Any, Any], metadata: Mapping[str, str | bytes]) -> str:
    """The client's address according to the edge, or else the peer's own."""
    return address_told(metadata) or address_at(context.peer())


def address_told(metadata: Mapping[str, str | bytes]) -> str:
    """The client's address according to the edge; empty when it told none."""
    return _address(str(metadata.get(CLIENT_ADDRESS_HEADER, "")))


def address_at(peer: str) -> str:
    """The address of a peer as gRPC names it, such as `ipv4:192.0.2.7:4711`; empty for a Unix socket."""
    return _address(unquote(peer).removeprefix("ipv4:").removeprefix("ipv6:").rpartition(":")[0].strip("[]"))


@lru_cache(4096)
def _address(text: str) -> str:
    """One spelling for each address: IPv4 as such when it comes mapped into IPv6, and without a zone. Empty for what is none."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return ""
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)
