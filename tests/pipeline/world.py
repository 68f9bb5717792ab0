"""One pipeline from request to mail: its processes, the people who use it, and what goes wrong in it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, TypeVar
from uuid import UUID, uuid4

from kit.identity.signing import Signer
from services.story.model import State, Story
from services.story.operations.watching import Watches, WatchLimits
from services.story.store.progress import Progress
from tests.conftest import empty
from tests.waiting import until

from .crew import Crew, Member
from .failpoints import Deed, Line, lines
from .invariants import Stores, Telling, faults, unrest
from .lives import CURSOR_KEY, LEASE_SECONDS, Life, Order, Place, operations
from .reader import Reader
from .scenario import Asked, Incident, Meanwhile, Scenario

REST_SECONDS = 45.0
"""Far more than leases, polls and retries take together on a busy machine."""

_OF_OTHERS = (Meanwhile.ANOTHER_TAKES_OVER, Meanwhile.ANOTHER_ENDS_IT)
_FROZEN_SECONDS = 4.5 * LEASE_SECONDS
_STEPS_OF_A_SUCCESSOR = 8
"""Enough to be in the middle of the work that the frozen one had in hand."""
_HEAD_START_SECONDS = 0.3
"""What happens meanwhile may have to wait for a lock of whoever is frozen."""
_LOOK_SECONDS = 0.01
_KILLED = -9
_LATEST_WARNINGS = 60

T = TypeVar("T")


class World:
    """Made once, for one scenario after the other."""

    def __init__(self, place: Place, stores: Stores, crew: Crew) -> None:
        self._home = place.folder
        self._place = place
        self._stores = stores
        self._crew = crew
        self._operations = operations(stores.story, Progress(stores.redis))
        self._played = 0

    async def play(self, scenario: Scenario) -> list[Line]:
        """Answers the trace when all is at rest. Raises AssertionError with everything that may explain what is broken."""
        self._played += 1
        place = replace(self._place, folder=self._home / f"{self._played}")
        place.folder.mkdir()
        stores = self._stores
        await asyncio.gather(empty(stores.story), empty(stores.notification), stores.redis.flushdb())
        limits = WatchLimits(per_person=20, altogether=100, stories=20, entries_behind=500)
        watches = Watches(
            stores.story, self._operations, Progress(stores.redis), Signer(CURSOR_KEY), limits, heartbeat_seconds=15
        )
        play = _Play(scenario, place, stores, watches, self._crew)
        broken = await play.to_its_rest()
        if broken:
            raise AssertionError(play.report(broken))
        return play.trace


class _Play:
    """One scenario being played."""

    def __init__(self, scenario: Scenario, place: Place, stores: Stores, watches: Watches, crew: Crew) -> None:
        self._scenario = scenario
        self._place = place
        self._stores = stores
        self._watches = watches
        self._crew = crew
        self._members: dict[int, Member] = {}
        self._tellings: list[Telling] = []
        self._readers: list[Reader] = []

    @property
    def trace(self) -> list[Line]:
        return lines(self._place.folder)

    async def to_its_rest(self) -> list[str]:
        """What is broken then."""
        stopping = asyncio.Event()
        counts = {"story": self._scenario.story_workers, "notification": self._scenario.notification_workers}
        beside = [
            asyncio.create_task(self._watches.run(stopping)),
            asyncio.create_task(self._see_to_incidents()),
            *(asyncio.create_task(self._keep(role)) for role, count in counts.items() for _ in range(count)),
        ]
        try:
            broken = await self._people()
        finally:
            stopping.set()
            for task in beside[1:]:
                task.cancel()
            ends = await asyncio.gather(*beside, return_exceptions=True)
            await asyncio.gather(*(member.kill() for member in self._members.values()))
        return broken + [repr(end) for end in ends if isinstance(end, Exception)]

    async def _people(self) -> list[str]:
        try:
            async with asyncio.timeout(REST_SECONDS):
                await asyncio.gather(*map(self._ask, self._scenario.asked))
                while await unrest(self._stores):  # noqa: ASYNC110  # other processes are at it
                    await asyncio.sleep(_LOOK_SECONDS)
                for telling in self._tellings:
                    await self._look_again(telling)
        except TimeoutError:
            waiting = [f"a watcher waits: {reader.log}" for reader in self._readers if not reader.ended]
            return [f"after {REST_SECONDS:g} s {what}" for what in [*await unrest(self._stores), *waiting]]
        return await faults(
            self._stores,
            self._tellings,
            lossy=self._scenario.lossy,
            mails_broken_off=any(line.role == "notification" and line.stop is not None for line in self.trace)
            # As when the machine is too busy.
            or "lost the lease" in self._log(),
        )

    async def _keep(self, role: str) -> None:
        """Whoever is killed is replaced, as by a supervisor."""
        while True:
            member = self._begin(role)
            code = await member.end()
            assert code == _KILLED, f"{role}/{member.life.number} ended by itself with {code}"

    def _begin(self, role: str, order: Order | None = None) -> Member:
        scenario = self._scenario
        stops = tuple(incident.stop for incident in scenario.incidents)
        life = Life(self._crew.number(), role, self._place, stops, scenario.attempts, scenario.pace_seconds, order)
        member = self._members[life.number] = self._crew.begin(life)
        return member

    async def _see_to_incidents(self) -> None:
        seen = 0
        async with asyncio.TaskGroup() as group:
            while True:
                found = self.trace
                for line in found[seen:]:
                    incident = None if line.stop is None else self._scenario.incidents[line.stop]
                    if incident and incident.stop.deed is Deed.FREEZE:
                        group.create_task(self._pass(incident, self._members[line.life]))
                seen = len(found)
                await asyncio.sleep(_LOOK_SECONDS)

    async def _pass(self, incident: Incident, frozen: Member) -> None:
        happening = asyncio.create_task(self._happen(incident.meanwhile, frozen.life))
        if incident.meanwhile not in _OF_OTHERS:
            await asyncio.wait([happening], timeout=_HEAD_START_SECONDS)
        else:
            await asyncio.wait([happening])
        await frozen.thaw()
        await happening

    async def _is_at_rest(self) -> bool:
        return bool(self._tellings) and not await unrest(self._stores)

    def _steps_of_others(self, life: Life) -> int:
        return sum(line.role == life.role and line.life != life.number for line in self.trace)

    async def _happen(self, meanwhile: Meanwhile, frozen: Life) -> None:
        redis = self._stores.redis
        match meanwhile:
            case Meanwhile.ANOTHER_TAKES_OVER:
                enough = self._steps_of_others(frozen) + _STEPS_OF_A_SUCCESSOR
                with suppress(TimeoutError):
                    await until(lambda: self._steps_of_others(frozen) >= enough, _FROZEN_SECONDS)
            case Meanwhile.ANOTHER_ENDS_IT:
                # Whoever is frozen may have locked what all the others wait for.
                with suppress(TimeoutError):
                    await until(self._is_at_rest, _FROZEN_SECONDS)
            case Meanwhile.CANCEL:
                await asyncio.gather(
                    *(self._order("cancel", each.owner_id, str(each.story_id)) for each in self._tellings)
                )
            case Meanwhile.LOSE_REDIS:
                await redis.flushdb()
            case Meanwhile.LOSE_PROGRESS:
                if keys := await redis.keys("progress:*"):
                    await redis.delete(*keys)

    async def _order(self, verb: str, owner_id: UUID, name: str) -> dict[str, Any]:
        """What the desk answers. A client whose connection breaks asks again."""
        code = _KILLED
        while code == _KILLED:
            member = self._begin("desk", Order(verb, str(owner_id), name))
            code = await member.end()
        assert code == 0, f"the desk ended with {code} at {verb}"
        answer: dict[str, Any] = json.loads(member.life.answer.read_text())
        return answer

    async def _ask(self, asked: Asked) -> None:
        """What one person does about one story."""
        owner_id = uuid4()
        answer = await self._order("request", owner_id, "only once")
        telling = Telling(owner_id, UUID(answer["story_id"]))
        self._tellings.append(telling)
        for number in range(asked.retries + 1):
            if number:
                answer = await self._order("retry", owner_id, str(telling.story_id))
                # Refused when the answer to a first try was lost, and this is the second.
                assert answer.get("refused") in (None, "STORY_NOT_RETRYABLE"), answer
            telling.ends.append(await self._watch(telling, asked, cancel=asked.cancelled and not number))
            if telling.ends[-1] is State.COMPLETED:
                return

    async def _watch(self, telling: Telling, asked: Asked, *, cancel: bool) -> State:
        """How the story ends this time."""
        readers = [self._reader(telling, watching.messages_a_call) for watching in asked.watchers]
        first = asyncio.create_task(readers[0].read())

        async def read_late(reader: Reader, *, late: bool) -> Story:
            if late:
                await _either(readers[0].began.wait(), first)
            return await reader.read()

        async def change_mind() -> None:
            await _either(readers[0].began.wait(), first)
            await self._order("cancel", telling.owner_id, str(telling.story_id))

        async with asyncio.TaskGroup() as group:
            others = [
                group.create_task(read_late(reader, late=watching.late))
                for reader, watching in zip(readers[1:], asked.watchers[1:], strict=True)
            ]
            if cancel:
                group.create_task(change_mind())
            found = [await first, *[await other for other in others]]
        for reader, story in zip(readers, found, strict=True):
            telling.compare(reader, story)
        if len({story.state for story in found}) > 1:
            telling.faults.append(f"watchers were told of different ends: {[story.state for story in found]}")
        return found[0].state

    async def _look_again(self, telling: Telling) -> None:
        """Who comes when all is over, and who comes back then with a token, sees what is stored, too."""
        reader = self._reader(telling, 0)
        for _ in range(2):
            telling.compare(reader, await reader.read())

    def _reader(self, telling: Telling, messages_a_call: int) -> Reader:
        reader = Reader(self._watches, telling.owner_id, telling.story_id, messages_a_call=messages_a_call)
        self._readers.append(reader)
        return reader

    def report(self, broken: Sequence[str]) -> str:
        trace = self.trace
        happened = {line.stop for line in trace}
        incidents = [
            f"{incident}{'' if index in happened else ' (did not happen)'}"
            for index, incident in enumerate(self._scenario.incidents)
        ]
        chapters: dict[str, Sequence[object]] = {
            "Broken": broken,
            "Incidents": incidents,
            "Steps": trace,
            "Warnings": self._log().splitlines()[-_LATEST_WARNINGS:],
        }
        return "\n".join(
            line for name, each in chapters.items() for line in (f"{name}:", *(f"  {one}" for one in each))
        )

    def _log(self) -> str:
        log = self._place.folder / "log"
        return log.read_text() if log.exists() else ""


async def _either(one: Awaitable[object], other: asyncio.Future[Any]) -> None:
    waiting = asyncio.ensure_future(one)
    await asyncio.wait([waiting, other], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
