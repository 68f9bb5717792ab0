"""The client's address: services, limiter and log get the one that the edge has found, regardless of the client's headers."""

from __future__ import annotations

import ipaddress
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial

import grpc
import httpx2
import pytest
from storymesh.auth.v1 import session_service_pb2 as session
from storymesh.auth.v1 import session_service_pb2_grpc as session_grpc

from kit.identity.caller import address_told
from tests.envoy.conftest import Edge, Mesh, until

LOGIN = {"login": "ada@example.com", "password": "correct horse battery"}

SPOOFED = {
    "x-storymesh-client-address": "6.6.6.6",
    "x-storymesh-client-ip": "6.6.6.6/32",
    "X-Storymesh-Client-Address": "6.6.6.6",
    "x-real-ip": "6.6.6.6",
    "x-client-ip": "6.6.6.6",
    "forwarded": "for=6.6.6.6",
    "x-envoy-external-address": "6.6.6.6",
    "x-envoy-original-dst-host": "6.6.6.6",
}
"""Headers by which a client claims another address; no trusted proxy has sent them."""


@dataclass(frozen=True)
class Case:
    forwarded: str
    address: str
    network: str


LOOPBACK = Case("", "127.0.0.1", "127.0.0.1/32")
# The expected address per number of trusted proxies, counted from the right end of X-Forwarded-For.
CASES = {
    0: [
        LOOPBACK,
        Case("6.6.6.6", *("127.0.0.1", "127.0.0.1/32")),
        Case("6.6.6.6, 2001:db8::6", *("127.0.0.1", "127.0.0.1/32")),
    ],
    1: [
        LOOPBACK,
        Case("203.0.113.9", "203.0.113.9", "203.0.113.9/32"),
        Case("6.6.6.6, 203.0.113.9", "203.0.113.9", "203.0.113.9/32"),
        Case("6.6.6.6, 2001:db8:1:2:3:4:5:6", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        # An IPv4-mapped address is not cut to a /64, in which all of them would share a bucket.
        Case("6.6.6.6, ::ffff:203.0.113.9", "203.0.113.9", "::ffff:203.0.113.9"),
    ],
    2: [
        Case("203.0.113.9, 198.51.100.1", "203.0.113.9", "203.0.113.9/32"),
        Case("6.6.6.6, 203.0.113.9, 198.51.100.1", "203.0.113.9", "203.0.113.9/32"),
        Case("6.6.6.6, 2001:db8:1:2:3:4:5:6, 2001:db8:9::1", "2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
    ],
}


@pytest.mark.parametrize("trusted", CASES)
async def test_services_limiter_and_log_are_told_the_address_that_the_edge_trusts(
    mesh: Mesh, mesh_with: Callable[..., Awaitable[Edge]], trusted: int
) -> None:
    edge = await mesh_with(f"trusted_proxies={trusted}")
    async with (
        httpx2.AsyncClient(base_url=edge.url) as client,
        grpc.aio.insecure_channel(edge.target) as channel,
    ):
        await until(lambda: _signs_in(client))
        for case in CASES[trusted]:
            headers = {**SPOOFED, **({"x-forwarded-for": case.forwarded} if case.forwarded else {})}
            for call in (_by_http, _by_grpc):
                mesh.calls.seen.clear()
                logged = len(edge.access_lines())
                await call(client, channel, headers)
                told = mesh.calls.last.metadata
                assert address_told(told) == case.address, (call, case)
                assert mesh.limiter.descriptors[0][1] == ("client_ip", case.network)
                assert "6.6.6.6" not in {value for name, value in told.items() if name != "x-forwarded-for"}
                await until(partial(_has_logged_more, edge, logged))
                assert _unmapped(edge.access_lines()[-1]["client"]["ip"]) == case.address


def _has_logged_more(edge: Edge, than: int) -> bool:
    return len(edge.access_lines()) > than


async def _signs_in(client: httpx2.AsyncClient) -> bool:
    return (await client.post("/v1/sessions", json=LOGIN)).status_code == 200


async def _by_http(client: httpx2.AsyncClient, _channel: grpc.aio.Channel, headers: dict[str, str]) -> None:
    assert (await client.post("/v1/sessions", json=LOGIN, headers=headers)).status_code == 200


async def _by_grpc(_client: httpx2.AsyncClient, channel: grpc.aio.Channel, headers: dict[str, str]) -> None:
    stub = session_grpc.SessionServiceStub(channel)
    # Lower case, because gRPC requires it. Sent twice, in case an attacker hopes that the first or the last one counts.
    metadata = [(name.lower(), value) for name, value in headers.items()]
    await stub.CreateSession(session.CreateSessionRequest(**LOGIN), metadata=(*metadata, *metadata[:2]))


def _unmapped(text: str) -> str:
    address = ipaddress.ip_address(text)
    return str((address.version == 6 and address.ipv4_mapped) or address)
