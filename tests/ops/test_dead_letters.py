"""The operators' service lists and settles the dead letters of all services with the administrator's own token."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import grpc
import pytest
from google.rpc.error_details_pb2 import ErrorInfo
from grpc import StatusCode
from grpc.aio import AioRpcError
from storymesh.events.v1 import story_events_pb2
from storymesh.ops.v1 import dead_letter_service_pb2 as pb
from storymesh.ops.v1.dead_letter_service_pb2_grpc import (
    DeadLetterServiceStub,
    add_DeadLetterServiceServicer_to_server,
)

from kit.data.database import Database
from kit.errors import InvalidArgument, Violation
from kit.events import dead_letter_store
from kit.events.dead_letter_model import DeadLetterStore
from kit.events.dead_letter_service import DeadLetterServicer
from kit.events.dead_letters import DeadLetters
from kit.events.envelope import Event
from kit.identity.revocations import Revocation, RevocationKind
from kit.identity.signing import Signer
from kit.rpc.resources import Resources
from kit.rpc.server import Server
from kit.runtime.settings import ServiceSettings
from mesh.catalog import manifests
from mesh.manifest import INBOX
from services.ops.__main__ import api
from services.ops.config import RECEIVERS, OpsSettings
from services.ops.operations import operations
from services.ops.operations.dead_letters import DeadLetterAggregator
from services.ops.peers import dead_letter_stores
from tests.conftest import empty
from tests.identity import MESH_KEY, Issuer, bearer, service_tokens
from tests.statuses import detail, raises_status, violated_fields
from tests.waiting import until

if TYPE_CHECKING:
    from storymesh.ops.v1.dead_letter_service_pb2_grpc import DeadLetterServiceAsyncStub

KEY = "bW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW0="
ADMIN = uuid4()


@dataclass
class Ops:
    """Two services with dead letters of their own, and the operators' service in front of them."""

    notification: Database
    story: Database
    stub: DeadLetterServiceAsyncStub
    issuer: Issuer
    story_server: Server
    story_issuer: Issuer

    def auth(self, role: str = "ADMIN") -> tuple[tuple[str, str], ...]:
        return bearer(self.issuer.token(ADMIN, role))

    async def page(self, service: str = "", size: int = 0, token: str = "") -> pb.ListDeadLettersResponse:
        request = pb.ListDeadLettersRequest(service=service, page_size=size, page_token=token)
        return await self.stub.ListDeadLetters(request, metadata=self.auth())

    async def replay(self, service: str, *events: UUID, dry_run: bool = False) -> list[str]:
        request = pb.ReplayDeadLettersRequest(
            service=service, event_ids=map(str, events), reason="mended", dry_run=dry_run
        )
        answer = await self.stub.ReplayDeadLetters(request, metadata=self.auth())
        return [letter.event_id for letter in answer.dead_letters]

    async def discard(self, service: str, *events: UUID) -> list[str]:
        request = pb.DiscardDeadLettersRequest(service=service, event_ids=map(str, events), reason="not needed")
        answer = await self.stub.DiscardDeadLetters(request, metadata=self.auth())
        return [letter.event_id for letter in answer.dead_letters]


@asynccontextmanager
async def serving(name: str, store: DeadLetterStore, issuer: Issuer) -> AsyncIterator[tuple[Server, str]]:
    server = Server(ServiceSettings(listen="127.0.0.1:0", mesh_key=KEY, drain_seconds=1), required={})
    servicer = DeadLetterServicer(store)
    server.add(add_DeadLetterServiceServicer_to_server, servicer)
    running = asyncio.create_task(server.run(issuer.access_tokens(), service_tokens(name)))
    try:
        yield server, await server.address
    finally:
        server.stopping.set()
        await running


