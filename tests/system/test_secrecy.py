"""No password, code, token or key appears in anything that operators see or the mesh stores."""

from __future__ import annotations

import json
import re
from functools import partial
from typing import Any
from uuid import uuid4

import httpx2
import psycopg
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from redis.asyncio import Redis

from local.harness import RunningMesh
from tests.mails import text_of
from tests.system.collector import Collector
from tests.system.conftest import code_for, databases_of, mails_to
from tests.system.doors import Door
from tests.system.members import begun, body_of, new_address, wrong
from tests.system.remains import kept
from tests.system.secrecy import Beginning, Secrets, logs, overheard, processes, spans
from tests.waiting import until
from tests.wire import frame, http1, http2


async def test_no_secret_shows_anywhere_after_all_that_people_do_and_do_wrong(
    mesh: RunningMesh, both_doors: Door, collector: Collector, mesh_redis: Redis
) -> None:
    secrets = Secrets()
    secrets.add_folder(mesh.layout.secrets)
    begun = Beginning.now(mesh, collector)
    senders = ("edge", "auth-serve")
    sent = {service: named(collector, service, "DeleteAccount") for service in senders}
    async with overheard(mesh_redis) as heard:
        kept_meanwhile = await everything_done(mesh, both_doors, secrets, mesh_redis)
        await until(lambda: all(named(collector, each, "DeleteAccount") > sent[each] for each in senders))
    pieces = [
        *kept_meanwhile,
        *heard,
        *await kept(mesh, mesh_redis),
        *logs(mesh, begun),
        *spans(collector, begun),
        *processes(mesh),
    ]
    assert any(b"inbox:notification" in command for _, command in heard)
    places = {place for place, _ in pieces}
    assert {"the log envoy.log", "the log auth.log", "the environment of envoy", "auth.users.password_hash"} <= places
    assert {place.split(",")[0] for place in places} >= {"a span of edge", "a span of auth-serve"}
    assert secrets.found_in(pieces) == set()


def named(collector: Collector, service: str, method: str) -> int:
    """Return the number of spans of a method that a service has exported."""
    return sum(method in span.SerializeToString().decode(errors="replace") for span in collector.spans(service))


async def everything_done(mesh: RunningMesh, door: Door, secrets: Secrets, redis: Redis) -> list[tuple[str, bytes]]:
    """Use every method of an account's life; return the stores as they were before its deletion."""
    first, second, third, mistaken = (f"pass word \N{SNOWMAN} of {uuid4().hex}" for _ in range(4))
    secrets.add("a password", first, second, third)
    secrets.add("a wrong password", mistaken)
    email, new = new_address(), new_address()

    async def signed_in(name: str, **request: Any) -> dict[str, Any]:
        body = body_of(await door.call(name, **request))
        secrets.add_tokens(body)
        return body

    async def mailed(address: str, digits: int, number: int = 1) -> str:
        code = await code_for(mesh.mail_dir, address, digits, number=number)
        secrets.codes |= {code, wrong(code)}
        return code

    registration_id = await begun(door, email, password=first)
    code = await mailed(email, 6)
    await door.call("CompleteRegistration", registration_id=registration_id, code=wrong(code))
    body_of(await door.call("ResendRegistrationCode", registration_id=registration_id))
    code = await mailed(email, 6, number=2)
    body = await signed_in("CompleteRegistration", registration_id=registration_id, code=code)
    device_token = body["device_token"]

    # Right passwords, wrong ones, and ones typed into the wrong field.
    await signed_in("CreateSession", login=email, password=first, device_token=device_token)
    for login, password in ((email, mistaken), (mistaken, first), (first, mistaken)):
        assert not (await door.call("CreateSession", login=login, password=password)).ok
    await mistakes(mesh, first, body["tokens"])

    spent = body["tokens"]["refresh_token"]
    successor = await signed_in("RefreshSession", refresh_token=spent)
    await signed_in("RefreshSession", refresh_token=successor["tokens"]["refresh_token"])
    assert (await door.call("RefreshSession", refresh_token=spent)).reason == "REFRESH_REUSED"

    challenge_id = body_of(await door.call("StartSessionCode", email=email))["challenge_id"]
    code = await mailed(email, 8)
    await door.call("CompleteSessionCode", challenge_id=challenge_id, code=wrong(code))
    token = (await signed_in("CompleteSessionCode", challenge_id=challenge_id, code=code))["tokens"]["access_token"]

    call = partial(door.call, token=token)
    assert not (await call("ChangePassword", current_password=mistaken, new_password=second)).ok
    body_of(await call("ChangePassword", current_password=first, new_password=second))
    challenge_id = body_of(await door.call("StartPasswordReset", email=email))["challenge_id"]
    code = await mailed(email, 8, number=2)
    body_of(await door.call("CompletePasswordReset", challenge_id=challenge_id, code=code, new_password=third))
    token = (await signed_in("CreateSession", login=email, password=third))["tokens"]["access_token"]

    call = partial(door.call, token=token)
    challenge_id = body_of(await call("StartEmailChange", new_email=new, password=third))["challenge_id"]
    stop_token = await stop_token_for(mesh, email)
    secrets.add("a stop token", stop_token)
    assert not (await door.call("StopEmailChange", stop_token=f"{stop_token}x")).ok
    code = await mailed(new, 8)
    body_of(await call("CompleteEmailChange", challenge_id=challenge_id, code=code))
    body_of(await call("CreateStory", theme="a key", length="STORY_LENGTH_SHORT"))
    for name in ("ListStories", "ListSessions", "ListNotifications"):
        body_of(await call(name))
    before = await kept(mesh, redis)
    body_of(await call("DeleteAccount", password=third))
    return before


