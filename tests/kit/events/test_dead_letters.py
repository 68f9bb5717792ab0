"""What becomes of events that could not be handled: an administrator lists them, has them handled again or gives them up."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import UTC
from itertools import chain
from typing import TYPE_CHECKING, Any
from uuid import UUID, uuid4

import grpc
import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError
from redis.asyncio import Redis
from sqlalchemy import select, text
from sqlalchemy.engine.row import RowMapping
from storymesh.ops.v1 import dead_letter_service_pb2 as pb
from storymesh.ops.v1.dead_letter_service_pb2_grpc import (
    DeadLetterServiceStub,
    add_DeadLetterServiceServicer_to_server,
)

from kit.data.database import Database
from kit.events import dead_letter_store
from kit.events.dead_letter_service import DeadLetterServicer
from kit.events.dead_letters import DeadLetters
from kit.events.envelope import Event
from kit.events.handlers import Permanent
from kit.events.inbox_store import mark_processed, processed_events
from kit.events.inbox_stream import InboxStream, stream_of
from kit.events.inbox_upkeep import InboxUpkeep
from kit.identity.signing import Signer
from kit.rpc.server import Server
from tests.identity import Issuer, bearer, service_tokens
from tests.kit.conftest import SETTINGS
from tests.kit.events.test_inbox import SERVICE, STREAM, TYPE, World, event, running, send
from tests.statuses import raises_status, violated_fields
from tests.waiting import until

if TYPE_CHECKING:
    from storymesh.ops.v1.dead_letter_service_pb2_grpc import DeadLetterServiceAsyncStub

pytestmark = pytest.mark.slow

ADMIN = uuid4()


@dataclass
class Api:
    """The service as an administrator calls it."""

    db: Database
    stub: DeadLetterServiceAsyncStub
    issuer: Issuer

    def auth(self, role: str = "ADMIN") -> tuple[tuple[str, str], ...]:
        return bearer(self.issuer.token(ADMIN, role))

    async def page(self, service: str = "", size: int = 0, token: str = "") -> tuple[list[str], str]:
        request = pb.ListDeadLettersRequest(service=service, page_size=size, page_token=token)
        answer = await self.stub.ListDeadLetters(request, metadata=self.auth())
        return [letter.event_id for letter in answer.dead_letters], answer.next_page_token

    async def replay(self, *events: UUID, dry_run: bool = False) -> list[str]:
        request = pb.ReplayDeadLettersRequest(
            service="story", event_ids=map(str, events), reason="the bug is mended", dry_run=dry_run
        )
        answer = await self.stub.ReplayDeadLetters(request, metadata=self.auth())
        return [letter.event_id for letter in answer.dead_letters]

    async def discard(self, *events: UUID, dry_run: bool = False) -> list[str]:
        request = pb.DiscardDeadLettersRequest(
            service="story", event_ids=map(str, events), reason="nobody waits for it", dry_run=dry_run
        )
        answer = await self.stub.DiscardDeadLetters(request, metadata=self.auth())
        return [letter.event_id for letter in answer.dead_letters]

    async def rows(self) -> list[RowMapping]:
        async with self.db.transaction() as tx:
            return list((await tx.execute(select(dead_letter_store.dead_letters))).mappings())


@pytest.fixture
async def api(db: Database) -> AsyncIterator[Api]:
    issuer, signer = Issuer(), Signer(b"c" * 32)
    server = Server(SETTINGS, required={"postgres": db.check})
    servicer = DeadLetterServicer(DeadLetters(db, "story", signer))
    server.add(add_DeadLetterServiceServicer_to_server, servicer)
    serving = asyncio.create_task(server.run(issuer.access_tokens(), service_tokens("story")))
    async with grpc.aio.insecure_channel(await server.address) as channel:
        yield Api(db, DeadLetterServiceStub(channel), issuer)
    server.stopping.set()
    await serving


@pytest.fixture
def world(db: Database, redis: Redis) -> World:
    return World(db, redis)


async def bury(db: Database, *events: Event, inbox: str = SERVICE) -> None:
    """Each a moment after the one before."""
    for each in events:
        async with db.transaction() as tx:
            await dead_letter_store.record(
                tx,
                event_id=each.id,
                inbox=inbox,
                type_=each.type,
                key=each.key,
                event=each.to_bytes(),
                reason="RuntimeError after 3 failures",
                failures=3,
            )


def ids(events: Sequence[Event]) -> list[str]:
    return [str(each.id) for each in events]


async def test_the_newest_come_first_and_pages_follow_without_gap_or_repeat(api: Api) -> None:
    events = [event() for _ in range(5)]
    await bury(api.db, *events)
    first, token = await api.page(size=2)
    await bury(api.db, event())
    second, token = await api.page(size=2, token=token)
    third, token = await api.page(size=2, token=token)
    assert (first + second + third, token) == (ids(events[::-1]), "")


async def test_letters_of_the_same_moment_fall_under_no_page_break(api: Api) -> None:
    events = [event() for _ in range(7)]
    await bury(api.db, *events)
    async with api.db.transaction() as tx:
        await tx.execute(text("UPDATE dead_letters SET died_at = now()"))
    seen, token = await api.page("story", size=2)
    while token:
        more, token = await api.page("story", size=2, token=token)
        seen += more
    assert sorted(seen) == sorted(ids(events))


async def test_a_letter_tells_everything_but_its_content(api: Api) -> None:
    lost = event(key="story-7", payload=b"s3cret")
    await bury(api.db, lost)
    answer = await api.stub.ListDeadLetters(pb.ListDeadLettersRequest(), metadata=api.auth())
    (letter,) = answer.dead_letters
    (row,) = await api.rows()
    assert letter.die_time.ToDatetime(UTC) == row["died_at"]
    letter.ClearField("die_time")
    assert letter == pb.DeadLetter(
        event_id=str(lost.id),
        service="story",
        type=TYPE,
        key="story-7",
        reason="RuntimeError after 3 failures",
        failures=3,
    )
    assert b"s3cret" not in answer.SerializeToString()


async def test_a_page_token_of_another_list_is_refused(api: Api) -> None:
    await bury(api.db, event(), event())
    _, of_one = await api.page("story", size=1)
    _, of_all = await api.page(size=1)
    for service, token in (("", of_one), ("story", of_all), ("story", "made-up"), ("", of_all[:-2])):
        with pytest.raises(AioRpcError) as raised:
            await api.page(service, token=token)
        assert violated_fields(raised.value) == ["page_token"]


async def test_only_administrators_come_in(api: Api) -> None:
    lost = event()
    await bury(api.db, lost)
    request = pb.DiscardDeadLettersRequest(service="story", event_ids=[str(lost.id)], reason="because")
    with raises_status(StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"):
        await api.stub.ListDeadLetters(pb.ListDeadLettersRequest(), metadata=api.auth("USER"))
    with raises_status(StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"):
        await api.stub.DiscardDeadLetters(request, metadata=api.auth("USER"))
    with raises_status(StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"):
        await api.stub.DiscardDeadLetters(request)
    assert (await api.page())[0] == ids([lost])


async def test_a_dry_run_says_what_would_be_done_and_does_nothing(api: Api) -> None:
    lost = event()
    await bury(api.db, lost)
    before = await api.rows()
    assert await api.replay(lost.id, dry_run=True) == ids([lost])
    assert await api.discard(lost.id, dry_run=True) == ids([lost])
    assert await api.rows() == before


async def test_one_unknown_id_among_many_and_nothing_is_done(api: Api) -> None:
    lost = event()
    await bury(api.db, lost)
    for call in (api.replay, api.discard):
        with raises_status(StatusCode.NOT_FOUND, "DEAD_LETTER_NOT_FOUND"):
            await call(lost.id, uuid4())
    assert (await api.page())[0] == ids([lost])


async def test_the_letters_of_another_service_are_not_here(api: Api) -> None:
    lost = event()
    await bury(api.db, lost)
    assert await api.page("notification") == ([], "")
    request = pb.ReplayDeadLettersRequest(service="notification", event_ids=[str(lost.id)], reason="because")
    with raises_status(StatusCode.NOT_FOUND, "DEAD_LETTER_NOT_FOUND"):
        await api.stub.ReplayDeadLetters(request, metadata=api.auth())


async def test_a_decision_records_who_and_why_and_stays(api: Api) -> None:
    lost = event()
    await bury(api.db, lost)
    assert await api.discard(lost.id) == ids([lost])
    (row,) = await api.rows()
    assert (row["settlement"], row["settled_by"], row["settled_because"]) == (
        "DISCARDED",
        ADMIN,
        "nobody waits for it",
    )
    assert row["settled_at"]
    assert await api.discard(lost.id) == []
    assert await api.replay(lost.id) == []
    assert await api.rows() == [row]
    assert await api.page() == ([], "")


async def decide(api: Api, method: str, lost: Event, because: str, *, dry_run: bool = False) -> None:
    request: dict[str, Any] = {
        "service": "story",
        "event_ids": [str(lost.id)],
        "reason": because,
        "dry_run": dry_run,
    }
    if method == "replay":
        await api.stub.ReplayDeadLetters(pb.ReplayDeadLettersRequest(**request), metadata=api.auth())
    else:
        await api.stub.DiscardDeadLetters(pb.DiscardDeadLettersRequest(**request), metadata=api.auth())


async def die_again(api: Api, world: World, lost: Event) -> None:
    """As it does when it was replayed and fails as before."""
    assert await upkeep(world).return_replayed() == 1
    await bury(api.db, lost)


async def decisions(api: Api) -> list[tuple[UUID, str, str, UUID, str]]:
    async with api.db.transaction() as tx:
        table = dead_letter_store.dead_letter_decisions
        return [
            (row["event_id"], row["inbox"], row["decision"], row["actor"], row["because"])
            for row in (await tx.execute(select(table).order_by(table.c.position))).mappings()
        ]


async def test_who_decided_what_and_why_is_kept_and_shown_also_when_the_letter_dies_again(
    api: Api, world: World
) -> None:
    lost, other = event(), event()
    await bury(api.db, other, lost)
    await decide(api, "replay", lost, "the writer is back")
    await die_again(api, world, lost)
    await decide(api, "replay", lost, "and now with its key")
    await die_again(api, world, lost)
    listed = await api.stub.ListDeadLetters(pb.ListDeadLettersRequest(), metadata=api.auth())
    newest, untouched = listed.dead_letters
    assert [(shown.decision, shown.actor, shown.reason) for shown in newest.decisions] == [
        (pb.SETTLEMENT_REPLAYED, str(ADMIN), "the writer is back"),
        (pb.SETTLEMENT_REPLAYED, str(ADMIN), "and now with its key"),
    ]
    assert newest.decisions[0].decide_time.ToDatetime() < newest.decisions[1].decide_time.ToDatetime()
    assert list(untouched.decisions) == []
    await decide(api, "discard", lost, "it never works")
    await age(api.db, 1000)
    await upkeep(world).purge()
    assert await decisions(api) == [
        (lost.id, SERVICE, "REPLAYED", ADMIN, "the writer is back"),
        (lost.id, SERVICE, "REPLAYED", ADMIN, "and now with its key"),
        (lost.id, SERVICE, "DISCARDED", ADMIN, "it never works"),
    ]


async def test_what_decides_nothing_leaves_no_decision(api: Api) -> None:
    lost = event()
    await bury(api.db, lost)
    for method in ("replay", "discard"):
        await decide(api, method, lost, "only asking", dry_run=True)
    assert await decisions(api) == []
    await decide(api, "discard", lost, "the first")
    for method in ("replay", "discard"):
        await decide(api, method, lost, "too late")
    assert [because for *_, because in await decisions(api)] == ["the first"]


async def test_a_decision_that_cannot_be_recorded_is_none(api: Api) -> None:
    lost = event()
    await bury(api.db, lost)
    async with api.db.transaction() as tx:
        await tx.execute(text("ALTER TABLE dead_letter_decisions ADD CONSTRAINT crash CHECK (false) NOT VALID"))
    try:
        with raises_status(StatusCode.INTERNAL, "INTERNAL"):
            await decide(api, "discard", lost, "away with it")
    finally:
        async with api.db.transaction() as tx:
            await tx.execute(text("ALTER TABLE dead_letter_decisions DROP CONSTRAINT crash"))
    assert (await api.page())[0] == ids([lost])


async def test_of_a_letter_that_is_replayed_for_ever_the_last_decisions_are_shown(api: Api, world: World) -> None:
    lost = event()
    await bury(api.db, lost)
    for number in range(13):
        await decide(api, "replay", lost, f"try {number}")
        await die_again(api, world, lost)
    (letter,) = (await api.stub.ListDeadLetters(pb.ListDeadLettersRequest(), metadata=api.auth())).dead_letters
    assert [shown.reason for shown in letter.decisions] == [f"try {number}" for number in range(3, 13)]
    assert len(await decisions(api)) == 13


async def test_what_was_decided_about_a_letter_goes_with_it(api: Api) -> None:
    """An erasure deletes letters, and knows nothing of decisions."""
    erased, kept = event(key="erased"), event(key="kept")
    await bury(api.db, erased, kept)
    await api.discard(erased.id, kept.id)
    async with api.db.transaction() as tx:
        await tx.execute(
            dead_letter_store.dead_letters.delete().where(dead_letter_store.dead_letters.c.key == "erased")
        )
    assert [event_id for event_id, *_ in await decisions(api)] == [kept.id]


async def test_the_log_says_who_decided_what_and_why(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    lost = event()
    await bury(api.db, lost)
    await decide(api, "discard", lost, "its story is gone")
    (record,) = [each for each in caplog.records if "discarded" in each.getMessage()]
    assert record.getMessage() == f'dead letters discarded because "its story is gone": {TYPE} {lost.id}'
    assert record.__dict__["user.id"] == str(ADMIN)


@pytest.mark.parametrize("reason", ["", "   ", "\t", "two\nlines", "two\u2028lines", "\u200b\u3000"])
async def test_a_decision_needs_a_reason_that_says_something(api: Api, reason: str) -> None:
    lost = event()
    await bury(api.db, lost)
    for method in ("replay", "discard"):
        with pytest.raises(AioRpcError) as raised:
            await decide(api, method, lost, reason)
        assert (raised.value.code(), violated_fields(raised.value)) == (StatusCode.INVALID_ARGUMENT, ["reason"])
    await decide(api, "discard", lost, " a reason with room around it ")


async def test_two_spellings_of_one_id_are_one_letter(api: Api) -> None:
    lost = event()
    await bury(api.db, lost)
    request = pb.ReplayDeadLettersRequest(
        service="story", event_ids=[str(lost.id), str(lost.id).upper()], reason="because"
    )
    answer = await api.stub.ReplayDeadLetters(request, metadata=api.auth())
    assert [letter.event_id for letter in answer.dead_letters] == ids([lost])


async def test_two_decisions_at_once_are_one(api: Api) -> None:
    events = [event() for _ in range(20)]
    await bury(api.db, *events)
    wanted = [each.id for each in events]
    answers = await asyncio.gather(
        *(call(*order) for call in (api.replay, api.discard) for order in (wanted, wanted[::-1]))
    )
    assert sorted(chain.from_iterable(answers)) == sorted(ids(events))
    assert len({row["settlement"] for row in await api.rows()}) == 1


async def test_a_replayed_event_is_handled_again_under_its_id_with_no_failure_counted(api: Api, world: World) -> None:
    broken, failures = True, []

    async def handle(taken: Event) -> None:
        if broken:
            failures.append(taken.id)
            raise RuntimeError
        await world.recorder()(taken)

    lost = event()
    async with running(world.inbox(handle, max_failures=2)):
        await send(world.redis, lost)
        await until(world.dead)
        assert len(failures) == 2
        await api.replay(lost.id)
        # Two more before it dies again: it began anew.
        await until(lambda: len(failures) == 4)
        await until(lambda: listed(api, lost))
        broken = False
        await api.replay(lost.id)
        await until(world.effects)
        await until(world.idle)
    assert await world.effects() == [lost.id]
    assert await api.page() == ([], "")


async def listed(api: Api, *events: Event) -> bool:
    return (await api.page())[0] == ids(events[::-1])


async def test_what_a_handler_did_before_it_died_is_not_done_twice(api: Api, world: World) -> None:
    """Its first step is recorded, its second one fails."""
    broken = True

    async def handle(taken: Event) -> None:
        await world.recorder("first step")(taken)
        if broken:
            raise Permanent("the second step fails")

    lost = event()
    async with running(world.inbox(handle)):
        await send(world.redis, lost)
        await until(lambda: listed(api, lost))
        broken = False
        await api.replay(lost.id)
        await until(lambda: returned(api))
        await until(world.idle)
    assert await world.effects() == [lost.id]
    assert await api.page() == ([], "")


async def returned(api: Api) -> bool:
    return all(row["returned_at"] for row in await api.rows())


async def test_bytes_that_are_no_event_keep_their_name_when_they_die_again(api: Api, world: World) -> None:
    async with running(world.inbox(world.recorder())):
        await world.redis.xadd(STREAM, {"event": b"\xff\xff"})
        (letter,) = await until(world.dead)
        await api.replay(letter["event_id"])
        await until(lambda: died_after(api, letter))
    (again,) = await api.rows()
    assert again["event_id"] == letter["event_id"]
    assert again["settled_at"] is None


async def died_after(api: Api, letter: RowMapping) -> bool:
    return bool((await api.rows())[0]["died_at"] > letter["died_at"])


def upkeep(world: World, *, records_events: bool = False) -> InboxUpkeep:
    stream = InboxStream(world.redis, SERVICE, lease_seconds=10)
    return InboxUpkeep(world.db, world.redis, SERVICE, stream, records_events=records_events)


async def test_a_replay_that_is_cut_off_before_it_is_recorded_comes_twice_and_never_not_at_all(
    api: Api, world: World
) -> None:
    """The database refuses the record, so that the copy has happened and the commit has not."""
    lost = event()
    await bury(api.db, lost)
    await api.replay(lost.id)
    async with api.db.transaction() as tx:
        await tx.execute(text("ALTER TABLE dead_letters ADD CONSTRAINT crash CHECK (returned_at IS NULL) NOT VALID"))
    try:
        with pytest.raises(Exception, match="crash"):
            await upkeep(world).return_replayed()
    finally:
        async with api.db.transaction() as tx:
            await tx.execute(text("ALTER TABLE dead_letters DROP CONSTRAINT crash"))
    assert await upkeep(world).return_replayed() == 1
    assert await upkeep(world).return_replayed() == 0
    assert await world.redis.xlen(STREAM) == 2
    async with running(world.inbox(world.recorder())):
        await until(world.idle)
    assert await world.effects() == [lost.id]


async def test_a_replay_waits_for_redis_and_outlives_the_loss_of_its_data(api: Api, world: World) -> None:
    lost = event()
    await bury(api.db, lost)
    await api.replay(lost.id)
    assert await upkeep(world).return_replayed() == 1
    await world.redis.flushall()
    assert await upkeep(world).return_replayed() == 1
    assert await upkeep(world).return_replayed() == 0
    assert await world.redis.xlen(STREAM) == 1


async def test_what_goes_back_goes_where_it_died(api: Api, world: World) -> None:
    elsewhere = event()
    await bury(api.db, elsewhere, inbox="another")
    await api.replay(elsewhere.id)
    assert await upkeep(world).return_replayed() == 0
    assert await world.redis.xlen(stream_of("another")) == 0


async def test_a_copy_of_what_waits_for_a_decision_or_was_discarded_is_not_handled(api: Api, world: World) -> None:
    waiting, discarded, replayed, unknown = (event() for _ in range(4))
    await bury(api.db, waiting, discarded, replayed)
    await api.discard(discarded.id)
    await api.replay(replayed.id)
    async with running(world.inbox(world.recorder())):
        await until(lambda: has(world, replayed.id))
        for each in (waiting, discarded, replayed, unknown):
            await world.redis.xadd(STREAM, {"event": each.to_bytes(), "again": "1"})
        await until(world.idle)
    assert await world.effects() == [replayed.id, unknown.id]
    assert (await api.page())[0] == ids([waiting])


async def has(world: World, event_id: UUID) -> bool:
    return event_id in await world.effects()


async def test_a_late_copy_does_not_undo_a_decision_that_is_on_its_way(api: Api) -> None:
    replayed, discarded = event(), event()
    await bury(api.db, replayed, discarded)
    await api.replay(replayed.id)
    await api.discard(discarded.id)
    await bury(api.db, replayed, discarded)
    assert await api.page() == ([], "")


async def age(db: Database, days: int) -> None:
    async with db.transaction() as tx:
        ago = f"now() - interval '{days} days'"
        await tx.execute(text(f"UPDATE processed_events SET processed_at = {ago}"))
        await tx.execute(text(f"UPDATE dead_letters SET settled_at = {ago} WHERE settled_at IS NOT NULL"))
        await tx.execute(text(f"UPDATE dead_letters SET returned_at = {ago} WHERE returned_at IS NOT NULL"))


async def record(world: World, *events: Event) -> None:
    for each in events:
        async with world.db.transaction() as tx:
            await mark_processed(tx, each)


async def recorded(world: World) -> set[UUID]:
    async with world.db.transaction() as tx:
        return set((await tx.execute(select(processed_events.c.event_id))).scalars())


async def test_the_record_of_an_event_goes_when_it_cannot_come_again(world: World) -> None:
    old, dead, fresh = (event() for _ in range(3))
    await record(world, old, dead)
    await bury(world.db, dead)
    await age(world.db, 15)
    await record(world, fresh)
    await upkeep(world, records_events=True).purge()
    assert await recorded(world) == {dead.id, fresh.id}


async def test_the_record_stays_while_the_outbox_could_repeat_the_event(world: World) -> None:
    kept = event()
    await record(world, kept)
    await age(world.db, 13)
    await upkeep(world, records_events=True).purge()
    assert await recorded(world) == {kept.id}


async def test_the_record_stays_for_copies_that_waited_while_no_worker_ran(world: World) -> None:
    """A copy that came ten days ago was published at most a week after the first."""
    handled = event()
    await record(world, handled)
    await age(world.db, 20)
    came_at = int((await world.redis.time())[0]) - 10 * 86_400
    await world.redis.xadd(STREAM, {"event": handled.to_bytes()}, id=f"{came_at * 1000}-1")
    await upkeep(world, records_events=True).purge()
    assert await recorded(world) == {handled.id}
    await world.redis.delete(STREAM)
    await upkeep(world, records_events=True).purge()
    assert await recorded(world) == set()


async def test_of_what_was_settled_long_ago_only_the_decision_is_kept(api: Api, world: World) -> None:
    waiting, discarded, replayed, on_its_way = (event(key="personal") for _ in range(4))
    await bury(api.db, waiting, discarded, replayed)
    await api.discard(discarded.id)
    await api.replay(replayed.id)
    await upkeep(world).return_replayed()
    await bury(api.db, on_its_way)
    await api.replay(on_its_way.id)
    await age(api.db, 8)
    await upkeep(world).purge()
    rows = {row["event_id"]: row for row in await api.rows()}
    for each in (discarded, replayed):
        assert (rows[each.id]["event"], rows[each.id]["key"]) == (b"", "")
        assert rows[each.id]["settled_because"]
    for each in (waiting, on_its_way):
        assert (rows[each.id]["event"], rows[each.id]["key"]) == (each.to_bytes(), "personal")
