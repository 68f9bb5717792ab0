"""Stories, faults, losses and second thoughts in any combination that Hypothesis can think of."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from .failpoints import Deed, Moment, Stop
from .playing import side_by_side
from .scenario import Asked, Incident, Meanwhile, Scenario, Watching
from .world import World

EXAMPLES = 10
AT_A_TIME = 4
"""Scenarios of an example: they are played side by side."""
LATEST_STEP = {"story": 45, "notification": 20, "desk": 4}
"""About as many steps as one story takes: a fault at a later one seldom happens."""


@st.composite
def incidents(draw: st.DrawFn) -> Incident:
    role = draw(st.sampled_from(sorted(LATEST_STEP, reverse=True)))
    step = draw(st.integers(1, LATEST_STEP[role]))
    moment = draw(st.sampled_from(Moment))
    # Who is at the desk waits for nobody's lease.
    meanwhile = draw(st.sampled_from((None, *Meanwhile) if role != "desk" else (None,)))
    if meanwhile is None:
        return Incident(Stop(role, step, moment))
    return Incident(Stop(role, step, moment, Deed.FREEZE), meanwhile)


# With the first message of a call nobody gets on, for it repeats what was seen; and at the end there may be a last correction.
watchers = st.builds(Watching, messages_a_call=st.sampled_from((0, 3, 4, 9)), late=st.booleans())
asked = st.builds(
    Asked,
    watchers=st.lists(watchers, min_size=1, max_size=3).map(tuple),
    cancelled=st.booleans(),
    retries=st.integers(0, 2),
)
scenarios = st.builds(
    Scenario,
    asked=st.lists(asked, min_size=1, max_size=4).map(tuple),
    story_workers=st.integers(1, 3),
    notification_workers=st.integers(1, 2),
    attempts=st.sampled_from((5, 1, 2)),
    incidents=st.lists(incidents(), min_size=1, max_size=5).map(tuple),
)


@pytest.mark.timeout(600)  # a failure is shrunk to the fewest incidents before it is shown
async def test_whatever_happens_every_story_ends_once_and_is_told_of_once(worlds: list[World]) -> None:
    loop = asyncio.get_running_loop()

    # It takes the same ways every time, so that what fails is the fault of a change and never of the day.
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        print_blob=True,
        phases=(Phase.generate, Phase.shrink),
        # Each scenario is played by real processes.
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(played=st.lists(scenarios, min_size=AT_A_TIME, max_size=AT_A_TIME))
    def explore(played: list[Scenario]) -> None:
        playing = asyncio.run_coroutine_threadsafe(side_by_side(worlds, played, World.play), loop)
        try:
            playing.result()
        except ExceptionGroup as failed:
            # The first is enough, and Hypothesis would take groups of different sizes for different failures.
            raise failed.exceptions[0] from None

    await asyncio.to_thread(explore)
