"""The object store of a local mesh: its ports, its secrets, what it is to others, and what it leaves behind."""

import json
import re
import stat
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from time import monotonic
from typing import Any, cast

import grpc
import httpx2
import psutil
import pytest

from deploy import buckets
from kit.data.object_errors import ObjectStoreUnavailable
from kit.data.objects import Objects, ObjectStore
from kit.runtime import development_secrets
from local.failures import LocalError
from local.layout import Layout, port_offsets
from local.mesh import addresses
from local.mesh.assembly import assemble
from local.mesh.components import s3, services
from local.mesh.writers import LocalWriter
from mesh.catalog import FIRST_SPARE_PORT, FIRST_STORE_PORT, manifests
from mesh.manifest import OBJECT_STORE, Manifest
from tests.local.processes import Supervised, killed, supervised
from tests.waiting import until

TOY = Manifest(port=170, needs=(OBJECT_STORE,))
OTHER = Manifest(port=160, needs=(OBJECT_STORE,))
ORIGIN = "https://app.example.com"


@pytest.fixture
def with_toys(monkeypatch: pytest.MonkeyPatch) -> Mapping[str, Manifest]:
    """A mesh two of whose services keep objects."""
    found = {name: replace(each, needs=()) for name, each in manifests().items()} | {"toy": TOY, "other": OTHER}
    monkeypatch.setattr(s3, "manifests", lambda: found)
    return found


def on(layout: Layout, **chosen: str) -> Layout:
    return Layout(layout.settings.model_copy(update=chosen))


def bucket(layout: Layout, service: str, *, of: str = "") -> Objects:
    """The service's own key, for its own bucket or that of another."""
    store = s3.Store(layout)
    settings = buckets.settings_of(service, store.endpoint, store.endpoint)
    return Objects(
        ObjectStore(
            endpoint=settings["S3_ENDPOINT"],
            public_endpoint=settings["S3_PUBLIC_ENDPOINT"],
            region=settings["S3_REGION"],
            bucket=buckets.bucket_of(of or service),
            access_key=settings["S3_ACCESS_KEY"],
            secret_key=store.secret(service),
        )
    )


@pytest.fixture
async def running(layout: Layout, with_toys: Mapping[str, Manifest]) -> AsyncIterator[Supervised]:
    layout = on(layout, s3_origins=f"{ORIGIN}, https://other.example.com")
    layout.create()
    async with supervised(layout, [s3.component(layout)]) as mesh:
        yield mesh


def sockets(layout: Layout) -> list[Path]:
    ports = [layout.port(name) for name in s3.PORTS.values()]
    return [
        path for path in s3.SOCKETS.glob("seaweedfs-*.sock") if any(path.stem.endswith(f"-{port}") for port in ports)
    ]


async def test_a_service_uses_its_own_bucket_and_no_other(running: Supervised) -> None:
    toy, thief, stranger = (
        bucket(running.layout, "toy"),
        bucket(running.layout, "toy", of="other"),
        bucket(running.layout, "other"),
    )
    try:
        await toy.check()
        await toy.put("a", b"bear", media_type="text/plain")
        assert await toy.read("a", first=0, last=9) == b"bear"
        assert [each.key for each in (await toy.list("")).objects] == ["a"]
        upload = await toy.start_parts("large", media_type="text/plain")
        assert [each.upload_id async for each in toy.list_uploads("")] == [upload]
        await toy.abort_parts("large", upload)
        await stranger.put("b", b"doll", media_type="text/plain")
        for forbidden in (
            thief.read("b", first=0, last=9),
            thief.put("b", b"mine", media_type="text/plain"),
            thief.check(),
            thief.list(""),
            thief.start_parts("b", media_type="text/plain"),
        ):
            with pytest.raises(ObjectStoreUnavailable, match="403"):
                await forbidden
        assert await stranger.read("b", first=0, last=9) == b"doll"
        await toy.delete(["a"])
        assert await toy.head("a") is None
    finally:
        for each in (toy, thief, stranger):
            await each.close()


