"""Objects in a real SeaweedFS: what a signed request admits, uploads in parts, and what is told when the server fails."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path
from time import monotonic

import httpx2
import pytest

from kit.data.object_errors import ObjectMissing, ObjectRefused, ObjectStoreUnavailable
from kit.data.objects import Objects, ObjectStore, Part
from kit.data.presigning import SignedRequest
from kit.rpc.statuses import as_mesh_error
from local.harness import Servers
from tests.waiting import until

SOON = timedelta(minutes=5)
DATA = b"the bytes, all the bytes and nothing but the bytes"
MIB = 1024 * 1024


@pytest.fixture
async def http() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(trust_env=False, timeout=30) as client:
        yield client


async def send(
    http: httpx2.AsyncClient, request: SignedRequest, body: bytes = b"", headers: Mapping[str, str] | None = None
) -> httpx2.Response:
    """Send a signed request; `headers` take the place of those that were signed."""
    sent = dict(request.headers if headers is None else headers)
    return await http.request(request.method, request.url, content=body, headers=sent)


def put_of(objects: Objects, key: str = "a/b", data: bytes = DATA, valid_for: timedelta = SOON) -> SignedRequest:
    return objects.presign_put(
        key, size=len(data), media_type="text/plain", sha256=sha256(data).digest(), valid_for=valid_for
    )


def part_of(objects: Objects, upload_id: str, number: int, data: bytes, key: str = "large") -> SignedRequest:
    return objects.presign_part(key, upload_id, number, size=len(data), sha256=sha256(data).digest(), valid_for=SOON)


def signed_for(parts: Sequence[Part], *data: bytes) -> list[Part]:
    """The parts with the digests of these bytes, as whoever signed their requests knows them."""
    return [replace(part, sha256=sha256(each).digest()) for part, each in zip(parts, data, strict=True)]


def raw(request: SignedRequest, **changed: str | None) -> tuple[str, dict[str, str]]:
    headers = {name.lower(): value for name, value in request.headers.items()}
    for name, value in changed.items():
        headers.pop(name.replace("_", "-"))
        if value is not None:
            headers[name.replace("_", "-")] = value
    return request.url, headers


async def test_a_signed_upload_admits_exactly_its_bytes_once(objects: Objects, http: httpx2.AsyncClient) -> None:
    request = put_of(objects)
    other_digest = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="
    for name, value in (
        ("content_type", "text/html"),
        ("content_type", None),
        ("if_none_match", None),
        ("if_none_match", '"etag"'),
        ("x_amz_checksum_sha256", other_digest),
        ("x_amz_checksum_sha256", None),
    ):
        url, headers = raw(request, **{name: value})
        answer = await http.put(url, content=DATA, headers=headers)
        assert answer.status_code == 403, (name, value, answer.text)
    for body in (DATA + b"!", DATA[:-1], b""):
        url, headers = raw(request, content_length=str(len(body)))
        assert (await http.put(url, content=body, headers=headers)).status_code == 403, body
    wrong = await send(http, request, DATA.replace(b"all", b"any"))
    assert (wrong.status_code, "BadDigest" in wrong.text) == (400, True)
    assert await objects.head("a/b") is None

    assert (await send(http, request, DATA)).status_code == 200
    assert (await send(http, request, DATA)).status_code == 412

    found = await objects.head("a/b")
    assert found
    assert (found.size, found.media_type, found.sha256) == (len(DATA), "text/plain", sha256(DATA).digest())


async def test_a_signed_request_is_for_its_key_method_and_time_alone(
    objects: Objects, object_store: ObjectStore, http: httpx2.AsyncClient
) -> None:
    request = put_of(objects)
    headers = dict(request.headers)
    for url in (
        request.url.replace("/a/b?", "/a/c?"),
        request.url + "&versionId=1",
        request.url.replace("X-Amz-Expires=300", "X-Amz-Expires=3000"),
        request.url[:-1] + ("0" if request.url[-1] != "0" else "1"),
        request.url.split("?")[0],
    ):
        assert (await http.put(url, content=DATA, headers=headers)).status_code == 403, url
    for method in ("GET", "DELETE", "POST"):
        url, without = raw(request, content_length=None)
        assert (await http.request(method, url, headers=without)).status_code in (403, 405), method
    stranger = Objects(replace(object_store, secret_key="another"))
    assert (await send(http, put_of(stranger), DATA)).status_code == 403
    nobody = Objects(replace(object_store, access_key="nobody"))
    assert (await send(http, put_of(nobody), DATA)).status_code == 403
    assert await objects.head("a/b") is None

    short = put_of(objects, valid_for=timedelta(seconds=1))

    async def expired() -> bool:
        return (await send(http, short, DATA.replace(b"all", b"any"))).status_code == 403

    await until(expired)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        # Makes a copy of another object out of an upload, past length, checksum and If-None-Match.
        ("x-amz-copy-source", "{bucket}/another"),
        ("x-amz-copy-source", "/{bucket}/another"),
        ("x-amz-acl", "public-read"),
        ("x-amz-meta-owner", "somebody"),
        ("x-amz-tagging", "a=b"),
        ("x-amz-website-redirect-location", "https://example.com/"),
    ],
)
async def test_a_signed_upload_is_refused_with_a_header_that_is_not_signed(
    objects: Objects, object_store: ObjectStore, http: httpx2.AsyncClient, name: str, value: str
) -> None:
    await objects.put("another", b"unchecked", media_type="text/plain")
    upload_id = await objects.start_parts("large", media_type="text/plain")
    whole, part = put_of(objects), part_of(objects, upload_id, 1, DATA)
    more = {name: value.format(bucket=object_store.bucket)}
    for request in (whole, part):
        assert (await send(http, request, DATA, {**request.headers, **more})).status_code == 403
    assert (await objects.head("a/b"), await objects.list_parts("large", upload_id)) == (None, [])
    assert (await send(http, whole, DATA)).status_code == 200
    assert (await send(http, whole, DATA, {**whole.headers, **more})).status_code == 403
    assert await objects.read("a/b", first=0, last=100) == DATA


async def test_a_signed_download_has_the_record_s_type_and_name_and_takes_ranges(
    objects: Objects, http: httpx2.AsyncClient
) -> None:
    data = bytes(range(256)) * 10
    await objects.put("page.html", data, media_type="text/html")
    request = objects.presign_get(
        "page.html", valid_for=SOON, media_type="application/octet-stream", disposition='attachment; filename="a b.bin"'
    )
    whole = await send(http, request)
    assert (whole.status_code, whole.content) == (200, data)
    assert whole.headers["content-type"] == "application/octet-stream"
    assert whole.headers["content-disposition"] == 'attachment; filename="a b.bin"'
    for asked, expected in (("bytes=0-9", data[:10]), ("bytes=2550-", data[2550:]), ("bytes=-4", data[-4:])):
        part = await http.get(request.url, headers={"range": asked})
        assert (part.status_code, part.content) == (206, expected), asked
    assert (await http.get(request.url, headers={"range": "bytes=9999-"})).status_code == 416
    shown = request.url.replace("attachment", "inline")
    assert (await http.get(shown)).status_code == 403
    gone = objects.presign_get("absent", valid_for=SOON, media_type="text/plain", disposition="attachment")
    assert (await send(http, gone)).status_code == 404


async def test_an_upload_in_parts_is_resumed_and_is_seen_when_it_is_whole(
    objects: Objects, http: httpx2.AsyncClient
) -> None:
    first, second, last = os.urandom(5 * MIB), os.urandom(5 * MIB), b"the end"
    upload = await objects.start_parts("large", media_type="application/pdf")
    assert [(each.key, each.upload_id) async for each in objects.list_uploads("la")] == [("large", upload)]
    assert [each async for each in objects.list_uploads("other")] == []

    assert (await send(http, part_of(objects, upload, 1, first), first)).status_code == 200
    wrong = await send(http, part_of(objects, upload, 2, second), second[:-1] + b"!")
    assert wrong.status_code == 400
    assert (await send(http, part_of(objects, upload, 3, last), last)).status_code == 200
    assert [(each.number, each.size) for each in await objects.list_parts("large", upload)] == [(1, 5 * MIB), (3, 7)]
    assert await objects.head("large") is None

    # A part may be sent again, by the same request.
    for _ in range(2):
        assert (await send(http, part_of(objects, upload, 2, second), second)).status_code == 200
    parts = await objects.list_parts("large", upload)
    assert [each.number for each in parts] == [1, 2, 3]
    other = signed_for(parts, first, first, last)
    with pytest.raises(ObjectRefused, match=r"InvalidPart|BadDigest"):
        await objects.complete_parts("large", upload, other)
    await objects.complete_parts("large", upload, signed_for(parts, first, second, last))

    found = await objects.head("large")
    assert found
    assert (found.size, found.media_type, found.sha256) == (10 * MIB + 7, "application/pdf", None)
    digest = sha256()
    async for chunk in objects.stream("large"):
        digest.update(chunk)
    assert digest.digest() == sha256(first + second + last).digest()
    assert await objects.read("large", first=5 * MIB - 2, last=5 * MIB + 1) == first[-2:] + second[:2]
    assert await objects.read("large", first=10 * MIB, last=99 * MIB) == last
    assert await objects.read("large", first=99 * MIB, last=100 * MIB) == b""
    with pytest.raises(ObjectMissing):
        await objects.list_parts("large", upload)
    assert (await send(http, part_of(objects, upload, 1, first), first)).status_code == 404


async def test_parts_that_are_too_small_or_others_make_no_object(objects: Objects, http: httpx2.AsyncClient) -> None:
    upload = await objects.start_parts("large", media_type="application/pdf")
    for number in (1, 2):
        assert (await send(http, part_of(objects, upload, number, DATA), DATA)).status_code == 200
    parts = signed_for(await objects.list_parts("large", upload), DATA, DATA)
    with pytest.raises(ObjectRefused, match="EntityTooSmall"):
        await objects.complete_parts("large", upload, parts)
    with pytest.raises(ObjectRefused, match="InvalidPart"):
        await objects.complete_parts("large", upload, [Part(1, 5, '"0123456789abcdef0123456789abcdef"', bytes(32))])
    assert await objects.head("large") is None

    await objects.abort_parts("large", upload)
    await objects.abort_parts("large", upload)

    assert [each async for each in objects.list_uploads("")] == []
    with pytest.raises(ObjectMissing):
        await objects.complete_parts("large", upload, parts)
    assert (await send(http, part_of(objects, upload, 1, DATA), DATA)).status_code == 404
    assert await objects.head("large") is None


async def test_objects_are_listed_in_pages_and_deleted_together(objects: Objects) -> None:
    for number in range(5):
        await objects.put(f"f/{number}", DATA, media_type="text/plain")
    await objects.put("g/0", DATA, media_type="text/plain")
    first = await objects.list("f/", most=2)
    assert ([each.key for each in first.objects], first.more) == (["f/0", "f/1"], True)
    rest = await objects.list("f/", after="f/1")
    assert ([each.key for each in rest.objects], rest.more) == (["f/2", "f/3", "f/4"], False)
    assert {each.size for each in rest.objects} == {len(DATA)}
    await objects.delete(["f/0", "f/2", "f/absent", *(f"f/many-{number}" for number in range(1500))])
    assert [each.key for each in (await objects.list("")).objects] == ["f/1", "f/3", "f/4", "g/0"]
    await objects.delete([])


async def test_what_is_written_again_is_whole_and_what_is_absent_is_told(objects: Objects) -> None:
    await objects.put("a", DATA, media_type="text/plain")
    await objects.put("a", b"new", media_type="image/webp")
    found = await objects.head("a")
    assert found
    assert (found.size, found.media_type, found.sha256) == (3, "image/webp", sha256(b"new").digest())
    with pytest.raises(ObjectMissing):
        await objects.read("absent", first=0, last=1)
    with pytest.raises(ObjectMissing):
        async for _ in objects.stream("absent"):
            pass


async def test_nothing_of_the_environment_changes_whom_it_asks(
    object_store: ObjectStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    config = tmp_path / "config"
    config.write_text("[default]\ns3 =\n  addressing_style = virtual\n")
    for name, value in {
        "AWS_PROFILE": "absent",
        "AWS_CONFIG_FILE": str(config),
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ENDPOINT_URL_S3": "http://127.0.0.1:1",
        "AWS_ACCESS_KEY_ID": "another",
        "AWS_CA_BUNDLE": "/nonexistent",
        "AWS_MAX_ATTEMPTS": "50",
        "AWS_USE_FIPS_ENDPOINT": "true",
        "AWS_USE_DUALSTACK_ENDPOINT": "true",
        "HTTP_PROXY": "http://127.0.0.1:1",
        "http_proxy": "http://127.0.0.1:1",
    }.items():
        monkeypatch.setenv(name, value)
    objects = Objects(object_store)
    try:
        await objects.check()
    finally:
        await objects.close()


@pytest.mark.parametrize("wrong", [{"bucket": "storymesh-absent"}, {"secret_key": "another"}, {"access_key": "nobody"}])
async def test_a_lost_bucket_or_key_is_no_lost_object(object_store: ObjectStore, wrong: dict[str, str]) -> None:
    objects = Objects(replace(object_store, **wrong))  # type: ignore[arg-type]  # fields of text alone
    try:
        for call in (
            objects.check(),
            objects.head("a"),
            objects.list(""),
            objects.read("a", first=0, last=1),
            objects.put("a", DATA, media_type="text/plain"),
            objects.delete(["a"]),
            objects.start_parts("a", media_type="text/plain"),
        ):
            with pytest.raises(ObjectStoreUnavailable):
                await call
    finally:
        await objects.close()


async def test_a_store_that_is_away_or_silent_is_told_within_its_time(object_store: ObjectStore) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        silent = f"http://127.0.0.1:{deaf.getsockname()[1]}"
        away = Objects(replace(object_store, endpoint=silent, seconds=2.0))
        with pytest.raises(ObjectStoreUnavailable):
            await away.head("a")
        deaf.listen()
        began = monotonic()
        with pytest.raises(ObjectStoreUnavailable) as refusal:
            await away.read("a", first=0, last=1)
        # Each attempt may take 2 s, and both together no more.
        assert monotonic() - began < 10
        await away.close()
    error = as_mesh_error(refusal.value)
    assert (error.code.name, error.metadata) == ("UNAVAILABLE", {"dependency": "object_store"})
    assert error.retry_after


async def test_a_killed_server_keeps_what_it_acknowledged_and_shows_nothing_half(
    objects: Objects, object_servers: Servers, http: httpx2.AsyncClient
) -> None:
    old, new = b"old" * MIB, os.urandom(9 * MIB)
    await objects.put("replaced", old, media_type="text/plain")
    kept = {f"kept/{number}": os.urandom(1000) for number in range(20)}
    await asyncio.gather(*(objects.put(key, data, media_type="text/plain") for key, data in kept.items()))
    part = os.urandom(5 * MIB)
    upload = await objects.start_parts("large", media_type="text/plain")
    assert (await send(http, part_of(objects, upload, 1, part), part)).status_code == 200
    halfway, killed = asyncio.Event(), asyncio.Event()

    async def slowly() -> AsyncIterator[bytes]:
        yield new[: 8 * MIB]
        halfway.set()
        await killed.wait()
        yield new[8 * MIB :]

    sent = [
        asyncio.create_task(http.put(request.url, content=slowly(), headers=dict(request.headers)))
        for request in (replacing(objects, "replaced", new), put_of(objects, "fresh", new))
    ]
    await halfway.wait()
    before = object_servers.pid("s3")
    object_servers.kill("s3")
    killed.set()
    results = await asyncio.gather(*sent, return_exceptions=True)
    assert all(isinstance(each, httpx2.HTTPError) for each in results), results
    await object_servers.healthy("s3", not_pid=before, seconds=60)

    async def answers() -> bool:
        try:
            await objects.check()
        except ObjectStoreUnavailable:
            return False
        return True

    await until(answers)
    assert await objects.head("fresh") is None
    assert await objects.read("replaced", first=0, last=len(new)) == old
    for key, data in kept.items():
        assert await objects.read(key, first=0, last=1000) == data
    assert (await send(http, part_of(objects, upload, 2, DATA), DATA)).status_code == 200
    await objects.complete_parts("large", upload, signed_for(await objects.list_parts("large", upload), part, DATA))
    assert await objects.read("large", first=5 * MIB - 3, last=6 * MIB) == part[-3:] + DATA


def replacing(objects: Objects, key: str, data: bytes) -> SignedRequest:
    """An upload that may replace an object, as the mesh itself does it."""
    return objects._presigner.sign(
        "PUT",
        key,
        at=objects._clock(),
        valid_for=SOON,
        headers={"Content-Length": str(len(data)), "Content-Type": "text/plain"},
    )
