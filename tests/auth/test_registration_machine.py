"""Registrations in any order: who gets which answer and which accounts exist, told by a model of a few lines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Coroutine
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest
from google.rpc.error_details_pb2 import RetryInfo
from grpc.aio import AioRpcError
from hypothesis import strategies as st
from hypothesis.stateful import invariant, precondition, rule
from storymesh.auth.v1 import registration_service_pb2 as pb
from storymesh.events.v1 import auth_events_pb2 as events

from tests.auth.conftest import AuthWorld, MakeWorld, Member
from tests.auth.machines import WorldMachine, clean_up, explore, rows
from tests.statuses import detail, reason_of

ADDRESSES = ("ada@example.org", "bob@example.org", "eve@example.org")

CODE_LIFE, REGISTRATION_LIFE = timedelta(minutes=10), timedelta(minutes=30)
WINDOWS = ((timedelta(minutes=1), 1), (timedelta(hours=1), 5), (timedelta(days=1), 10))
DAY = timedelta(days=1)
LIVE = 3
ATTEMPTS = 5
ATTEMPTS_A_DAY = 7
"""Fewer than by default, or no example would be long enough to spend them."""

addresses = st.sampled_from(ADDRESSES)
usernames = st.sampled_from(("reader", "Reader", None))
latest = st.integers(0, 3)
"""Which registration: first those that can be completed, the latest first, then those that have ended."""
short_pauses = st.sampled_from([timedelta(seconds=seconds) for seconds in (60, 1, 59, 61, 599)])
long_pauses = st.sampled_from([timedelta(seconds=seconds) for seconds in (600, 1200, 1800, 3540, 3600, 40_000, 86_400)])


@dataclass
class Flow:
    """One registration, as its caller knows it."""

    id: str
    address: str
    username: str | None
    ends_at: datetime
    code_ends_at: datetime
    codes: list[str] = field(default_factory=list)
    """Those that were mailed. None for an address that has an account."""
    attempts: int = 0
    voided: bool = False


@dataclass
class Budget:
    """What may still be sent to an address, and guessed at it."""

    sent_at: list[datetime] = field(default_factory=list)
    live_until: dict[str, datetime] = field(default_factory=dict)
    attempts_at: list[datetime] = field(default_factory=list)

    def wait(self, flow_id: str, now: datetime) -> timedelta:
        """Until a code may be sent for the registration; nothing or less: now."""
        waits = [timedelta(0)]
        for window, most in WINDOWS:
            if len(self.sent_at) >= most:
                waits.append(self.sent_at[-most] + window - now)
        live = {each: ends_at for each, ends_at in self.live_until.items() if ends_at > now}
        if flow_id not in live and len(live) >= LIVE:
            waits.append(min(live.values()) - now)
        return max(waits)

    def send(self, flow_id: str, now: datetime) -> None:
        self.sent_at.append(now)
        self.live_until[flow_id] = now + REGISTRATION_LIFE

    def attempts_left(self, now: datetime) -> bool:
        return sum(at > now - DAY for at in self.attempts_at) < ATTEMPTS_A_DAY


class RegistrationMachine(WorldMachine):
    """After each step there are exactly the accounts of the model, each announced once."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.flows: list[Flow] = []
        self.budgets: defaultdict[str, Budget] = defaultdict(Budget)
        self.accounts: dict[str, str | None] = {}
        """Usernames by address."""
        self.published: list[str] = []
        """Types of the events, oldest first."""

    @rule(address=addresses, username=usernames)
    def start(self, address: str, username: str | None) -> None:
        self.ask_for(address, username)

    @rule(address=addresses, username=usernames)
    def sign_up(self, address: str, username: str | None) -> None:
        """As most people do it, so that not every way is one of failures."""
        if self.ask_for(address, username) and self.flows[-1].codes:
            self.redeem(self.flows[-1], self.flows[-1].codes[-1])

    @rule(address=addresses, times=st.sampled_from((3, 6, 11)), pause=short_pauses | long_pauses)
    def start_again_and_again(self, address: str, times: int, pause: timedelta) -> None:
        for _ in range(times):
            self.ask_for(address, None)
            self.world.clock.now += pause

    @precondition(lambda self: self.flows)
    @rule(which=latest)
    def resend(self, which: int) -> None:
        self.ask_again(self.flow(which))

    @rule()
    def resend_for_a_made_up_registration(self) -> None:
        registration_id = str(uuid4())
        assert self.issue(f"unknown {registration_id}", registration_id, self.resending(registration_id))

    @precondition(lambda self: self.flows)
    @rule(which=latest)
    def complete_with_a_wrong_code(self, which: int) -> None:
        self.guess(self.flow(which))

    @precondition(lambda self: self.flows)
    @rule(which=latest, guesses=st.sampled_from((4, 5, 0)))
    def guess_before_and_after_a_resend(self, which: int, guesses: int) -> None:
        """Then the right code comes: too late, if there were as many wrong ones as there may be."""
        flow = self.flow(which)
        for _ in range(guesses):
            self.guess(flow)
        self.world.clock.advance(minutes=1)
        self.ask_again(flow)
        self.guess(flow)
        if flow.codes:
            self.redeem(flow, flow.codes[-1])

    @precondition(lambda self: any(flow.codes for flow in self.flows))
    @rule(which=latest, age=st.sampled_from((0, 0, 1, 2)))
    def complete_with_a_mailed_code(self, which: int, age: int) -> None:
        """The newest of the registration, or one that a resend has replaced."""
        mailed = [flow for flow in self.ordered() if flow.codes]
        flow = mailed[which % len(mailed)]
        self.redeem(flow, flow.codes[-1 - age % len(flow.codes)])

    @precondition(lambda self: sum(bool(flow.codes) for flow in self.flows) > 1)
    @rule(which=latest, others=latest)
    def complete_with_a_code_of_another_registration(self, which: int, others: int) -> None:
        codes = [flow.codes[-1] for flow in self.ordered() if flow.codes]
        self.redeem(self.flow(which), codes[others % len(codes)])

    @rule()
    def complete_a_made_up_registration(self) -> None:
        assert self.outcome(self.world.complete(str(uuid4()), "000000")) == "CODE_INVALID"

    @rule(pause=short_pauses)
    def wait(self, pause: timedelta) -> None:
        self.world.clock.now += pause

    @rule(pause=long_pauses)
    def come_back_later(self, pause: timedelta) -> None:
        self.world.clock.now += pause

    @rule()
    def clean_up(self) -> None:
        """What upkeep removes is nothing that anybody could have noticed."""
        self.run(clean_up(self.world))

    @invariant()
    def exactly_the_accounts_of_the_model_exist_and_each_was_announced_once(self) -> None:
        accounts, ids, published = self.run(self.state())
        assert accounts == self.accounts
        assert [kind.rpartition(".")[2] for kind, _ in published] == self.published
        registered = events.UserRegistered.DESCRIPTOR.full_name
        announced = [
            events.UserRegistered.FromString(payload).user_id for kind, payload in published if kind == registered
        ]
        assert sorted(announced) == sorted(ids)

    async def state(self) -> tuple[dict[str, str | None], list[str], list[tuple[str, bytes]]]:
        users = await rows(self.world, "SELECT id, email, username FROM users")
        return (
            {email: username for _, email, username in users},
            [str(user_id) for user_id, *_ in users],
            await self.world.published(),
        )

    def ordered(self) -> list[Flow]:
        latest_first = self.flows[::-1]
        return sorted(latest_first, key=lambda flow: not self.alive(flow))

    def flow(self, which: int) -> Flow:
        return self.ordered()[which % len(self.flows)]

    def alive(self, flow: Flow) -> bool:
        return not flow.voided and flow.ends_at > self.now

    def ask_again(self, flow: Flow) -> None:
        if not self.alive(flow):
            self.issue(f"unknown {flow.id}", flow.id, self.resending(flow.id))
        elif flow.attempts >= ATTEMPTS:
            assert self.outcome(self.resending(flow.id)) == "CODE_ATTEMPTS_SPENT"
        elif self.issue(flow.address, flow.id, self.resending(flow.id)):
            self.mailed(flow)

    def guess(self, flow: Flow) -> None:
        self.redeem(flow, next(digits for digits in ("000000", "111111") if digits not in flow.codes[-1:]))

    async def resending(self, registration_id: str) -> str:
        request = pb.ResendRegistrationCodeRequest(registration_id=registration_id)
        response = await self.world.registrations.ResendRegistrationCode(request)
        assert response.code_expire_time.ToDatetime(self.now.tzinfo) == self.now + CODE_LIFE
        return registration_id

    def ask_for(self, address: str, username: str | None) -> bool:
        registration_id = self.issue(address, "", self.world.start(address, username=username))
        if registration_id:
            flow = Flow(registration_id, address, username, ends_at=self.now, code_ends_at=self.now)
            self.flows.append(flow)
            self.mailed(flow)
        return registration_id is not None

    def issue(self, address: str, flow_id: str, call: Coroutine[Any, Any, str]) -> str | None:
        """The registration's id if a code was issued; whether one may be, and when again, is the budget's to say."""
        budget = self.budgets[address]
        wait = budget.wait(flow_id, self.now)
        if wait > timedelta(0):
            with pytest.raises(AioRpcError) as raised:
                self.run(call)
            retry = detail(raised.value, RetryInfo)
            assert (reason_of(raised.value), retry and retry.retry_delay.ToTimedelta()) == ("TOO_MANY_CODES", wait)
            return None
        flow_id = self.run(call)
        budget.send(flow_id, self.now)
        return flow_id

    def mailed(self, flow: Flow) -> None:
        flow.ends_at, flow.code_ends_at = self.now + REGISTRATION_LIFE, self.now + CODE_LIFE
        if flow.address in self.accounts:
            self.published.append("RegistrationRepeated")
        else:
            self.published.append("CodeIssued")
            flow.codes.append(self.run(self.world.code(flow.id)))

    def redeem(self, flow: Flow, digits: str) -> None:
        expected = self.judged(flow, digits)
        outcome = self.outcome(self.world.complete(flow.id, digits))
        if expected is not None:
            assert outcome == expected
            if expected == "USERNAME_TAKEN":
                for _ in range(ATTEMPTS):
                    assert self.outcome(self.world.complete(flow.id, digits)) == expected, (
                        "the code is not good any more"
                    )
            return
        assert isinstance(outcome, Member), outcome
        assert (outcome.user.email, outcome.user.username) == (flow.address, flow.username or "")
        self.accounts[flow.address] = flow.username
        self.published.append("UserRegistered")
        self.budgets[flow.address].live_until.pop(flow.id)
        for each in self.flows:
            each.voided |= each.address == flow.address

    def judged(self, flow: Flow, digits: str) -> str | None:
        """The reason to refuse the code, None for the one that makes the account. An attempt is spent by wrong codes only."""
        budget = self.budgets[flow.address]
        if not self.alive(flow) or flow.code_ends_at <= self.now:
            return "CODE_INVALID"
        if flow.attempts >= ATTEMPTS or not budget.attempts_left(self.now):
            return "CODE_INVALID"
        if digits not in flow.codes[-1:]:
            flow.attempts += 1
            budget.attempts_at.append(self.now)
            return "CODE_INVALID"
        taken = {username.lower() for username in self.accounts.values() if username}
        if flow.username and flow.username.lower() in taken:
            return "USERNAME_TAKEN"
        return None


@pytest.mark.timeout(600)  # a failure is shrunk to few steps before it is shown
async def test_registrations_in_any_order_make_the_accounts_and_answers_of_the_model(make_world: MakeWorld) -> None:
    world: AuthWorld = await make_world(code_attempts_a_day=ATTEMPTS_A_DAY)
    await explore(RegistrationMachine, world, examples=30, steps=50)
