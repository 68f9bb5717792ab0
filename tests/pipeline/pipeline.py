"""One pipeline, from the request for a story to the mail: runs a scenario with real processes and checks the invariants."""

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

from .failpoints import Action, Line, lines
from .forkserver import ChildProcess, ForkServer
from .invariants import Stores, WatchedStory, pending_work, violations
from .processes import CURSOR_KEY, LEASE_SECONDS, ApiCall, Environment, ProcessSpec, operations
from .reader import Reader
from .scenario import Fault, Scenario, StoryRequest, WhileFrozen

IDLE_SECONDS = 120.0
"""Limit for a scenario: far more than leases, polls and retries take together on a busy machine."""

_BY_OTHERS = (WhileFrozen.ANOTHER_TAKES_OVER, WhileFrozen.ANOTHER_ENDS_IT)
_FROZEN_SECONDS = 4.5 * LEASE_SECONDS
_STEPS_OF_A_SUCCESSOR = 8
"""Steps after which another process is in the middle of the work that the frozen process had taken."""
_HEAD_START_SECONDS = 0.3
"""Wait before the process is resumed: what happens while it is frozen may need a lock that it holds."""
_POLL_SECONDS = 0.04
_KILLED = -9
_LATEST_WARNINGS = 60

T = TypeVar("T")


class Pipeline:
    """Runs one scenario after the other on its own databases."""

    def __init__(self, environment: Environment, stores: Stores, fork_server: ForkServer) -> None:
        self._home = environment.folder
        self._environment = environment
        self._stores = stores
        self._fork_server = fork_server
        self._operations = operations(stores.story, Progress(stores.redis))
        self._runs = 0

    async def run(self, scenario: Scenario) -> list[Line]:
        """Returns the trace when no work is pending. Raises AssertionError with a report when an invariant is violated."""
        self._runs += 1
        environment = replace(self._environment, folder=self._home / f"{self._runs}")
        environment.folder.mkdir()
        stores = self._stores
        await asyncio.gather(empty(stores.story), empty(stores.notification), stores.redis.flushdb())
        limits = WatchLimits(per_person=20, altogether=100, stories=20, entries_behind=500)
        watches = Watches(
            stores.story, self._operations, Progress(stores.redis), Signer(CURSOR_KEY), limits, heartbeat_seconds=15
        )
        run = _Run(scenario, environment, stores, watches, self._fork_server)
        broken = await run.until_idle()
        if broken:
            raise AssertionError(run.report(broken))
        return run.trace


