"""One story after the other, each with a crash at another place: at every place there is."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import cycle

import pytest

from .failpoints import Deed, Line, Moment, Stop
from .playing import side_by_side
from .scenario import Asked, Incident, Meanwhile, Scenario, Watching
from .world import World

MORE_TRIES = 4
MAIL_RENEWED = ("notification", "XCLAIM inbox:notification workers")
"""A mail is sent well before its lease has to be renewed, but where the machine stood still while that was recorded."""
WATCHERS = (Watching(), Watching(messages_a_call=3), Watching(messages_a_call=5, late=True))
PLAIN = Scenario(asked=(Asked(WATCHERS),))
CANCELLED = Scenario(asked=(Asked(WATCHERS, cancelled=True, retries=1),), pace_seconds=0.01)


def stops(trace: Sequence[Line], moment: Moment, deed: Deed = Deed.DIE) -> Iterator[Stop]:
    """One at each step; of what is done again and again, at the first and the last time, but before it at the last alone."""
    counts = Counter((line.role, line.label) for line in trace if line.stop is None)
    for (role, label), count in counts.items():
        for step in sorted({1 if moment is Moment.AFTER else count, count}):
            yield Stop(role, step, moment, deed, label)


async def recorded(worlds: Sequence[World], scenario: Scenario) -> list[Line]:
    """What is done whenever the scenario is played: how soon a lease has to be renewed, say, depends on the machine."""
    first, *others = await asyncio.gather(*(world.play(scenario) for world in worlds[:3]))
    always = set.intersection(*({(line.role, line.label) for line in other} for other in others))
    return [line for line in first if (line.role, line.label) in always - {MAIL_RENEWED}]


async def play_with_each(worlds: Sequence[World], scenario: Scenario, stops: Iterable[Stop]) -> None:
    await play_with_each_incident(worlds, scenario, map(Incident, stops))


async def play_with_each_incident(worlds: Sequence[World], scenario: Scenario, incidents: Iterable[Incident]) -> None:
    """Each in a scenario of its own. It must happen, if not this time, then one of the next; if need be at an earlier step,
    for how many there are of a kind depends on the machine.
    """

    async def play(world: World, incident: Incident) -> None:
        stop = incident.stop
        for step in (stop.step, *range(stop.step, 0, -1), *[1] * MORE_TRIES):
            trace = await world.play(replace(scenario, incidents=(replace(incident, stop=replace(stop, step=step)),)))
            if any(line.stop is not None for line in trace):
                return
        raise AssertionError(f"{stop} never happens")

    await side_by_side(worlds, incidents, play)


@pytest.mark.timeout(300)
async def test_a_kill_after_any_step_breaks_nothing(worlds: list[World]) -> None:
    trace = await recorded(worlds, PLAIN)
    await play_with_each(worlds, PLAIN, [*stops(trace, Moment.AFTER)])


@pytest.mark.timeout(300)
async def test_a_kill_before_any_step_or_in_its_middle_breaks_nothing(worlds: list[World]) -> None:
    trace = await recorded(worlds, PLAIN)
    await play_with_each(worlds, PLAIN, [*stops(trace, Moment.MIDWAY)])


@pytest.mark.timeout(300)
async def test_whoever_freezes_after_any_step_and_goes_on_when_another_has_taken_over_breaks_nothing(
    worlds: list[World],
) -> None:
    trace = await recorded(worlds, PLAIN)
    for role in ("story", "notification"):
        two = replace(PLAIN, story_workers=1 + (role == "story"), notification_workers=1 + (role == "notification"))
        theirs = [line for line in trace if line.role == role]
        frozen = stops(theirs, Moment.AFTER, Deed.FREEZE)
        until_when = cycle((Meanwhile.ANOTHER_TAKES_OVER, Meanwhile.ANOTHER_ENDS_IT))
        await play_with_each_incident(worlds, two, map(Incident, frozen, until_when))


@pytest.mark.timeout(300)
async def test_a_kill_at_any_step_of_a_cancellation_or_a_retry_breaks_nothing(worlds: list[World]) -> None:
    plain = {(line.role, line.label) for line in await recorded(worlds, PLAIN)}
    trace = await recorded(worlds, CANCELLED)
    found = [line for line in trace if line.role == "desk" or (line.role, line.label) not in plain]
    await play_with_each(worlds, CANCELLED, [*stops(found, Moment.BEFORE), *stops(found, Moment.AFTER)])


@pytest.mark.timeout(300)
async def test_a_redis_that_forgets_progress_or_everything_at_any_step_breaks_nothing(worlds: list[World]) -> None:
    trace = await recorded(worlds, PLAIN)
    frozen = list(stops([line for line in trace if line.role == "story"], Moment.AFTER, Deed.FREEZE))
    lost = cycle((Meanwhile.LOSE_PROGRESS, Meanwhile.LOSE_REDIS))
    await play_with_each_incident(worlds, PLAIN, map(Incident, frozen, lost))