@pytest.fixture
async def ops(database_of: Callable[[str], Database]) -> AsyncIterator[Ops]:
    own, theirs = database_of("notification"), database_of("story")
    await empty(own)
    await empty(theirs)
    issuer = Issuer()
    # The same keys, and a list of revocations of its own.
    story_issuer = Issuer(kid=issuer.kid, key=issuer.key)
    async with (
        serving("story", DeadLetters(theirs, "story", Signer(b"s" * 32)), story_issuer) as (story_server, storys),
        serving("notification", DeadLetters(own, "notification", Signer(b"n" * 32)), issuer) as (_, notifications),
    ):
        settings = OpsSettings.model_validate(
            {
                "listen": "127.0.0.1:0",
                "mesh_key": MESH_KEY,
                "cursor_key": b"o" * 32,
                "drain_seconds": 1,
                "story_target": storys,
                "notification_target": notifications,
            }
        )
        async with Resources("ops", settings, revocations=issuer.revocations) as resources:
            stores = dead_letter_stores(resources)
            two = {name: stores[name] for name in ("notification", "story")}
            server = api(resources, operations(settings, resources, two))
            running = asyncio.create_task(server.run(issuer.access_tokens(), resources.service_tokens))
            async with grpc.aio.insecure_channel(await server.address) as calling:
                yield Ops(own, theirs, DeadLetterServiceStub(calling), issuer, story_server, story_issuer)
            server.stopping.set()
            await running


async def bury(db: Database, *events: Event, inbox: str = "notification") -> None:
    for each in events:
        async with db.transaction() as tx:
            await dead_letter_store.record(
                tx,
                event_id=each.id,
                inbox=inbox,
                type_=each.type,
                key=each.key,
                event=each.to_bytes(),
                reason="broken",
                failures=1,
            )


def story_requested() -> Event:
    message = story_events_pb2.StoryRequested(story_id=str(uuid4()))
    return Event(
        id=uuid4(),
        type=message.DESCRIPTOR.full_name,
        key=message.story_id,
        occurred_at=datetime.now(UTC),
        traceparent="",
        payload=message.SerializeToString(),
    )


def test_every_service_that_takes_events_is_asked_for_its_dead_letters() -> None:
    """A new service needs no line in the operators' service."""
    assert (
        set(RECEIVERS) == {name for name, manifest in manifests().items() if INBOX in manifest.kit_tables} >= {"story"}
    )
    assert {f"{name}_target" for name in RECEIVERS} <= OpsSettings.model_fields.keys()


async def test_both_services_are_listed_in_one_order_page_by_page(ops: Ops) -> None:
    theirs, own = [story_requested() for _ in range(3)], [story_requested() for _ in range(2)]
    for db, letter in ((ops.story, theirs[0]), (ops.notification, own[0]), (ops.story, theirs[1])):
        await bury(db, letter)
    await bury(ops.story, theirs[2])
    await bury(ops.notification, own[1])
    everything = await ops.page()
    assert [(letter.event_id, letter.service) for letter in everything.dead_letters] == [
        (str(own[1].id), "notification"),
        (str(theirs[2].id), "story"),
        (str(theirs[1].id), "story"),
        (str(own[0].id), "notification"),
        (str(theirs[0].id), "story"),
    ]
    assert everything.next_page_token == ""
    seen, token, pages = [], "", 0
    while pages == 0 or token:
        page = await ops.page(size=1, token=token)
        seen += [letter.event_id for letter in page.dead_letters]
        token, pages = page.next_page_token, pages + 1
    assert (sorted(seen), pages) == (sorted(str(each.id) for each in (*theirs, *own)), 3)


async def test_one_service_can_be_asked_for(ops: Ops) -> None:
    theirs, own = [story_requested() for _ in range(3)], story_requested()
    await bury(ops.story, *theirs)
    await bury(ops.notification, own)
    assert [letter.event_id for letter in (await ops.page("notification")).dead_letters] == [str(own.id)]
    first = await ops.page("story", size=2)
    second = await ops.page("story", size=2, token=first.next_page_token)
    assert [letter.event_id for letter in (*first.dead_letters, *second.dead_letters)] == [
        str(each.id) for each in theirs[::-1]
    ]


