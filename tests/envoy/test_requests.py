"""The parts of a request that reach a service, over a connection that carries other clients' requests too."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import grpc
import httpx2
import pytest
from edge.settings import Address

from tests.envoy.conftest import Edge, Mesh
from tests.envoy.statuses import reason
from tests.wire import Headers, frame, http1, http2, reason_in

GET_ACCOUNT = b"/storymesh.auth.v1.AccountService/GetAccount"
GRPC = (("content-type", b"application/grpc"), ("te", b"trailers"))
GRPC_WEB = (("content-type", b"application/grpc-web+proto"), ("x-grpc-web", b"1"))
JSON = (("content-type", b"application/json"),)

# All bytes that HTTP/1.1 allows in a header's value, besides printable ASCII.
ODD = b"\t" + bytes(range(0x80, 0x100))

TIMEOUTS = [
    *(
        b"5s",
        b"1",
        b"-1S",
        b"bogus",
        b"",
        b"S",
        b"1 S",
        b"1\tS",
        b"S1",
        b"1.5S",
        b"123456789S",
        b"1H1M",
        b"0x1S",
        b"1S,2S",
    ),
    *("\N{ARABIC-INDIC DIGIT FIVE}S".encode(), b"1S\xa0", ODD),
]
ODD_HEADERS = [
    *(("x-thing-bin", value) for value in (b"!!!", b"=", b"\xff", b"a,b,!")),
    *(("grpc-trace-bin", b"!"), ("grpc-tags-bin", b"!"), ("lb-cost-bin", b"!"), ("grpc-server-stats-bin", b"!")),
    *(("grpc-status", b"x"), ("grpc-status", b"0"), ("grpc-message", b"%"), ("grpc-previous-rpc-attempts", b"x")),
    *(("grpc-retry-pushback-ms", b"x"), ("grpc-accept-encoding", ODD), ("grpc-internal-encoding-request", b"x")),
    *(("te", b"gzip"), ("user-agent", b"Lo\xefc's iPad"), ("user-agent", ODD), ("x-user-agent", ODD)),
    *((name, b"a=" + ODD) for name in ("tracestate", "traceparent", "baggage", "b3", "x-request-id", "x-b3-traceid")),
    *(
        (name, ODD)
        for name in ("cookie", "origin", "accept", "referer", "x-forwarded-for", "x-forwarded-proto", "x-odd")
    ),
    ("content-type", b"application/json" + ODD),
]
REACHES = {
    *(
        "accept",
        "authorization",
        "content-length",
        "content-type",
        "grpc-accept-encoding",
        "grpc-timeout",
        "origin",
        "traceparent",
    ),
    *(
        "tracestate",
        "user-agent",
        "x-envoy-original-method",
        "x-envoy-original-path",
        "x-forwarded-proto",
        "x-grpc-web",
    ),
    *("x-request-id", "x-storymesh-client-address", "x-user-agent"),
}


@asynccontextmanager
async def unharmed_strangers(edge: Edge, client: httpx2.AsyncClient) -> AsyncIterator[None]:
    """Check that 150 calls of other clients succeed afterwards, on the connection that existed before."""
    # An earlier test may have closed the connection.
    assert (await client.get("/v1/account")).status_code == 200
    before = await connections(edge, "auth")
    yield
    for _ in range(15):  # ten at a time, because the edge of these tests waits for an answer for a second only
        answers = await asyncio.gather(*(client.get("/v1/account") for _ in range(10)))
        assert [answer.status_code for answer in answers] == [200] * 10
    assert await connections(edge, "auth") == before
    assert "script" not in "".join(line for line in edge.log.read_text().splitlines() if "edge.access" not in line)


async def connections(edge: Edge, cluster: str) -> int:
    """Return the number of connections that the edge has ever made to a service."""
    async with httpx2.AsyncClient() as admin:
        host, port = edge.settings.admin
        text = (await admin.get(f"http://{host}:{port}/stats?filter=^cluster.{cluster}.upstream_cx_total$")).text
    return int(text.split()[-1])


def token(client: httpx2.AsyncClient) -> Headers:
    return (("authorization", client.headers["authorization"].encode()),)


async def test_a_malformed_timeout_is_refused_and_harms_nobody_else(
    edge: Edge, ada: httpx2.AsyncClient, mesh: Mesh
) -> None:
    listen, auth = edge.settings.listen, token(ada)
    async with unharmed_strangers(edge, ada):
        mesh.calls.seen.clear()
        for value in TIMEOUTS:
            header = (("grpc-timeout", value),)
            answer = await http1(listen, "GET", b"/v1/account", (*auth, *header))
            assert (answer.status, reason_in(answer)) == (400, "REQUEST_MALFORMED"), value
            assert b"grpc-timeout" in answer.body
            answer = await http1(listen, "POST", GET_ACCOUNT, (*auth, *GRPC_WEB, *header), frame(b""))
            assert (answer.grpc_status, reason_in(answer)) == (3, "REQUEST_MALFORMED"), value
            # Without it libraries do not recognize the answer as gRPC-Web, and lose the reason.
            assert (answer.status, answer.headers["content-type"]) == (200, "application/grpc-web+proto"), value
        # Tabs in values are invalid in HTTP/2; before native gRPC Envoy replaces them by blanks.
        for value in set(TIMEOUTS) - {ODD, b"1\tS", b"1 S"}:
            answer = await http2(listen, GET_ACCOUNT, (*auth, *GRPC, ("grpc-timeout", value)), frame(b""))
            assert (answer.grpc_status, reason_in(answer)) == (3, "REQUEST_MALFORMED"), value
        two = (("grpc-timeout", b"1S"), ("grpc-timeout", b"1S"))
        assert (await http2(listen, GET_ACCOUNT, (*auth, *GRPC, *two), frame(b""))).grpc_status == 3
        assert mesh.calls.seen == []
        # The longest and the shortest timeouts.
        assert (
            await http2(listen, GET_ACCOUNT, (*auth, *GRPC, ("grpc-timeout", b"99999999H")), frame(b""))
        ).grpc_status == 0
        assert (
            await http2(listen, GET_ACCOUNT, (*auth, *GRPC, ("grpc-timeout", b"00000000n")), frame(b""))
        ).grpc_status == 4


async def test_odd_headers_cost_neither_their_sender_nor_anybody_else_the_call(
    edge: Edge, ada: httpx2.AsyncClient, mesh: Mesh
) -> None:
    listen, auth = edge.settings.listen, token(ada)
    async with unharmed_strangers(edge, ada):
        for name, value in ODD_HEADERS:
            answer = await http1(listen, "GET", b"/v1/account", (*auth, (name, value)))
            assert answer.status == 200, (name, answer)
            if name not in ("content-type", "te") and b"\t" not in value:
                answer = await http2(listen, GET_ACCOUNT, (*auth, *GRPC, (name, value)), frame(b""))
                assert answer.grpc_status == 0, (name, answer)
        assert {call.method for call in mesh.calls.seen} == {"GetAccount"}
    for call in mesh.calls.seen:
        assert set(call.metadata) <= REACHES
        assert all(value.isascii() and value.isprintable() for value in call.metadata.values())


@pytest.mark.parametrize("te", [(), (("te", b"gzip"),), (("te", b"trailers;q=1"),)], ids=repr)
async def test_grpc_needs_no_word_about_trailers(edge: Edge, ada: httpx2.AsyncClient, te: Headers) -> None:
    # The edge sets `te: trailers`: without it gRPC's library resets the call, and outlier detection would eject the service.
    for media_type in (b"application/grpc", b"application/grpc+proto", b"application/grpc-web", b"Application/GRPC"):
        headers = (*token(ada), ("content-type", media_type), *te)
        answer = await http1(edge.settings.listen, "POST", GET_ACCOUNT, headers, frame(b""))
        assert answer.status == 200
        assert answer.grpc_status in (None, 0)


async def test_a_grpc_call_by_another_verb_reaches_no_service(edge: Edge, ada: httpx2.AsyncClient, mesh: Mesh) -> None:
    # gRPC's library resets the call or answers INTERNAL, which the edge counts as a failure of the service.
    async with unharmed_strangers(edge, ada):
        for verb in ("GET", "PUT", "DELETE", "PATCH", "HEAD", "TRACE"):
            for headers in (GRPC, GRPC_WEB):
                answer = await http2(
                    edge.settings.listen, GET_ACCOUNT, (*token(ada), *headers), frame(b""), method=verb
                )
                assert (answer.status, answer.grpc_status) == (200, 12)
                assert reason_in(answer) == "PATH_NOT_FOUND"
        # Only the first call of `unharmed_strangers`, which precedes the block.
        assert len(mesh.calls.seen) == 1


async def test_a_compressed_call_is_unimplemented_and_the_answer_says_what_is_taken(
    edge: Edge, ada: httpx2.AsyncClient, mesh: Mesh
) -> None:
    """A gRPC server would unpack it before its size is known: 1 MiB of gzip may hold 1 GiB."""
    listen, auth = edge.settings.listen, token(ada)
    async with unharmed_strangers(edge, ada):
        for value in (b"gzip", b"deflate", b"GZIP", b"identity, gzip", b"gzip,identity", b"bogus", b"", b"\xff"):
            header = (("grpc-encoding", value),)
            native = await http2(listen, GET_ACCOUNT, (*auth, *GRPC, *header), frame(b""))
            web = await http1(listen, "POST", GET_ACCOUNT, (*auth, *GRPC_WEB, *header), frame(b""))
            for answer in (native, web):
                assert (answer.grpc_status, reason_in(answer)) == (12, "GRPC_ENCODING_NOT_SUPPORTED"), value
                assert answer.headers["grpc-accept-encoding"] == "identity"
            assert (await http1(listen, "GET", b"/v1/account", (*auth, *header))).status == 200
        twice = (("grpc-encoding", b"identity"), ("grpc-encoding", b"gzip"))
        answer = await http2(listen, GET_ACCOUNT, (*auth, *GRPC, *twice), frame(b""))
        assert (answer.grpc_status, reason_in(answer)) == (12, "GRPC_ENCODING_NOT_SUPPORTED")
        answer = await http2(listen, GET_ACCOUNT, (*auth, *GRPC, ("grpc-encoding", b"identity")), frame(b""))
        assert answer.grpc_status == 0
    assert not any("grpc-encoding" in call.metadata for call in mesh.calls.seen)


async def test_a_body_that_is_not_one_plain_message_is_refused_at_once_and_harms_nobody_else(
    edge: Edge, ada: httpx2.AsyncClient, mesh: Mesh
) -> None:
    listen, auth = edge.settings.listen, token(ada)
    malformed = [
        b"",
        b"\0",
        b"\0\0\0\0\x20abc",
        frame(b"") * 2,
        b"\2\0\0\0\0",
        b"\0\xff\xff\xff\xffabc",
        frame(b"")[:-1],
        b"\0" * 9,
    ]
    compressed = [b"\1\0\0\0\3abc", b"\1\0\0\0\0", b"\1" + frame(gzip.compress(b""))[1:]]
    refusals = {(3, "REQUEST_MALFORMED"): malformed, (12, "GRPC_ENCODING_NOT_SUPPORTED"): compressed}
    seen = len(mesh.calls.seen)
    async with unharmed_strangers(edge, ada):
        for refusal, bodies in refusals.items():
            for body in bodies:
                # More often than a connection may fail before the edge closes it.
                native = [await http2(listen, GET_ACCOUNT, (*auth, *GRPC), body) for _ in range(4)]
                web = await http1(listen, "POST", GET_ACCOUNT, (*auth, *GRPC_WEB), body)
                assert {(each.grpc_status, reason_in(each)) for each in (*native, web)} == {refusal}, body
        assert len(mesh.calls.seen) == seen + 1  # the first call of `unharmed_strangers`


@pytest.mark.parametrize(
    "trailer", [("x-bin", b"!!!"), ("grpc-status", b"x"), ("grpc-timeout", b"5s"), ("x-odd", b"\xff")]
)
async def test_trailers_of_a_request_reach_nobody(
    edge: Edge, ada: httpx2.AsyncClient, trailer: tuple[str, bytes]
) -> None:
    async with unharmed_strangers(edge, ada):
        headers = (*token(ada), *GRPC)
        answer = await http2(edge.settings.listen, GET_ACCOUNT, headers, frame(b""), trailers=[trailer])
        assert answer.grpc_status == 0


async def test_an_odd_path_is_refused_instead_of_ending_the_server_behind(edge: Edge, ada: httpx2.AsyncClient) -> None:
    listen, auth = edge.settings.listen, token(ada)
    async with unharmed_strangers(edge, ada):
        for path in (
            GET_ACCOUNT + b"?\xff",
            GET_ACCOUNT + b"?x",
            GET_ACCOUNT + b"?%ff",
            b"/\xff",
            GET_ACCOUNT + b"\xff",
        ):
            answer = await http2(listen, path, (*auth, *GRPC), frame(b""))
            assert answer.reset or answer.grpc_status in (3, 12) or answer.status == 400, answer
        for path in (b"/v1/account?x=\xff", b"/v1/stories?page_token=\xc3\xa4", b"/v1/stories/\xff", b"/docs?\xff"):
            assert (await http1(listen, "GET", path, auth)).status == 400
        await http2(listen, GET_ACCOUNT, (*auth, *GRPC), frame(b""), authority=b"\xff")
        # A question mark without a query.
        assert (await http2(listen, GET_ACCOUNT + b"?", (*auth, *GRPC), frame(b""))).grpc_status == 0


async def test_the_listener_on_loopback_harms_nobody_either(edge: Edge, ada: httpx2.AsyncClient) -> None:
    async with unharmed_strangers(edge, ada):
        for header in (("grpc-timeout", b"5s"), ("x-thing-bin", b"!!!")):
            await http1(edge.settings.internal, "GET", b"/.well-known/jwks.json", [header])


async def test_a_service_learns_no_name_of_the_edge(edge: Edge, ada: httpx2.AsyncClient, mesh: Mesh) -> None:
    names: list[str] = []

    async def remember(_request: object, context: grpc.aio.ServicerContext[object, object]) -> None:
        names.append(dict(context.invocation_metadata() or ()).get("host", "") or context.peer())  # type: ignore[arg-type]

    mesh.calls.instead["GetAccount"] = remember
    await ada.get("/v1/account", headers={"host": "evil.example.com"})
    assert names
    assert "evil" not in str(names)


TOKEN_FORMS: dict[bytes, int] = {
    b"bearer %b": 200,
    b"BEARER %b": 200,
    b"bEaReR  %b": 200,
    b"Bearer\t%b": 200,
    b"Bearer \t %b \t": 200,
    b"Bearer%b": 401,
    b"Bearer,%b": 401,
    b"Bearer %b %b": 401,
    b"Bearer %b\xa0": 401,
    b"Bearer \xa0%b": 401,
    b"\xe2\x80\x8bBearer %b": 401,
    b"Token %b": 401,
}


@pytest.mark.parametrize("form", TOKEN_FORMS, ids=repr)
async def test_the_scheme_of_a_credential_is_free_of_case_and_blanks(
    edge: Edge, ada: httpx2.AsyncClient, mesh: Mesh, form: bytes
) -> None:
    (_, sent) = token(ada)[0]
    value = form.replace(b"%b", sent.removeprefix(b"Bearer "))
    answers = [await http1(edge.settings.listen, "GET", b"/v1/account", [("authorization", value)])]
    if b"\t" not in value:
        headers = (*GRPC, ("authorization", value))
        native = await http2(edge.settings.listen, GET_ACCOUNT, headers, frame(b""))
        assert native.grpc_status == (0 if TOKEN_FORMS[form] == 200 else 16)
        answers.append(native)
    web = await http1(edge.settings.listen, "POST", GET_ACCOUNT, (*GRPC_WEB, ("authorization", value)), frame(b""))
    assert answers[0].status == TOKEN_FORMS[form]
    if TOKEN_FORMS[form] == 401:
        assert {reason_in(answer) for answer in (*answers, web)} <= {"TOKEN_INVALID", "TOKEN_MISSING"}
        assert mesh.calls.seen == []
    else:
        assert {call.metadata["authorization"].encode() for call in mesh.calls.seen} == {sent}
        assert len(mesh.calls.seen) == len(answers) + 1


async def test_what_a_header_becomes_does_not_depend_on_what_was_sent_before(
    edge: Edge, ada: httpx2.AsyncClient, mesh: Mesh
) -> None:
    """The edge remembers values that it found clean: 1,000 of them at most."""
    (_, sent) = token(ada)[0]
    requests: list[Headers] = [
        (("authorization", sent), ("user-agent", b"Lo\xefc")),
        (("authorization", sent.lower()[:6] + sent[6:]), ("user-agent", b"Ada")),
        (("authorization", sent), ("x-user-agent", b"Ada\xff")),
        (("authorization", sent), ("user-agent", b"Ada"), ("user-agent", b"Lo\xefc")),
        (("authorization", sent), ("content-type", b"application/json"), ("content-type", b"Application/GRPC; a=1")),
        (("authorization", sent), ("content-type", b"Application/JSON;  charset=utf-8")),
    ]

    async def arrives() -> list[tuple[int, dict[str, str]]]:
        told = []
        for headers in requests:
            mesh.calls.seen.clear()
            answer = await http1(edge.settings.listen, "GET", b"/v1/account", headers)
            names = ("authorization", "content-type", "user-agent", "x-user-agent")
            reached = mesh.calls.seen[-1].metadata if mesh.calls.seen else {}
            told.append((answer.status, {name: reached[name] for name in names if name in reached}))
        return told

    first = await arrives()
    assert first[0] == (200, {**first[0][1], "authorization": sent.decode(), "user-agent": "Lo?c"})
    assert await arrives() == first
    for beginning in range(0, 1100, 10):
        agents = [f"agent {beginning + number}" for number in range(10)]
        await asyncio.gather(*(ada.get("/health", headers={"user-agent": agent}) for agent in agents))
    assert await arrives() == first
    # What is fine as an agent is none as a credential.
    both = [("authorization", b"Bearer no token"), ("user-agent", b"Bearer no token")]
    for _ in range(3):
        await http1(edge.settings.listen, "POST", b"/v1/sessions", [*JSON, *both], b"{}")
        reached = mesh.calls.seen[-1].metadata
        assert (reached["authorization"], reached["user-agent"]) == ("Bearer invalid", "Bearer no token")


async def test_odd_bytes_in_a_credential_make_it_invalid_and_reach_no_service(
    edge: Edge, ada: httpx2.AsyncClient, mesh: Mesh
) -> None:
    for value in (token(ada)[0][1] + b"\xa0", b"Bearer \xff", b"Basic \xff", b"\xff"):
        answer = await http1(edge.settings.listen, "GET", b"/v1/account", [("authorization", value)])
        assert (answer.status, reason_in(answer)) == (401, "TOKEN_INVALID")
        answer = await http1(edge.settings.listen, "POST", b"/v1/sessions", [*JSON, ("authorization", value)], b"{}")
        assert answer.status == 200
    assert {call.metadata["authorization"] for call in mesh.calls.seen} == {"Bearer invalid"}


@pytest.mark.parametrize(
    ("media_type", "status"),
    [
        (b"application/JSON", 200),
        (b"Application/json; charset=UTF-8", 200),
        (b"application/json;charset=utf-8", 200),
        (b"APPLICATION/JSON\t;\tcharset=utf-8", 200),
        (b"application/jsonx", 415),
        (b"application/problem+JSON", 415),
        (b"application/json\xa0", 415),
        (b"application/json, text/plain", 415),
        (b"text/JSON", 415),
    ],
)
async def test_a_media_type_is_free_of_case(edge: Edge, media_type: bytes, status: int) -> None:
    answer = await http1(
        edge.settings.listen, "POST", b"/v1/sessions", [("content-type", media_type)], b'{"login":"x"}'
    )
    assert answer.status == status


@pytest.mark.parametrize(
    "media_type",
    [b"APPLICATION/GRPC", b"Application/gRPC+Proto", b"application/grpc; charset=utf-8", b"application/grpc "],
)
async def test_grpcs_media_types_are_free_of_case(edge: Edge, ada: httpx2.AsyncClient, media_type: bytes) -> None:
    listen, auth = edge.settings.listen, token(ada)
    answer = await http2(listen, GET_ACCOUNT, (*auth, ("content-type", media_type), ("te", b"trailers")), frame(b""))
    assert answer.grpc_status == 0
    web = media_type.replace(b"/GRPC", b"/GRPC-Web").replace(b"/gRPC", b"/gRPC-Web").replace(b"/grpc", b"/grpc-web")
    answer = await http1(listen, "POST", GET_ACCOUNT, (*auth, ("content-type", web), ("x-grpc-web", b"1")), frame(b""))
    assert answer.status == 200
    assert answer.headers["content-type"].startswith("application/grpc-web")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/sessions?login=ada&password=secret"),
        ("POST", "/v1/sessions/?login=ada"),
        ("POST", "/v1//sessions?login=ada"),
        ("POST", "/v1/%73essions?login=ada"),
        ("POST", "/v1/sessions?%6cogin=ada"),
        ("POST", "/v1/sessions?deviceName=ada"),
        ("POST", "/v1/sessions;v=1?login=ada"),
        ("POST", "/v1/sessions?x-unknown=secret"),
        ("POST", "/v1/sessions?access_token=secret"),
        ("POST", "/v1/sessions?&"),
        ("POST", "/v1/sessions:logout?x=secret"),
        ("POST", "/v1/registrations/r:s:complete?code=secret"),
        ("POST", "/v1/stories?length=secret"),
        ("PATCH", "/v1/account?first_name=secret"),
        ("POST", "/storymesh.auth.v1.SessionService/CreateSession?login=ada"),
    ],
)
async def test_fields_of_a_body_are_not_taken_from_the_query(
    ada: httpx2.AsyncClient, mesh: Mesh, method: str, path: str
) -> None:
    for body in (b"{}", b""):
        answer = await ada.request(method, path, content=body, headers={"content-type": "application/json"})
        assert answer.status_code == 400
        assert reason(answer) == "REQUEST_MALFORMED"
        assert "query" in answer.json()["message"]
        assert "secret" not in answer.text
    assert mesh.calls.seen == []


@pytest.mark.parametrize("media_type", [b"Application/GRPC-Web+Proto", b"APPLICATION/grpc-web ; charset=utf-8"])
async def test_an_early_refusal_takes_the_form_of_its_call_however_its_type_is_written(
    edge: Edge, media_type: bytes
) -> None:
    headers = (("content-type", media_type), ("x-grpc-web", b"1"))
    answer = await http1(edge.settings.listen, "POST", GET_ACCOUNT + b"?a=1", headers, frame(b""))
    assert (answer.status, answer.grpc_status, reason_in(answer)) == (200, 3, "REQUEST_MALFORMED")


async def test_a_question_mark_alone_is_no_query_and_get_keeps_its_own(ada: httpx2.AsyncClient, mesh: Mesh) -> None:
    assert (await ada.post("/v1/sessions?", json={"login": "ada"})).status_code == 200
    assert (await ada.patch("/v1/account?", json={})).status_code != 400
    assert (await ada.get("/v1/stories?page_size=3")).status_code == 200
    assert mesh.calls.last.request.page_size == 3


FOREVER: list[tuple[str, str, bytes, Headers, int | None, int | None]] = [
    ("grpcurl list", "h2", b"/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", GRPC, None, 12),
    ("an unknown method", "h2", b"/any.Service/Method", GRPC, None, 12),
    ("a method for services", "h2", b"/storymesh.auth.v1.RevocationService/WatchRevocations", GRPC, None, 12),
    ("gRPC-Web to an unknown method", "POST", b"/any.Service/Method", GRPC_WEB, None, 12),
    ("a method by a wrong verb", "GET", GET_ACCOUNT, GRPC_WEB, None, 12),
    ("an unknown path", "POST", b"/v1/nothing", JSON, 404, None),
    (
        "an unknown path that waits for permission",
        "POST",
        b"/v1/nothing",
        (*JSON, ("expect", b"100-continue")),
        404,
        None,
    ),
    ("a wrong verb", "PUT", b"/v1/stories", JSON, 405, None),
    ("a wrong verb of a document", "POST", b"/health", JSON, 405, None),
    ("a document", "GET", b"/docs", (), 200, None),
    ("a wrong type", "POST", b"/v1/sessions", (("content-type", b"text/plain"),), 415, None),
    ("a WebSocket", "GET", b"/v1/stories", (("connection", b"upgrade"), ("upgrade", b"websocket")), 400, None),
]


@pytest.mark.parametrize(
    ("door", "path", "headers", "status", "code"), [each[1:] for each in FOREVER], ids=[each[0] for each in FOREVER]
)
async def test_what_leads_nowhere_is_answered_at_once_though_its_body_never_ends(
    patient: Address, door: str, path: bytes, headers: Headers, status: int | None, code: int | None
) -> None:
    if door == "h2":
        answer = await http2(patient, path, headers, frame(b""), ends=False)
    else:
        answer = await http1(patient, door, path, headers, b"x", ends=False)
    assert (answer.status if status else None, answer.grpc_status) == (status, code)


async def test_a_tunnel_is_refused_at_once(patient: Address) -> None:
    for answer in (
        await http2(patient, b"", method="CONNECT", authority=b"example.com:443", ends=False),
        await http1(patient, "CONNECT", b"example.com:443"),
    ):
        assert (answer.status, reason_in(answer)) == (405, "METHOD_NOT_ALLOWED")
