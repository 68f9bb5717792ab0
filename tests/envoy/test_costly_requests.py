"""Large values of every kind cost the edge little time, because its threads serve all clients."""

from __future__ import annotations

import asyncio

import pytest

from tests.envoy.conftest import Edge
from tests.wire import Headers, http1

# The largest headers and body that the edge accepts.
HEADER, BODY = 28_000, 120_000
JSON = ("content-type", b"application/json")
AT_ONCE = 20

HEADERS: list[Headers] = [
    *([("authorization", b"Bearer a" + blank * HEADER + b"b")] for blank in (b" ", b"\t", b"=", b"a ")),
    *([("authorization", value)] for value in (b"a" * HEADER, b"a " * (HEADER // 2), b"\xff" * HEADER)),
    *([("content-type", value + b" " * HEADER + b"x")] for value in (b"a", b"application/json", b"application/grpc;")),
    *([(name, b"\xe9 " * (HEADER // 2))] for name in ("user-agent", "x-user-agent", "x-request-id", "traceparent")),
    *([(name, b"1" * HEADER)] for name in ("grpc-timeout", "grpc-encoding", "traceparent", "last-event-id", "origin")),
    [("tracestate", b"a=1," * (HEADER // 4))],
    [("x-forwarded-for", b"1.1.1.1," * (HEADER // 8))],
    [("access-control-request-headers", b"a," * (HEADER // 2))],
]
PATHS = [
    b"/v1/stories?" + b"&".join(b"a%d=1" % number for number in range(HEADER // 8)),
    *(b"/v1/stories" + rest for rest in (b"?" + b"&" * HEADER, b"?" + b"%41" * (HEADER // 3), b"/" * HEADER)),
    b"/v1/" + b"a:" * (HEADER // 2),
]
BODIES = [
    *(b"[" * BODY, b'{"a":' * (BODY // 5), b"{" + b" " * BODY + b"x", b'{"a":' + b"1" * BODY + b"}"),
    *(b'{"login":"' + b'\\"' * (BODY // 2) + b'"}', b'{"' + b"\\u0061" * (BODY // 6) + b'":1}'),
    *(b"{" + b'"a":1,' * (BODY // 6) + b'"a":1}', b'{"login":[' + b"1," * (BODY // 2) + b"1]}"),
]


@pytest.mark.parametrize("headers", HEADERS, ids=lambda headers: f"{headers[0][0]} {headers[0][1][:12]!r}")
async def test_a_large_header_keeps_no_thread_busy(edge: Edge, headers: Headers) -> None:
    body = b"{}" if headers[0][0] == "content-type" else b""
    method, path = ("POST", b"/v1/sessions") if body else ("GET", b"/v1/account")
    await asyncio.gather(*(http1(edge.settings.listen, method, path, headers, body) for _ in range(AT_ONCE)))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: repr(path[:18]))
async def test_a_large_path_keeps_no_thread_busy(edge: Edge, path: bytes) -> None:
    await asyncio.gather(*(http1(edge.settings.listen, "GET", path) for _ in range(AT_ONCE)))


@pytest.mark.parametrize("body", BODIES, ids=lambda body: repr(body[:12]))
async def test_a_large_body_keeps_no_thread_busy(edge: Edge, body: bytes) -> None:
    await asyncio.gather(*(http1(edge.settings.listen, "POST", b"/v1/sessions", [JSON], body) for _ in range(AT_ONCE)))
