"""Runs one scenario again and again, each time with a crash at another step, until every step has had its crash."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle

import pytest

from .failpoints import Action, Line, Moment, Stop
from .pipeline import Pipeline
from .runner import run_concurrently
from .scenario import Fault, Scenario, StoryRequest, Watcher, WhileFrozen

MORE_TRIES = 4
MAIL_RENEWED = ("notification", "XCLAIM inbox:notification workers")
"""Left out: a mail is sent long before its lease has to be renewed, unless the machine stood still during the recording."""
WATCHERS = (Watcher(), Watcher(messages_a_call=3), Watcher(messages_a_call=5, late=True))
PLAIN = Scenario(requests=(StoryRequest(WATCHERS),))
CANCELLED = Scenario(requests=(StoryRequest(WATCHERS, cancelled=True, retries=1),), pace_seconds=0.01)


def stops(trace: Sequence[Line], moment: Moment, action: Action = Action.KILL) -> Iterator[Stop]:
    """A stop for each step; of repeated steps for the first and the last, or for the last alone if it is not after the step."""
    counts = Counter((line.role, line.label) for line in trace if line.stop is None)
    for (role, label), count in counts.items():
        for step in sorted({1 if moment is Moment.AFTER else count, count}):
            yield Stop(role, step, moment, action, label)


async def recorded(pipelines: Sequence[Pipeline], scenario: Scenario) -> list[Line]:
    """The steps of every run of the scenario. Others, such as the renewal of a lease, depend on the speed of the machine."""
    first, *others = await asyncio.gather(*(pipeline.run(scenario) for pipeline in pipelines[:3]))
    always = set.intersection(*({(line.role, line.label) for line in other} for other in others))
    return [line for line in first if (line.role, line.label) in always - {MAIL_RENEWED}]


async def run_with_each_stop(pipelines: Sequence[Pipeline], scenario: Scenario, stops: Iterable[Stop]) -> None:
    await run_with_each_fault(pipelines, scenario, map(Fault, stops))


async def run_with_each_fault(pipelines: Sequence[Pipeline], scenario: Scenario, faults: Iterable[Fault]) -> None:
    """Runs the scenario with each of the faults alone.

    How many steps of a kind there are depends on the speed of the machine. A fault that did not happen is tried again, in the
    end at earlier steps of its kind; one that never happens is an error.
    """

    async def run(pipeline: Pipeline, fault: Fault) -> None:
        stop = fault.stop
        for step in (stop.step, *range(stop.step, 0, -1), *[1] * MORE_TRIES):
            trace = await pipeline.run(replace(scenario, faults=(replace(fault, stop=replace(stop, step=step)),)))
            if any(line.stop is not None for line in trace):
                return
        raise AssertionError(f"{stop} never happens")

    await run_concurrently(pipelines, faults, run)


@pytest.mark.timeout(900)
async def test_a_kill_after_any_step_breaks_nothing(pipelines: list[Pipeline]) -> None:
    trace = await recorded(pipelines, PLAIN)
    await run_with_each_stop(pipelines, PLAIN, [*stops(trace, Moment.AFTER)])


@pytest.mark.timeout(900)
async def test_a_kill_before_any_step_or_in_its_middle_breaks_nothing(pipelines: list[Pipeline]) -> None:
    trace = await recorded(pipelines, PLAIN)
    await run_with_each_stop(pipelines, PLAIN, [*stops(trace, Moment.MIDWAY)])


@pytest.mark.timeout(900)
async def test_a_process_that_freezes_after_any_step_and_resumes_when_another_has_taken_over_breaks_nothing(
    pipelines: list[Pipeline],
) -> None:
    trace = await recorded(pipelines, PLAIN)
    for role in ("story", "notification"):
        two = replace(PLAIN, story_workers=1 + (role == "story"), notification_workers=1 + (role == "notification"))
        theirs = [line for line in trace if line.role == role]
        frozen = stops(theirs, Moment.AFTER, Action.FREEZE)
        until_when = cycle((WhileFrozen.ANOTHER_TAKES_OVER, WhileFrozen.ANOTHER_ENDS_IT))
        await run_with_each_fault(pipelines, two, map(Fault, frozen, until_when))


@pytest.mark.timeout(900)
async def test_a_kill_at_any_step_of_a_cancellation_or_a_retry_breaks_nothing(pipelines: list[Pipeline]) -> None:
    plain = {(line.role, line.label) for line in await recorded(pipelines, PLAIN)}
    trace = await recorded(pipelines, CANCELLED)
    found = [line for line in trace if line.role == "api" or (line.role, line.label) not in plain]
    await run_with_each_stop(pipelines, CANCELLED, [*stops(found, Moment.BEFORE), *stops(found, Moment.AFTER)])


@pytest.mark.timeout(900)
async def test_a_redis_that_forgets_progress_or_everything_at_any_step_breaks_nothing(
    pipelines: list[Pipeline],
) -> None:
    trace = await recorded(pipelines, PLAIN)
    frozen = list(stops([line for line in trace if line.role == "story"], Moment.AFTER, Action.FREEZE))
    lost = cycle((WhileFrozen.LOSE_PROGRESS, WhileFrozen.LOSE_REDIS))
    await run_with_each_fault(pipelines, PLAIN, map(Fault, frozen, lost))