async def stop_token_for(mesh: RunningMesh, address: str) -> str:
    """Return the token from the mail that announced a change of address."""

    def found() -> list[str]:
        texts = [text_of(mail) for mail in mails_to(mesh.mail_dir, address)]
        return [match[0] for text in texts if (match := re.search(r"sms1_[\w-]{43}", text))]

    (token,) = await until(found)
    return token


async def mistakes(mesh: RunningMesh, password: str, tokens: dict[str, str]) -> None:
    """Make the mistakes of careless clients, which put secrets in wrong places."""
    access, refresh = tokens["access_token"], tokens["refresh_token"]
    async with httpx2.AsyncClient(base_url=mesh.edge_url, timeout=20) as http:
        for response in (
            await http.get("/v1/stories", params={"access_token": access}),
            await http.post("/v1/sessions", params={"login": "somebody", "password": password}, json={}),
            await http.post("/v1/sessions:refresh", params={"refresh_token": refresh}, json={}),
            await http.post("/v1/sessions", content=f'{{"login": "x", "password": "{password}", "pass": 1}}'),
            await http.post("/v1/sessions", json={"login": "x", "password": password, password: password}),
            await http.post("/v1/sessions", json={"login": "x", "password": [password]}),
            await http.get("/v1/stories", headers={"authorization": f"Bearer {refresh}"}),
            await http.get("/v1/stories", headers={"authorization": f"Basic {access}"}),
            await http.get("/v1/stories", headers={"authorization": f"Bearer {access}x"}),
            await http.get("/v1/account", headers={"authorization": f"Bearer {access}", "cookie": f"token={access}"}),
        ):
            assert response.status_code in (200, 400, 401, 415)
    await stray_bytes(mesh, password, access)


async def stray_bytes(mesh: RunningMesh, password: str, access: str) -> None:
    """Send headers that are not UTF-8, credentials among them, through both doors and to services directly: services log them."""
    edge, past = (_split(address) for address in (mesh.edge_address, mesh.address("auth")))
    text, account = access.encode(), b"/storymesh.auth.v1.AccountService/GetAccount"
    grpc_ = (("content-type", b"application/grpc"), ("te", b"trailers"))
    web = (("content-type", b"application/grpc-web+proto"), ("x-grpc-web", b"1"))
    for odd in (
        (("authorization", b"Bearer " + text + b"\xa0"),),
        (("authorization", b"Bearer \xff" + text),),
        (("authorization", b"Bearer " + text), ("x-note", b"\xff" + text), ("cookie", b"token=" + text + b"\xff")),
        (("authorization", b"Bearer " + text), ("user-agent", b"Lo\xefc's iPad")),
    ):
        for answer in (
            await http1(edge, "GET", b"/v1/account", odd),
            await http1(edge, "POST", account, (*web, *odd), frame(b"")),
            await http2(edge, account, (*grpc_, *odd), frame(b"")),
            await http2(past, account, (*grpc_, *odd), frame(b"")),
            await http2(past, b"/grpc.health.v1.Health/Check", (*grpc_, *odd), frame(b"")),
            await http2(past, b"/any.Service/" + text, (*grpc_, *odd), frame(b"")),
        ):
            assert answer.status in (200, 401)
    for query in (b"?access_token=" + text + b"\xff", b"?password=" + password.encode()):
        answer = await http2(edge, account + query, grpc_, frame(b""))
        assert answer.reset or answer.grpc_status == 3


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


async def test_a_planted_secret_is_found_wherever_it_may_lie(
    mesh: RunningMesh, collector: Collector, mesh_redis: Redis
) -> None:
    begun = Beginning.now(mesh, collector)
    secrets = Secrets()
    secret, code = f"planted \N{SNOWMAN} {uuid4().hex}", "31415926"
    secrets.add("it", secret)
    secrets.codes.add(code)
    log = mesh.layout.logs / "planted.log"
    line = {"event.duration": int(code), "message": f"the code is {code} for {secret}"}
    log.write_text(json.dumps(line) + "\n")
    export = ExportTraceServiceRequest()
    resource = export.resource_spans.add()
    resource.resource.attributes.add(key="service.name").value.string_value = "planted"
    span = resource.scope_spans.add().spans.add(name="sign in")
    span.events.add(name="failed").attributes.add(key="password").value.string_value = secret
    collector.exports.append(export)
    await mesh_redis.xadd("planted", {"event": secret.encode().hex()})
    try:
        async with await psycopg.AsyncConnection.connect(databases_of(mesh)["auth"]) as connection:
            await connection.execute("CREATE TABLE planted (payload bytea)")
            await connection.execute("INSERT INTO planted VALUES (%s)", (b"\x0a\x08" + code.encode() + b"\x12",))
        assert secrets.found_in([*await kept(mesh, mesh_redis), *logs(mesh, begun), *spans(collector, begun)]) == {
            "it in the log planted.log",
            "a code in the log planted.log",
            "it in a span of planted, sign in",
            "it in redis planted",
            "a code in auth.planted.payload",
        }
    finally:
        async with await psycopg.AsyncConnection.connect(databases_of(mesh)["auth"]) as connection:
            await connection.execute("DROP TABLE planted")
        await mesh_redis.delete("planted")
        collector.exports.remove(export)
        log.unlink()