async def test_a_page_token_of_another_list_is_refused(ops: Ops) -> None:
    for db in (ops.story, ops.notification):
        await bury(db, *(story_requested() for _ in range(3)))
    tokens = {service: (await ops.page(service, size=1)).next_page_token for service in ("", "story", "notification")}
    assert all(tokens.values())
    for service in tokens:
        for token in ("made-up", *(each for name, each in tokens.items() if name != service)):
            with pytest.raises(AioRpcError) as raised:
                await ops.page(service, token=token)
            assert raised.value.code() is StatusCode.INVALID_ARGUMENT
            assert violated_fields(raised.value) == ["page_token"]


async def test_page_tokens_of_many_services_together_are_taken(database_of: Callable[[str], Database]) -> None:
    db, issuer = database_of("story"), Issuer()
    await empty(db)
    await bury(db, story_requested(), story_requested())
    names = [f"notification{number}" for number in range(30)]
    stores = {name: DeadLetters(db, name, Signer(name.encode() * 4)) for name in names}
    async with (
        serving("ops", DeadLetterAggregator(stores, Signer(b"o" * 32)), issuer) as (_, front),
        grpc.aio.insecure_channel(front) as calling,
    ):
        stub, me = DeadLetterServiceStub(calling), bearer(issuer.token(ADMIN, "ADMIN"))
        first = await stub.ListDeadLetters(pb.ListDeadLettersRequest(page_size=1), metadata=me)
        request = pb.ListDeadLettersRequest(page_size=1, page_token=first.next_page_token)
        second = await stub.ListDeadLetters(request, metadata=me)
    for page in (first, second):
        assert sorted(letter.service for letter in page.dead_letters) == sorted(names)
    assert second.next_page_token == ""


@pytest.mark.parametrize("service", ["auth", "nobody", "ops", "Story", "story\n", "../story", "x" * 64])
async def test_a_service_that_keeps_no_dead_letters_is_refused_by_name(ops: Ops, service: str) -> None:
    for call in (ops.page(service), ops.replay(service, uuid4()), ops.discard(service, uuid4())):
        with pytest.raises(AioRpcError) as raised:
            await call
        assert raised.value.code() is StatusCode.INVALID_ARGUMENT
        assert violated_fields(raised.value) == ["service"]


async def test_the_other_services_letters_are_settled_there_in_the_administrators_name(ops: Ops) -> None:
    replayed, discarded = story_requested(), story_requested()
    await bury(ops.story, replayed, discarded)
    assert await ops.replay("story", replayed.id, dry_run=True) == [str(replayed.id)]
    assert await ops.replay("story", replayed.id) == [str(replayed.id)]
    assert await ops.discard("story", discarded.id) == [str(discarded.id)]
    async with ops.story.transaction() as tx:
        table = dead_letter_store.dead_letters
        rows = {row["event_id"]: row for row in (await tx.execute(table.select())).mappings()}
    assert {row["settled_by"] for row in rows.values()} == {ADMIN}
    assert (rows[replayed.id]["settlement"], rows[discarded.id]["settlement"]) == ("REPLAYED", "DISCARDED")
    with raises_status(StatusCode.NOT_FOUND, "DEAD_LETTER_NOT_FOUND"):
        await ops.replay("story", uuid4())


async def test_what_was_decided_before_is_shown_of_both_services_alike(ops: Ops) -> None:
    own, theirs = story_requested(), story_requested()
    shown = {}
    for db, service, lost in ((ops.notification, "notification", own), (ops.story, "story", theirs)):
        await bury(db, lost)
        await ops.replay(service, lost.id)
        async with db.transaction() as tx:
            await dead_letter_store.mark_returned(tx, [lost.id])
        await bury(db, lost)
        (letter,) = (await ops.page(service)).dead_letters
        (decision,) = letter.decisions
        assert (decision.actor, decision.reason) == (str(ADMIN), "mended")
        assert decision.HasField("decide_time")
        shown[service] = decision.decision
    assert set(shown.values()) == {pb.SETTLEMENT_REPLAYED}


