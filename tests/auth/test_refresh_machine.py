"""Sessions and their refresh tokens in any order, compared with a model of generations and times."""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from grpc.aio import AioRpcError
from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule
from storymesh.auth.v1 import account_service_pb2
from storymesh.auth.v1 import session_service_pb2 as pb
from storymesh.auth.v1.tokens_pb2 import Tokens
from storymesh.events.v1 import auth_events_pb2 as events

from kit.runtime import base64url
from services.auth.model.refresh_tokens import RefreshTokens
from tests.auth.conftest import PASSWORD, MakeWorld, Member, session_id_of
from tests.auth.machines import WorldMachine, clean_up, explore, rows
from tests.identity import bearer
from tests.statuses import reason_of

pytestmark = pytest.mark.slow

PEOPLE = ("ada@example.org", "bob@example.org")
SESSIONS = 12

GRACE, REPEATS, LATE_REPEATS = timedelta(seconds=30), 10, 3
IDLE, ABSOLUTE = timedelta(days=30), timedelta(days=90)
ACCESS_TOKEN_LIFE = timedelta(minutes=10)
KEPT_AFTER_THE_END = timedelta(days=7)

people = st.sampled_from(PEOPLE)
latest = st.integers(0, 3)
"""Chooses a session: first the live ones, newest first, then the ended ones."""


@dataclass
class Family:
    """A session, as its owner's device and a thief of its tokens know it."""

    id: UUID
    owner: str
    tokens: list[str]
    """One token per generation, from generation 1."""
    ends_at: datetime
    expires_at: datetime
    rotated_at: datetime
    repeats: int = 0
    late: list[int] = field(default_factory=list)
    """The generations whose token was issued again late."""
    ended: str = ""
    """The reason of its end, empty unless it was revoked."""
    ended_at: datetime | None = None
    epoch: int = 0
    """The number of times that all sessions of its owner had been ended when it was opened."""
    ended_with_others: bool = False
    known: bool = True
    """False once upkeep has deleted the session."""

    def living(self, now: datetime) -> bool:
        return not self.ended and self.expires_at > now

    def end(self, why: str, now: datetime) -> None:
        if self.living(now):
            self.ended, self.ended_at = why, now

    def refusal(self, age: int, now: datetime) -> str | None:
        """Why the token `age` generations behind the newest is refused; None if it is accepted."""
        if not self.known:
            return "REFRESH_INVALID"
        if self.ended:
            return "SESSION_REVOKED"
        if not self.living(now):
            return "REFRESH_INVALID"
        if age == 0 or (age == 1 and self.repeats < REPEATS and not self.too_late(now)):
            return None
        return "REFRESH_REUSED"

    def ends_by_reuse(self, age: int, now: datetime) -> bool:
        """Whether the reuse ends the session. A retry in time does not, however often it comes."""
        return age > 1 or self.too_late(now)

    def is_late(self, now: datetime) -> bool:
        return now > self.rotated_at + GRACE

    def too_late(self, now: datetime) -> bool:
        """Whether a late repeat would exceed the limit of consecutive generations."""
        newest = len(self.tokens)
        before = all(newest - each in self.late for each in range(1, LATE_REPEATS + 1))
        return self.is_late(now) and before and newest not in self.late