async def test_nobody_without_a_key_reads_writes_or_orders_anything_at_any_port(running: Supervised) -> None:
    layout = running.layout
    async with httpx2.AsyncClient(trust_env=False, timeout=10) as http:
        inner = [layout.port(name) for name in ("s3-master", "s3-volume", "s3-filer")]
        for port in inner:
            for method, path in (
                ("GET", "/buckets/storymesh-toy/"),
                ("POST", "/buckets/storymesh-toy/x"),
                ("GET", "/dir/assign"),
                ("POST", "/vol/grow?count=1"),
                ("POST", "/col/delete?collection=storymesh-toy"),
                ("GET", "/1,01637037d6"),
                ("DELETE", "/1,01637037d6"),
                ("POST", "/submit"),
            ):
                answer = await http.request(method, f"http://127.0.0.1:{port}{path}")
                assert answer.status_code in (400, 401, 403, 404, 405), (port, method, path, answer.text)
        for path in ("/", "/storymesh-toy", "/storymesh-toy/a"):
            for method in ("GET", "PUT", "DELETE"):
                answer = await http.request(method, f"http://127.0.0.1:{layout.port('s3')}{path}")
                assert answer.status_code in (403, 405), (method, path)
    for name, call in (
        ("s3-filer-grpc", "/filer_pb.SeaweedFiler/ListEntries"),
        ("s3-master-grpc", "/master_pb.Seaweed/Assign"),
        ("s3-volume-grpc", "/volume_server_pb.VolumeServer/VolumeServerStatus"),
        ("s3-grpc", "/s3_pb.SeaweedS3/Configure"),
    ):
        async with grpc.aio.insecure_channel(layout.address(name)) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await cast("Any", channel.unary_unary(call))(b"", timeout=5)
            assert refused.value.code() is grpc.StatusCode.UNAVAILABLE, name


async def test_pages_of_the_origins_that_are_named_may_use_it_and_no_others(running: Supervised) -> None:
    async def allowed(origin: str) -> str | None:
        asked = {
            "Origin": origin,
            "Access-Control-Request-Method": "PUT",
            "Access-Control-Request-Headers": "content-type,if-none-match,x-amz-checksum-sha256",
        }
        async with httpx2.AsyncClient(trust_env=False) as http:
            answer = await http.options(f"http://{running.layout.address('s3')}/storymesh-toy/a", headers=asked)
        return answer.headers.get("access-control-allow-origin") if answer.status_code == 200 else None

    assert [await allowed(origin) for origin in (ORIGIN, "https://other.example.com", "https://evil.example.com")] == [
        ORIGIN,
        "https://other.example.com",
        None,
    ]
    store = s3.Store(running.layout)
    await buckets.provision(store.endpoint, store.secret(buckets.OPERATOR), ["toy"], origins=[])
    assert await allowed(ORIGIN) is None


async def test_it_stays_within_the_mesh_s_ports_and_its_memory_is_bounded(running: Supervised) -> None:
    layout = running.layout
    process = psutil.Process(running.record("s3")[1])
    listening = {each.laddr.port for each in process.net_connections("tcp") if each.status == psutil.CONN_LISTEN}
    assert listening == {layout.port(name) for name in s3.PORTS.values()}
    assert {each.laddr.ip for each in process.net_connections("tcp")} == {"127.0.0.1"}
    asked = {each.raddr.port for each in process.net_connections("tcp") if each.raddr}
    mine = range(layout.settings.base_port, layout.settings.base_port + 200)
    assert {port for port in asked if port not in mine and port < 32768} == set()
    assert process.environ()["GOMEMLIMIT"] == s3.MEMORY

    objects = bucket(layout, "toy")
    data = bytes(32 * 1024 * 1024)
    for number in range(8):
        await objects.put(f"{number}", data, media_type="text/plain")
    for number in range(8):
        async for _ in objects.stream(f"{number}"):
            pass
    await objects.close()
    assert process.memory_info().rss < 700 * 1024 * 1024


