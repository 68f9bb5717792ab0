"""Registrations in any order: answers and accounts, compared with a model of a few lines."""

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
from storymesh.events.v1 import auth_events_pb2 as events

from tests.auth.conftest import AuthWorld, MakeWorld, Member
from tests.auth.machines import WorldMachine, clean_up, explore, rows
from tests.statuses import detail, reason_of

pytestmark = pytest.mark.slow

ADDRESSES = ("ada@example.org", "bob@example.org", "eve@example.org")

NETWORKS = ("192.0.2.1", "2001:db8::1")

CODE_LIFE, REGISTRATION_LIFE = timedelta(minutes=10), timedelta(minutes=30)
COOLDOWN, REPEAT = timedelta(minutes=1), timedelta(seconds=15)
WINDOWS = ((timedelta(hours=1), 5, 6), (timedelta(days=1), 10, 12))
"""Windows: length, limit of one network, limit of both together. The latter is below the default, so that examples reach it."""

DAY = timedelta(days=1)
ATTEMPTS = 5
ATTEMPTS_A_DAY = 7
"""Below the default, so that examples are long enough to spend them."""

addresses = st.sampled_from(ADDRESSES)
usernames = st.sampled_from(("reader", "Reader", None))
latest = st.integers(0, 3)
"""Chooses a registration: first those that can be completed, newest first, then the ended ones."""
networks = st.sampled_from(NETWORKS)
short_pauses = st.sampled_from([timedelta(seconds=seconds) for seconds in (60, 1, 14, 15, 59, 61, 599)])
long_pauses = st.sampled_from([timedelta(seconds=seconds) for seconds in (600, 1200, 1800, 3540, 3600, 40_000, 86_400)])


@dataclass(eq=False)
class MailedCode:
    """A code with which one or more registrations can be completed."""

    network: str
    begun_at: datetime
    ends_at: datetime
    mailed_at: datetime
    digits: str | None = None
    """None if it was not mailed, because the address has an account."""
    shared_attempts: int = 0
    redeemed: bool = False


@dataclass
class Flow:
    """One registration, as its caller knows it."""

    id: str
    address: str
    network: str
    username: str | None
    ends_at: datetime
    code: MailedCode
    mailed_at: datetime
    shares: bool
    """Whether its first code was another registration's."""
    codes: list[MailedCode] = field(default_factory=list)
    """All codes that it has had."""
    attempts: int = 0
    voided: bool = False


@dataclass
class Budget:
    """Mails sent to an address by requester, and the guesses at its codes."""

    sent: list[tuple[datetime, MailedCode]] = field(default_factory=list)
    newest: dict[str, MailedCode] = field(default_factory=dict)
    """The newest code by network."""
    attempts_at: dict[str, list[datetime]] = field(default_factory=lambda: defaultdict(list))
    renewed_at: datetime | None = None
    """The last resend for an unknown registration."""

    def wait(self, network: str, now: datetime) -> timedelta:
        """The time until a code may be sent; zero or less: now."""
        altogether = [at for at, _ in self.sent]
        own = [at for at, code in self.sent if code.network == network]
        waits = [timedelta(0)]
        for window, most, most_altogether in WINDOWS:
            for sent_at, limit in ((own, most), (altogether, most_altogether)):
                if len(sent_at) >= limit:
                    waits.append(sent_at[-limit] + window - now)
        return max(waits)

    def live(self, network: str, now: datetime) -> MailedCode | None:
        code = self.newest.get(network)
        alive = code and code.ends_at > now and not code.redeemed and code.shared_attempts < ATTEMPTS
        return code if alive else None

    def attempts_left(self, network: str, now: datetime) -> bool:
        return sum(at > now - DAY for at in self.attempts_at[network]) < ATTEMPTS_A_DAY