class _Run:
    """One run of a scenario."""

    def __init__(
        self, scenario: Scenario, environment: Environment, stores: Stores, watches: Watches, fork_server: ForkServer
    ) -> None:
        self._scenario = scenario
        self._environment = environment
        self._stores = stores
        self._watches = watches
        self._fork_server = fork_server
        self._children: dict[int, ChildProcess] = {}
        self._watched: list[WatchedStory] = []
        self._readers: list[Reader] = []

    @property
    def trace(self) -> list[Line]:
        return lines(self._environment.folder)

    async def until_idle(self) -> list[str]:
        """Runs the scenario until no work is pending, and returns the violated invariants."""
        stopping = asyncio.Event()
        counts = {"story": self._scenario.story_workers, "notification": self._scenario.notification_workers}
        beside = [
            asyncio.create_task(self._watches.run(stopping)),
            asyncio.create_task(self._resume_frozen()),
            *(asyncio.create_task(self._supervise(role)) for role, count in counts.items() for _ in range(count)),
        ]
        try:
            broken = await self._run_clients()
        finally:
            stopping.set()
            for task in beside[1:]:
                task.cancel()
            ends = await asyncio.gather(*beside, return_exceptions=True)
            await asyncio.gather(*(child.kill() for child in self._children.values()))
        return broken + [repr(end) for end in ends if isinstance(end, Exception)]

    async def _run_clients(self) -> list[str]:
        try:
            async with asyncio.timeout(IDLE_SECONDS):
                await asyncio.gather(*map(self._ask, self._scenario.requests))
                while await pending_work(self._stores):  # noqa: ASYNC110  # other processes are at it
                    await asyncio.sleep(_POLL_SECONDS)
                for story in self._watched:
                    await self._watch_again(story)
        except TimeoutError:
            waiting = [f"a watcher waits: {reader.log}" for reader in self._readers if not reader.ended]
            return [f"after {IDLE_SECONDS:g} s {what}" for what in [*await pending_work(self._stores), *waiting]]
        return await violations(
            self._stores,
            self._watched,
            lossy=self._scenario.lossy,
            mails_broken_off=any(line.role == "notification" and line.stop is not None for line in self.trace)
            # A busy machine may let a lease run out.
            or "lost the lease" in self._log(),
        )

    async def _supervise(self, role: str) -> None:
        """Starts a process of the role, and another whenever one is killed, as a supervisor does."""
        while True:
            child = self._start(role)
            code = await child.wait()
            assert code == _KILLED, f"{role}/{child.spec.number} ended by itself with {code}"

    def _start(self, role: str, call: ApiCall | None = None) -> ChildProcess:
        scenario = self._scenario
        stops = tuple(fault.stop for fault in scenario.faults)
        spec = ProcessSpec(
            self._fork_server.next_number(),
            role,
            self._environment,
            stops,
            scenario.attempts,
            scenario.pace_seconds,
            call,
        )
        child = self._children[spec.number] = self._fork_server.start(spec)
        return child

    async def _resume_frozen(self) -> None:
        """Waits until a failpoint freezes a process, applies what happens meanwhile, and resumes the process."""
        if all(fault.stop.action is Action.KILL for fault in self._scenario.faults):
            return
        seen = 0
        async with asyncio.TaskGroup() as group:
            while True:
                found = self.trace
                for line in found[seen:]:
                    fault = None if line.stop is None else self._scenario.faults[line.stop]
                    if fault and fault.stop.action is Action.FREEZE:
                        group.create_task(self._resume_after(fault, self._children[line.process]))
                seen = len(found)
                await asyncio.sleep(_POLL_SECONDS)

    async def _resume_after(self, fault: Fault, frozen: ChildProcess) -> None:
        happening = asyncio.create_task(self._apply(fault.while_frozen, frozen.spec))
        if fault.while_frozen not in _BY_OTHERS:
            await asyncio.wait([happening], timeout=_HEAD_START_SECONDS)
        else:
            await asyncio.wait([happening])
        await frozen.resume()
        await happening

    async def _is_idle(self) -> bool:
        return bool(self._watched) and not await pending_work(self._stores)

    def _steps_of_others(self, spec: ProcessSpec) -> int:
        return sum(line.role == spec.role and line.process != spec.number for line in self.trace)

    async def _apply(self, while_frozen: WhileFrozen, frozen: ProcessSpec) -> None:
        redis = self._stores.redis
        match while_frozen:
            case WhileFrozen.ANOTHER_TAKES_OVER:
                enough = self._steps_of_others(frozen) + _STEPS_OF_A_SUCCESSOR
                with suppress(TimeoutError):
                    await until(lambda: self._steps_of_others(frozen) >= enough, _FROZEN_SECONDS)
            case WhileFrozen.ANOTHER_ENDS_IT:
                # The frozen process may hold a lock that all the others wait for.
                with suppress(TimeoutError):
                    await until(self._is_idle, _FROZEN_SECONDS)
            case WhileFrozen.CANCEL:
                await asyncio.gather(
                    *(self._call_api("cancel", each.owner_id, str(each.story_id)) for each in self._watched)
                )
            case WhileFrozen.LOSE_REDIS:
                await redis.flushdb()
            case WhileFrozen.LOSE_PROGRESS:
                if keys := await redis.keys("progress:*"):
                    await redis.delete(*keys)

    async def _call_api(self, verb: str, owner_id: UUID, name: str) -> dict[str, Any]:
        """The answer of one API call. When the process is killed, the client repeats the call."""
        code = _KILLED
        while code == _KILLED:
            child = self._start("api", ApiCall(verb, str(owner_id), name))
            code = await child.wait()
        assert code == 0, f"the API call {verb} ended with {code}"
        answer: dict[str, Any] = json.loads(child.spec.answer.read_text())
        return answer

    async def _ask(self, request: StoryRequest) -> None:
        """Requests a story, watches it, and retries it as often as the scenario says."""
        owner_id = uuid4()
        answer = await self._call_api("request", owner_id, "only once")
        story = WatchedStory(owner_id, UUID(answer["story_id"]))
        self._watched.append(story)
        for number in range(request.retries + 1):
            if number:
                answer = await self._call_api("retry", owner_id, str(story.story_id))
                # The first call may have succeeded although its answer was lost; then the repeated call is refused.
                assert answer.get("refused") in (None, "STORY_NOT_RETRYABLE"), answer
            story.ends.append(await self._watch(story, request, cancel=request.cancelled and not number))
            if story.ends[-1] is State.COMPLETED:
                return

    async def _watch(self, story: WatchedStory, request: StoryRequest, *, cancel: bool) -> State:
        """Watches with all clients at the same time, and returns the state in which the story ended."""
        readers = [self._reader(story, watcher.messages_a_call) for watcher in request.watchers]
        first = asyncio.create_task(readers[0].read())

        async def read_late(reader: Reader, *, late: bool) -> Story:
            if late:
                await _either(readers[0].began.wait(), first)
            return await reader.read()

        async def cancel_it() -> None:
            await _either(readers[0].began.wait(), first)
            await self._call_api("cancel", story.owner_id, str(story.story_id))

        async with asyncio.TaskGroup() as group:
            others = [
                group.create_task(read_late(reader, late=watcher.late))
                for reader, watcher in zip(readers[1:], request.watchers[1:], strict=True)
            ]
            if cancel:
                group.create_task(cancel_it())
            found = [await first, *[await other for other in others]]
        for reader, last_seen in zip(readers, found, strict=True):
            story.compare(reader, last_seen)
        if len({each.state for each in found}) > 1:
            story.violations.append(f"watchers were told of different ends: {[each.state for each in found]}")
        return found[0].state

    async def _watch_again(self, story: WatchedStory) -> None:
        """Compares what a client sees that calls after the end, at first without and then with a resume token."""
        reader = self._reader(story, 0)
        for _ in range(2):
            story.compare(reader, await reader.read())

    def _reader(self, story: WatchedStory, messages_a_call: int) -> Reader:
        reader = Reader(self._watches, story.owner_id, story.story_id, messages_a_call=messages_a_call)
        self._readers.append(reader)
        return reader

    def report(self, broken: Sequence[str]) -> str:
        trace = self.trace
        happened = {line.stop for line in trace}
        faults = [
            f"{fault}{'' if index in happened else ' (did not happen)'}"
            for index, fault in enumerate(self._scenario.faults)
        ]
        sections: dict[str, Sequence[object]] = {
            "Broken": broken,
            "Faults": faults,
            "Steps": trace,
            "Warnings": self._log().splitlines()[-_LATEST_WARNINGS:],
        }
        return "\n".join(
            line for name, each in sections.items() for line in (f"{name}:", *(f"  {one}" for one in each))
        )

    def _log(self) -> str:
        log = self._environment.folder / "log"
        return log.read_text() if log.exists() else ""


async def _either(one: Awaitable[object], other: asyncio.Future[Any]) -> None:
    waiting = asyncio.ensure_future(one)
    await asyncio.wait([waiting, other], return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    with suppress(asyncio.CancelledError):
        await waiting