async def test_its_secrets_are_in_files_of_their_owner_alone(running: Supervised) -> None:
    layout = running.layout
    for folder in (layout.run / "s3", layout.secrets / "s3"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        for path in folder.iterdir():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    listed = json.loads((layout.run / "s3" / buckets.KEYS).read_text())["identities"]
    secrets = {each["name"]: each["credentials"][0]["secretKey"] for each in listed}
    assert secrets.keys() == {"operator", "toy", "other"}
    assert all(development_secrets.is_marked(secret) for secret in secrets.values())
    tokens = re.findall(r'key = "([^"/]+)"', (layout.run / "s3" / buckets.SECURITY).read_text())
    assert len(tokens) == 4
    process = psutil.Process(running.record("s3")[1])
    shown = " ".join([*process.cmdline(), *process.environ().values()]) + layout.log("s3").read_text()
    assert [name for name, secret in secrets.items() if secret in shown] == []
    assert [token for token in tokens if token in shown] == []


async def test_a_killed_store_is_started_again_and_a_stopped_one_leaves_nothing_outside_its_folder(
    layout: Layout, with_toys: Mapping[str, Manifest]
) -> None:
    layout.create()
    async with supervised(layout, [s3.component(layout)]) as mesh:
        assert len(sockets(layout)) > 0
        objects = bucket(layout, "toy")
        await objects.put("a", b"bear", media_type="text/plain")
        _, first, _ = mesh.record("s3")
        killed(first)

        async def again() -> bool:
            return mesh.record("s3")[0].fine and mesh.record("s3")[1] not in (first, None)

        await until(again, 30)
        assert await objects.read("a", first=0, last=9) == b"bear"
        await objects.close()
        began = monotonic()
    assert monotonic() - began < 5
    assert sockets(layout) == []
    with pytest.raises(buckets.BucketsFailed, match="does not answer"):
        await buckets.answers(s3.Store(layout).endpoint, "secret")


def test_a_mesh_none_of_whose_services_keeps_objects_has_no_store(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout.create()
    without = {name: replace(each, needs=tuple(set(each.needs) - {OBJECT_STORE})) for name, each in manifests().items()}
    for keeping in (False, True):
        found = without | ({"auth": replace(without["auth"], needs=(OBJECT_STORE,))} if keeping else {})
        for module in ("assembly", "components.s3", "components.services", "addresses"):
            monkeypatch.setattr(f"local.mesh.{module}.manifests", lambda found=found: found)
        assert ("s3" in {each.name for each in assemble(layout).components}) is keeping
        assert ("s3" in addresses.of(layout)) is keeping


def test_a_service_is_told_of_its_bucket_and_has_the_secret_in_its_folder(
    layout: Layout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("STORYMESH_S3_REGION", "eu-central-1")
    layout.create()
    services.share_secrets(layout)
    told = next(
        each.environment for each in services.components(layout, LocalWriter("composer")) if each.name == "file"
    )
    assert {name: value for name, value in told.items() if name.startswith("STORYMESH_S3_")} == {
        "STORYMESH_S3_ENDPOINT": f"http://{layout.address('s3')}",
        "STORYMESH_S3_PUBLIC_ENDPOINT": f"http://{layout.address('s3')}",
        "STORYMESH_S3_REGION": "eu-central-1",
        "STORYMESH_S3_BUCKET": "storymesh-file",
        "STORYMESH_S3_ACCESS_KEY": "storymesh-file",
    }
    secret = layout.secrets / "file" / "storymesh_s3_secret_key"
    assert secret.read_text() == s3.Store(layout).secret("file")
    assert stat.S_IMODE(secret.stat().st_mode) == 0o600


def test_its_ports_lie_apart_from_those_of_services_and_tests() -> None:
    offsets = {port_offsets()[name] for name in s3.PORTS.values()}
    assert offsets <= set(range(FIRST_STORE_PORT, FIRST_SPARE_PORT))
    assert len(offsets) == len(s3.PORTS) == 8


def test_a_missing_program_is_told_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(s3, "PACKAGE", "seaweedfs-absent")
    with pytest.raises(LocalError, match="seaweedfs-absent is not installed, run `make setup`"):
        s3.program()


def test_origins_are_a_list_separated_by_commas() -> None:
    assert buckets.listed("") == []
    assert buckets.listed(" https://a.example , https://b.example,") == ["https://a.example", "https://b.example"]