class RegistrationMachine(WorldMachine):
    """After each step the accounts are those of the model, each announced once."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.flows: list[Flow] = []
        self.budgets: defaultdict[str, Budget] = defaultdict(Budget)
        self.accounts: dict[str, str | None] = {}
        """Usernames by address."""
        self.published: list[str] = []
        """Types of the events, oldest first."""

    @rule(address=addresses, username=usernames, network=networks)
    def start(self, address: str, username: str | None, network: str) -> None:
        self.ask_for(address, username, network)

    @rule(address=addresses, username=usernames, network=networks)
    def sign_up(self, address: str, username: str | None, network: str) -> None:
        """Register and complete at once, as most people do, so that examples are not mostly failures."""
        if self.ask_for(address, username, network) and self.flows[-1].code.digits:
            self.redeem(self.flows[-1], self.flows[-1].code.digits)

    @rule(address=addresses, times=st.sampled_from((3, 6, 11)), pause=short_pauses | long_pauses, network=networks)
    def start_again_and_again(self, address: str, times: int, pause: timedelta, network: str) -> None:
        for _ in range(times):
            self.ask_for(address, None, network)
            self.world.clock.now += pause

    @precondition(lambda self: self.flows)
    @rule(which=latest, network=networks)
    def resend(self, which: int, network: str) -> None:
        self.ask_again(self.flow(which), network)

    @rule(network=networks)
    def resend_for_a_made_up_registration(self, network: str) -> None:
        self.resend_unknown(str(uuid4()), network)

    @precondition(lambda self: self.flows)
    @rule(which=latest)
    def complete_with_a_wrong_code(self, which: int) -> None:
        self.guess(self.flow(which))

    @precondition(lambda self: self.flows)
    @rule(which=latest, guesses=st.sampled_from((4, 5, 0)))
    def guess_before_and_after_a_resend(self, which: int, guesses: int) -> None:
        """Then try the right code, which is too late if the attempts are spent."""
        flow = self.flow(which)
        for _ in range(guesses):
            self.guess(flow)
        self.world.clock.advance(minutes=1)
        self.ask_again(flow, flow.network)
        self.guess(flow)
        if flow.code.digits:
            self.redeem(flow, flow.code.digits)

    @precondition(lambda self: any(flow.code.digits for flow in self.flows))
    @rule(which=latest, age=st.sampled_from((0, 0, 1, 2)))
    def complete_with_a_mailed_code(self, which: int, age: int) -> None:
        """Complete with the newest code of the registration, or with one that a resend has replaced."""
        mailed = [flow for flow in self.ordered() if flow.code.digits]
        flow = mailed[which % len(mailed)]
        digits = [code.digits for code in flow.codes if code.digits]
        self.redeem(flow, digits[-1 - age % len(digits)])

    @precondition(lambda self: sum(bool(flow.code.digits) for flow in self.flows) > 1)
    @rule(which=latest, others=latest)
    def complete_with_a_code_of_another_registration(self, which: int, others: int) -> None:
        codes = [flow.code.digits for flow in self.ordered() if flow.code.digits]
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
        """Upkeep deletes nothing that a caller could notice."""
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

    def guess(self, flow: Flow) -> None:
        self.redeem(flow, next(digits for digits in ("000000", "111111") if digits != flow.code.digits))

    def ask_for(self, address: str, username: str | None, network: str) -> bool:
        """Whether another registration begins; it is then the last one."""
        budget, call = self.budgets[address], self.world.start(address, username=username, ip=network)
        wait, code = budget.wait(network, self.now), budget.live(network, self.now)
        shares = code is not None and (wait > timedelta(0) or self.now - code.begun_at < COOLDOWN)
        if wait > timedelta(0) and not shares:
            self.refused(call, wait)
            return False
        flow_id = self.run(call)
        if code is None or not shares:
            code = budget.newest[network] = MailedCode(network, self.now, self.now + CODE_LIFE, self.now)
            due = True
        else:
            due = wait <= timedelta(0) and self.now - code.mailed_at >= REPEAT
        ends_at = self.now + REGISTRATION_LIFE
        if due:
            code.mailed_at = self.now
        flow = Flow(flow_id, address, network, username, ends_at, code, code.mailed_at, shares, [code])
        self.flows.append(flow)
        if due:
            self.mailed(flow)
        return True

    def ask_again(self, flow: Flow, network: str) -> None:
        if not self.alive(flow):
            self.resend_unknown(flow.id, network)
            return
        if flow.attempts >= ATTEMPTS:
            assert self.outcome(self.world.resend(flow.id, ip=network)) == "CODE_ATTEMPTS_SPENT"
            return
        budget = self.budgets[flow.address]
        if self.renewed(budget, flow.id, network, flow.mailed_at, flow.code.ends_at):
            flow.code, flow.shares = MailedCode(network, self.now, self.now + CODE_LIFE, self.now), False
            flow.codes.append(flow.code)
            flow.mailed_at, flow.ends_at = self.now, self.now + REGISTRATION_LIFE
            self.mailed(flow)

    def resend_unknown(self, registration_id: str, network: str) -> None:
        budget = self.budgets[f"unknown {registration_id}"]
        ends_at = (budget.renewed_at or self.now) + CODE_LIFE
        if self.renewed(budget, registration_id, network, budget.renewed_at, ends_at):
            budget.renewed_at = self.now
            budget.sent.append((self.now, MailedCode(network, self.now, self.now + CODE_LIFE, self.now)))

    def renewed(
        self, budget: Budget, registration_id: str, network: str, mailed_at: datetime | None, ends_at: datetime
    ) -> bool:
        """Whether the resend mails a new code."""
        call, wait = self.world.resend(registration_id, ip=network), budget.wait(network, self.now)
        if mailed_at and self.now - mailed_at < REPEAT:
            assert self.run(call) == ends_at
            return False
        if wait > timedelta(0):
            self.refused(call, wait)
            return False
        assert self.run(call) == self.now + CODE_LIFE
        return True

    def refused(self, call: Coroutine[Any, Any, Any], wait: timedelta) -> None:
        with pytest.raises(AioRpcError) as raised:
            self.run(call)
        retry = detail(raised.value, RetryInfo)
        assert (reason_of(raised.value), retry and retry.retry_delay.ToTimedelta()) == ("TOO_MANY_CODES", wait)

    def mailed(self, flow: Flow) -> None:
        self.budgets[flow.address].sent.append((self.now, flow.code))
        if flow.address in self.accounts:
            self.published.append("RegistrationRepeated")
            return
        self.published.append("CodeIssued")
        digits = self.run(self.world.code(flow.id))
        assert flow.code.digits in (None, digits), "the same code was mailed with other digits"
        flow.code.digits = digits

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
        flow.code.redeemed = True
        budget = self.budgets[flow.address]
        budget.sent = [(at, code) for at, code in budget.sent if code not in flow.codes]
        for each in self.flows:
            each.voided |= each.address == flow.address

    def judged(self, flow: Flow, digits: str) -> str | None:
        """The reason to refuse the code, None if it creates the account. Only wrong codes spend an attempt."""
        budget, code = self.budgets[flow.address], flow.code
        if not self.alive(flow) or code.ends_at <= self.now or code.redeemed:
            return "CODE_INVALID"
        spent = flow.attempts >= ATTEMPTS or (flow.shares and code.shared_attempts >= ATTEMPTS)
        if spent or not budget.attempts_left(flow.network, self.now):
            return "CODE_INVALID"
        if digits != code.digits:
            flow.attempts += 1
            code.shared_attempts += flow.shares
            budget.attempts_at[flow.network].append(self.now)
            return "CODE_INVALID"
        if flow.address in self.accounts:
            return "CODE_INVALID"
        taken = {username.lower() for username in self.accounts.values() if username}
        if flow.username and flow.username.lower() in taken:
            return "USERNAME_TAKEN"
        return None


@pytest.mark.timeout(600)  # Hypothesis shrinks a failure to few steps
async def test_registrations_in_any_order_make_the_accounts_and_answers_of_the_model(make_world: MakeWorld) -> None:
    world: AuthWorld = await make_world(
        code_attempts_a_day=ATTEMPTS_A_DAY, codes_an_hour_altogether=6, codes_a_day_altogether=12
    )
    await explore(RegistrationMachine, world, examples=30, steps=50)