async def test_a_letter_that_is_missing_is_named_of_both_services_alike(ops: Ops) -> None:
    for db, service in ((ops.notification, "notification"), (ops.story, "story")):
        lost, missing = story_requested(), uuid4()
        await bury(db, lost)
        with pytest.raises(AioRpcError) as raised:
            await ops.discard(service, lost.id, missing)
        info = detail(raised.value, ErrorInfo)
        assert info
        assert (info.reason, dict(info.metadata)) == ("DEAD_LETTER_NOT_FOUND", {"event_id": str(missing)})


async def test_two_spellings_of_an_id_are_one_letter_of_either_service(ops: Ops) -> None:
    for db, service in ((ops.notification, "notification"), (ops.story, "story")):
        lost = story_requested()
        await bury(db, lost)
        request = pb.ReplayDeadLettersRequest(
            service=service, event_ids=[str(lost.id), str(lost.id).upper()], reason="mended"
        )
        answer = await ops.stub.ReplayDeadLetters(request, metadata=ops.auth())
        assert [letter.event_id for letter in answer.dead_letters] == [str(lost.id)]


async def test_a_field_that_only_the_other_service_refuses_is_named_as_it_names_it(
    ops: Ops, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other service may be of another version, whose contract is stricter."""
    refused = InvalidArgument([Violation("event_ids", "are too many", "TOO_MANY")])

    async def refuse(*_arguments: object, **_named: object) -> None:
        raise refused

    monkeypatch.setattr(DeadLetters, "settle", refuse)
    with pytest.raises(AioRpcError) as raised:
        await ops.replay("story", uuid4())
    assert raised.value.code() is StatusCode.INVALID_ARGUMENT
    assert violated_fields(raised.value) == ["event_ids"]


async def test_the_other_service_decides_itself_who_may_ask(ops: Ops) -> None:
    lost = story_requested()
    await bury(ops.story, lost)
    with raises_status(StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"):
        await ops.stub.ListDeadLetters(pb.ListDeadLettersRequest(), metadata=ops.auth("USER"))
    ops.story_issuer.revocations.add(
        Revocation(RevocationKind.USER, str(ADMIN), datetime.now(UTC) + timedelta(hours=1))
    )
    with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
        await ops.discard("story", lost.id)
    assert (await ops.page("notification")).next_page_token == ""


async def test_a_service_that_asks_in_its_own_name_is_refused(ops: Ops) -> None:
    """The operators' service too: without an administrator nobody lists or settles dead letters."""
    async with grpc.aio.insecure_channel(await ops.story_server.address) as channel:
        stub: DeadLetterServiceAsyncStub = DeadLetterServiceStub(channel)
        for metadata in (bearer(service_tokens("ops").mint("story")), ()):
            with raises_status(StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"):
                await stub.ListDeadLetters(pb.ListDeadLettersRequest(), metadata=metadata)
            discard = pb.DiscardDeadLettersRequest(service="story", event_ids=[str(uuid4())], reason="mine")
            with raises_status(StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"):
                await stub.DiscardDeadLetters(discard, metadata=metadata)


async def test_with_a_service_away_no_list_is_given_that_would_look_complete(ops: Ops) -> None:
    own = story_requested()
    await bury(ops.notification, own)
    ops.story_server.stopping.set()

    async def unavailable(*, service: str = "") -> bool:
        try:
            await ops.page(service)
        except AioRpcError as error:
            info = detail(error, ErrorInfo)
            # The error names the service, so that the others can be listed by name.
            return (
                error.code() is StatusCode.UNAVAILABLE
                and info is not None
                and dict(info.metadata) == {"dependency": "story"}
            )
        return False

    await until(unavailable)
    assert await unavailable(service="story")
    assert [letter.event_id for letter in (await ops.page("notification")).dead_letters] == [str(own.id)]
    with raises_status(StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE"):
        await ops.replay("story", uuid4())
