"""Combinations of requests, watchers, cancellations and faults that Hypothesis generates."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from .failpoints import Action, Moment, Stop
from .pipeline import Pipeline
from .runner import run_concurrently
from .scenario import Fault, Scenario, StoryRequest, Watcher, WhileFrozen

EXAMPLES = 10
AT_A_TIME = 4
"""Scenarios of an example; they run at the same time."""
LATEST_STEP = {"story": 45, "notification": 20, "api": 4}
"""About as many steps as one story takes: a fault at a later one seldom happens."""


@st.composite
def faults(draw: st.DrawFn) -> Fault:
    role = draw(st.sampled_from(sorted(LATEST_STEP, reverse=True)))
    step = draw(st.integers(1, LATEST_STEP[role]))
    moment = draw(st.sampled_from(Moment))
    # A frozen API call holds no lease that others wait for.
    while_frozen = draw(st.sampled_from((None, *WhileFrozen) if role != "api" else (None,)))
    if while_frozen is None:
        return Fault(Stop(role, step, moment))
    return Fault(Stop(role, step, moment, Action.FREEZE), while_frozen)


# Fewer than three messages a call would bring no progress: the first repeats what was seen, and the last may correct it.
watchers = st.builds(Watcher, messages_a_call=st.sampled_from((0, 3, 4, 9)), late=st.booleans())
requests = st.builds(
    StoryRequest,
    watchers=st.lists(watchers, min_size=1, max_size=3).map(tuple),
    cancelled=st.booleans(),
    retries=st.integers(0, 2),
)
scenarios = st.builds(
    Scenario,
    requests=st.lists(requests, min_size=1, max_size=4).map(tuple),
    story_workers=st.integers(1, 3),
    notification_workers=st.integers(1, 2),
    attempts=st.sampled_from((5, 1, 2)),
    faults=st.lists(faults(), min_size=1, max_size=5).map(tuple),
)


@pytest.mark.timeout(1800)  # a failure is shrunk to the fewest faults before it is shown
async def test_whatever_happens_every_story_ends_once_and_is_told_of_once(pipelines: list[Pipeline]) -> None:
    loop = asyncio.get_running_loop()

    # Derandomized, so that a failure is due to a change and not to chance.
    @settings(
        max_examples=EXAMPLES,
        derandomize=True,
        database=None,
        deadline=None,
        print_blob=True,
        phases=(Phase.generate, Phase.shrink),
        # Each scenario runs real processes.
        suppress_health_check=[HealthCheck.too_slow],
    )
    @given(examples=st.lists(scenarios, min_size=AT_A_TIME, max_size=AT_A_TIME))
    def explore(examples: list[Scenario]) -> None:
        running = asyncio.run_coroutine_threadsafe(run_concurrently(pipelines, examples, Pipeline.run), loop)
        try:
            running.result()
        except ExceptionGroup as failed:
            # Hypothesis would take groups of different sizes for different failures.
            raise failed.exceptions[0] from None

    await asyncio.to_thread(explore)