class RefreshMachine(WorldMachine):
    """After each step the live sessions are those of the model, and each end has been announced once."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.families: list[Family] = []
        self.members: dict[str, Member] = {}
        self.passwords = dict.fromkeys(PEOPLE, PASSWORD)
        self.epochs = Counter[str]()
        self.told_of_many: list[tuple[str, str, int]] = []
        """Announced ends of several sessions: owner, reason and number."""

    @initialize()
    def register(self) -> None:
        for email in PEOPLE:
            self.members[email] = self.run(self.world.register(email))
            self.opened(email, self.members[email])

    @precondition(lambda self: len(self.families) < SESSIONS)
    @rule(email=people, devices=st.integers(1, 3))
    def sign_in(self, email: str, devices: int) -> None:
        for _ in range(devices):
            self.opened(email, self.run(self.world.sign_in(email, self.passwords[email])))

    @rule(which=latest, times=st.integers(1, 3))
    def refresh(self, which: int, times: int) -> None:
        family = self.family(which)
        for _ in range(times):
            self.present(family, age=0)

    @rule(which=latest, times=st.sampled_from((1, 2, 9, 11)))
    def retry(self, which: int, times: int) -> None:
        """Retry with the token before the newest, as after a lost answer."""
        family = self.family(which)
        for _ in range(times):
            self.present(family, age=1)

    @rule(which=latest, turns=st.integers(1, 5))
    def take_turns(self, which: int, turns: int) -> None:
        """A thief and the owner alternate: one refreshes, and later the other with the token before."""
        family = self.family(which)
        for _ in range(turns):
            self.present(family, age=0)
            self.world.clock.advance(minutes=10)
            self.present(family, age=1)

    @rule(which=latest, age=st.integers(2, 4), seconds=st.sampled_from((0, 31)))
    def replay(self, which: int, age: int, seconds: int) -> None:
        """Present a copied token after its owner has refreshed."""
        family = self.family(which)
        while family.living(self.now) and len(family.tokens) <= age:
            self.present(family, age=0)
        self.world.clock.advance(seconds=seconds)
        self.present(family, age)

    @rule(which=latest, devices=st.sampled_from((2, 12)))
    def refresh_many_times_at_once(self, which: int, devices: int) -> None:
        """One call rotates, and ten at most are repeats, in any order."""
        family = self.family(which)
        refused = family.refusal(0, self.now)
        outcomes = self.run(self.gathered(family.tokens[-1], devices))
        reasons = Counter(outcome for outcome in outcomes if isinstance(outcome, str))
        successors = {outcome.refresh_token for outcome in outcomes if isinstance(outcome, Tokens)}
        if refused:
            assert (reasons, successors) == ({refused: devices}, set())
            return
        beyond = max(0, devices - 1 - REPEATS)
        assert reasons == Counter({"REFRESH_REUSED": beyond} if beyond else {})
        assert len(successors) == 1, "two successors of one generation"
        self.rotated(family, successors.pop())
        family.repeats = devices - 1 - beyond

    @rule(which=latest, age=st.integers(0, 2), number=st.integers(0, 4))
    def forge(self, which: int, age: int, number: int) -> None:
        """Forge a token from a genuine one without the key. It is refused, and changes nothing in the session."""
        family, other = self.family(which), self.family(which + 1)
        token = self.token(family, age)
        prefix, raw = token[:5], base64url.decode(token[5:])
        generation = int.from_bytes(raw[16:20])
        forgeries = [
            raw[:-1] + bytes([raw[-1] ^ 1]),
            raw[:16] + (generation + 1).to_bytes(4) + raw[20:],
            raw[:16] + (generation - 1).to_bytes(4) + raw[20:],
            other.id.bytes + raw[16:],
            base64url.decode(RefreshTokens([b"x" * 32]).new(family.id, generation, bytes(16))[5:]),
        ]
        forgery = prefix + base64url.encode(forgeries[number])
        assert self.outcome(self.world.refresh(forgery)) == "REFRESH_INVALID"

    @rule(which=latest)
    def log_out(self, which: int) -> None:
        """Log out. A second time nothing changes, with or without an error."""
        family = self.family(which)
        outcome = self.outcome(self.called(self.world.sessions.Logout, pb.LogoutRequest(), family))
        assert isinstance(outcome, pb.LogoutResponse) or not family.living(self.now)
        family.end("LOGOUT", self.now)

    @rule(which=latest)
    def ask(self, which: int) -> None:
        self.act(self.world.accounts.GetAccount, account_service_pb2.GetAccountRequest(), self.family(which))

    @rule(which=latest, others=latest)
    def revoke(self, which: int, others: int) -> None:
        """Revoke a session from another one or itself. Another person's session is not found."""
        family, other = self.family(which), self.family(others)
        request = pb.RevokeSessionRequest(session_id=str(other.id))
        refused = "" if family.owner == other.owner and other.known else "SESSION_NOT_FOUND"
        if self.act(self.world.sessions.RevokeSession, request, family, refused):
            other.end("REVOKED", self.now)

    @rule(which=latest)
    def revoke_others(self, which: int) -> None:
        family = self.family(which)
        if self.act(self.world.sessions.RevokeOtherSessions, pb.RevokeOtherSessionsRequest(), family):
            self.end_others(family, "REVOKED")

    @rule(which=latest)
    def change_password(self, which: int) -> None:
        family = self.family(which)
        current = self.passwords[family.owner]
        changed = f"the password number {len(self.families)} {uuid4()}"
        request = account_service_pb2.ChangePasswordRequest(current_password=current, new_password=changed)
        if self.act(self.world.accounts.ChangePassword, request, family):
            self.passwords[family.owner] = changed
            self.end_others(family, "PASSWORD_CHANGED")

    @rule(seconds=st.sampled_from((1, 29, 30, 31)))
    def wait(self, seconds: int) -> None:
        self.world.clock.advance(seconds=seconds)

    @rule(days=st.sampled_from((1, 7, 7, 29, 30)))
    def come_back_later(self, days: int) -> None:
        self.world.clock.advance(days=days)

    @rule(which=latest, times=st.integers(1, 4), days=st.sampled_from((22, 29)))
    def stay_for_months(self, which: int, times: int, days: int) -> None:
        family = self.family(which)
        for _ in range(times):
            self.world.clock.advance(days=days)
            self.present(family, age=0)
            if not family.living(self.now):
                break

    @rule()
    def clean_up(self) -> None:
        self.run(clean_up(self.world))
        for family in self.families:
            family.known &= (
                min(family.expires_at, family.ended_at or family.expires_at) >= self.now - KEPT_AFTER_THE_END
            )

    @invariant()
    def exactly_the_sessions_of_the_model_live(self) -> None:
        query = "SELECT id, generation FROM sessions WHERE revoked_at IS NULL AND expires_at > :now"
        living = dict(self.run(rows(self.world, query, now=self.now)))
        assert living == {each.id: len(each.tokens) for each in self.families if each.living(self.now)}

    @invariant()
    def everybody_is_told_once_of_each_session_that_was_ended(self) -> None:
        told = Counter(
            (UUID(event.session_id), events.SessionRevokeReason.Name(event.reason).partition("REASON_")[2])
            for event in self.run(self.world.told(events.SessionRevoked))
        )
        alone = [each for each in self.families if each.ended and not each.ended_with_others]
        assert told == Counter((each.id, each.ended) for each in alone)

    @invariant()
    def everybody_is_told_once_of_sessions_that_were_ended_together(self) -> None:
        names = {member.user.id: email for email, member in self.members.items()}
        told = [
            (names[each.user_id], events.SessionRevokeReason.Name(each.reason).partition("REASON_")[2], each.count)
            for each in self.run(self.world.told(events.SessionsRevoked))
        ]
        assert told == self.told_of_many

    @invariant()
    def the_revocation_list_names_each_ended_session_while_a_token_of_it_may_live(self) -> None:
        self.run(self.world.ops.feed.refresh())
        for family in self.families:
            owner = UUID(self.members[family.owner].user.id)
            listed = self.world.ops.revocations.covers(session_id=family.id, user_id=owner, kid="", epoch=family.epoch)
            if family.living(self.now):
                assert not listed
            elif family.ended_at and family.ended_at + ACCESS_TOKEN_LIFE > self.now:
                assert listed

    def family(self, which: int) -> Family:
        latest_first = self.families[::-1]
        ordered = sorted(latest_first, key=lambda family: not family.living(self.now))
        return ordered[which % len(ordered)]

    def token(self, family: Family, age: int) -> str:
        return family.tokens[max(0, len(family.tokens) - 1 - age)]

    def opened(self, email: str, member: Member) -> None:
        now, tokens = self.now, member.tokens
        family = Family(
            session_id_of(tokens),
            email,
            [tokens.refresh_token],
            now + ABSOLUTE,
            now + IDLE,
            now,
            epoch=self.epochs[email],
        )
        self.families.append(family)

    def present(self, family: Family, age: int) -> None:
        """Present the token `age` generations behind the newest, or the oldest one."""
        age = min(age, len(family.tokens) - 1)
        refused = family.refusal(age, self.now)
        outcome = self.outcome(self.world.refresh(self.token(family, age)))
        if refused:
            assert outcome == refused
            if refused == "REFRESH_REUSED" and family.ends_by_reuse(age, self.now):
                family.end(refused, self.now)
            return
        assert isinstance(outcome, Tokens), outcome
        assert session_id_of(outcome) == family.id
        if age == 0:
            assert outcome.refresh_token not in family.tokens
            self.rotated(family, outcome.refresh_token)
        else:
            assert outcome.refresh_token == family.tokens[-1], "two successors of one generation"
            family.repeats += 1
            if family.is_late(self.now):
                family.late.append(len(family.tokens))
        assert outcome.refresh_token_expire_time.ToDatetime(UTC) == family.expires_at

    def rotated(self, family: Family, successor: str) -> None:
        family.tokens.append(successor)
        family.rotated_at, family.repeats = self.now, 0
        family.expires_at = min(self.now + IDLE, family.ends_at)

    def end_others(self, family: Family, why: str) -> None:
        others = [each for each in self.families if each.owner == family.owner and each is not family]
        living = [each for each in others if each.living(self.now)]
        for each in living:
            each.end(why, self.now)
            each.ended_with_others = True
        if living:
            self.told_of_many.append((family.owner, why, len(living)))
        self.epochs[family.owner] += 1

    def act(self, method: Any, request: Any, family: Family, refused: str = "") -> bool:
        """Call with an access token of the session, and assert that one of an ended session is refused."""
        outcome = self.outcome(self.called(method, request, family))
        reason = outcome if isinstance(outcome, str) else ""
        if not family.living(self.now):
            assert reason in {"SESSION_REVOKED", refused} - {""}
            return False
        assert reason == refused
        return not reason

    async def called(self, method: Any, request: Any, family: Family) -> Any:
        return await method(request, metadata=bearer(self.access_token(family)))

    def access_token(self, family: Family) -> str:
        """An unexpired access token, as if the session had just been refreshed."""
        claims = {
            "iss": self.world.settings.token_issuer,
            "aud": self.world.settings.token_audience,
            "sub": self.members[family.owner].user.id,
            "sid": str(family.id),
            "epoch": family.epoch,
            "jti": str(uuid4()),
            "iat": self.now,
            "exp": self.now + ACCESS_TOKEN_LIFE,
            "role": "USER",
        }
        return self.world.ops.keys.sign(claims)

    async def gathered(self, token: str, devices: int) -> list[Tokens | str]:
        async def once() -> Tokens | str:
            try:
                return await self.world.refresh(token)
            except AioRpcError as error:
                return reason_of(error)

        return await asyncio.gather(*(once() for _ in range(devices)))


@pytest.mark.timeout(600)  # Hypothesis shrinks a failure to few steps
async def test_sessions_in_any_order_live_and_end_as_in_the_model(make_world: MakeWorld) -> None:
    world = await make_world(refreshes_in_a_row=10_000)
    await explore(RefreshMachine, world, examples=30, steps=35)
