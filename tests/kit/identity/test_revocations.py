"""What one process knows of revoked tokens, and how far it trusts that."""

from __future__ import annotations

from contextlib import AbstractContextManager
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from kit.identity.revocations import Revocation, RevocationKind, Revocations
from kit.runtime.clock import SKEW
from tests.kit.identity.feeding import Stopwatch

ALICE = UUID("01890000-0000-7000-8000-00000000a11c")
SESSION = UUID("01890000-0000-7000-8000-000000005e55")
KID = "key-1"
LIFE = timedelta(minutes=10)


class FakeClock:
    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def elapsed() -> Stopwatch:
    return Stopwatch()


@pytest.fixture
def revocations(clock: FakeClock, elapsed: Stopwatch) -> Revocations:
    return Revocations(clock, monotonic=elapsed)


def covers(revocations: Revocations, session_id: UUID = SESSION, user_id: UUID = ALICE, kid: str = KID) -> bool:
    return revocations.covers(session_id=session_id, user_id=user_id, kid=kid)


@pytest.mark.parametrize(
    ("kind", "value"),
    [(RevocationKind.SESSION, str(SESSION)), (RevocationKind.USER, str(ALICE)), (RevocationKind.KEY, KID)],
    ids=str,
)
async def test_a_token_is_covered_by_its_session_its_person_or_its_key(
    revocations: Revocations, clock: FakeClock, kind: RevocationKind, value: str
) -> None:
    revocations.replace(())
    assert not covers(revocations)
    revocations.add(Revocation(kind, value, clock.now + LIFE))
    assert covers(revocations)
    assert not covers(revocations, uuid4(), uuid4(), "key-2")


async def test_a_value_of_one_kind_is_none_of_another(revocations: Revocations, clock: FakeClock) -> None:
    revocations.replace([Revocation(RevocationKind.USER, str(SESSION), clock.now + LIFE)])
    assert not covers(revocations)


async def test_an_entry_lasts_as_long_as_the_tokens_are_taken_and_is_then_forgotten(
    revocations: Revocations, clock: FakeClock
) -> None:
    """Expired tokens are taken for the skew that clocks may have, so the entry has to outlast them."""
    revocations.add(Revocation(RevocationKind.USER, str(ALICE), clock.now + LIFE))
    clock.now += LIFE + SKEW - timedelta(microseconds=1)
    revocations.heard()
    assert covers(revocations)
    clock.now += timedelta(microseconds=1)
    assert not covers(revocations)
    assert revocations.current() == ()
    assert revocations.count == 0


async def test_what_is_past_already_is_not_taken(revocations: Revocations, clock: FakeClock) -> None:
    past = Revocation(RevocationKind.USER, str(ALICE), clock.now - SKEW)
    with revocations.subscribed() as queue:
        revocations.replace([past])
        revocations.add(past)
        assert queue.empty()
    assert revocations.current() == ()


async def test_the_list_grows_no_longer_than_tokens_live(revocations: Revocations, clock: FakeClock) -> None:
    """One revocation a second for a day."""
    largest = 0
    for _ in range(86_400):
        revocations.add(Revocation(RevocationKind.SESSION, str(uuid4()), clock.now + LIFE))
        clock.now += timedelta(seconds=1)
        largest = max(largest, revocations.count)
    assert largest <= (LIFE + SKEW).total_seconds()
    clock.now += LIFE + SKEW
    revocations.heard()
    assert revocations.count == 0


async def test_the_longer_life_of_two_counts(revocations: Revocations, clock: FakeClock) -> None:
    long, short = (Revocation(RevocationKind.USER, str(ALICE), clock.now + life) for life in (2 * LIFE, LIFE))
    for first, second in ((long, short), (short, long)):
        revocations.replace([first])
        revocations.add(second)
        assert revocations.current() == (long,)
    clock.now += LIFE + SKEW
    revocations.heard()
    assert covers(revocations)
    clock.now += LIFE
    assert not covers(revocations)
    assert revocations.current() == ()


async def test_an_end_beyond_all_time_is_an_end(revocations: Revocations) -> None:
    revocations.replace([Revocation(RevocationKind.USER, str(ALICE), datetime.max.replace(tzinfo=UTC))])
    assert covers(revocations)


async def test_a_snapshot_replaces_what_was_known(revocations: Revocations, clock: FakeClock) -> None:
    old, kept, new = (Revocation(RevocationKind.KEY, kid, clock.now + LIFE) for kid in ("old", "kept", "new"))
    revocations.replace([old, kept])
    revocations.replace([kept, new])
    assert set(revocations.current()) == {kept, new}


async def test_a_subscriber_gets_each_new_revocation_once(revocations: Revocations, clock: FakeClock) -> None:
    before, first, second, late = (Revocation(RevocationKind.KEY, kid, clock.now + LIFE) for kid in "abcd")
    revocations.replace([before])
    with revocations.subscribed() as queue:
        revocations.add(first)
        revocations.add(first)
        revocations.replace([before, first, second])
        assert [queue.get_nowait() for _ in range(queue.qsize())] == [first, second]
    revocations.add(late)
    assert queue.empty()


async def test_whoever_was_forgotten_and_is_revoked_again_is_new(revocations: Revocations, clock: FakeClock) -> None:
    revocations.replace([Revocation(RevocationKind.USER, str(ALICE), clock.now + LIFE)])
    clock.now += LIFE + SKEW
    again = Revocation(RevocationKind.USER, str(ALICE), clock.now + LIFE)
    for take in (revocations.add, lambda each: revocations.replace([each])):
        with revocations.subscribed() as queue:
            take(again)
            assert queue.get_nowait() == again
        clock.now += LIFE + SKEW
        again = Revocation(RevocationKind.USER, str(ALICE), clock.now + LIFE)


async def test_who_waits_for_a_revocation_is_called_for_ones_own_only(
    revocations: Revocations, clock: FakeClock
) -> None:
    called: list[str] = []

    def theirs(session_id: UUID) -> Revocation:
        return Revocation(RevocationKind.SESSION, str(session_id), clock.now + LIFE)

    revocations.replace(())
    stranger = uuid4()
    with (
        revocations.calling(lambda: called.append("mine"), session_id=SESSION, user_id=ALICE, kid=KID),
        revocations.calling(lambda: called.append("theirs"), session_id=stranger, user_id=uuid4(), kid=KID),
    ):
        revocations.add(theirs(uuid4()))
        assert called == []
        revocations.add(theirs(SESSION))
        assert called == ["mine"]
        revocations.replace([theirs(SESSION), theirs(stranger)])
        assert called == ["mine", "theirs"]
    revocations.add(Revocation(RevocationKind.KEY, KID, clock.now + LIFE))
    assert called == ["mine", "theirs"]


async def test_who_is_revoked_already_is_called_at_once(revocations: Revocations, clock: FakeClock) -> None:
    called: list[str] = []
    revocations.replace([Revocation(RevocationKind.KEY, KID, clock.now + LIFE)])
    with revocations.calling(lambda: called.append("now"), session_id=SESSION, user_id=ALICE, kid=KID):
        assert called == ["now"]


def of_alice(clock: FakeClock, before_epoch: int | None, excepted: UUID | None = None) -> Revocation:
    return Revocation(RevocationKind.USER, str(ALICE), clock.now + LIFE, before_epoch, excepted)


@pytest.mark.parametrize(
    ("before_epoch", "excepted", "session_id", "epoch", "covered"),
    [
        (3, None, SESSION, 2, True),
        (3, None, SESSION, 3, False),
        (3, None, SESSION, 4, False),
        (3, SESSION, SESSION, 2, False),
        (3, SESSION, uuid4(), 2, True),
        (3, SESSION, uuid4(), 3, False),
        (None, None, SESSION, 4, True),
    ],
)
async def test_of_a_person_the_sessions_before_an_epoch_are_covered_but_one(
    revocations: Revocations,
    clock: FakeClock,
    before_epoch: int | None,
    excepted: UUID | None,
    session_id: UUID,
    epoch: int,
    covered: bool,
) -> None:
    revocations.replace([of_alice(clock, before_epoch, excepted)])
    assert revocations.covers(session_id=session_id, user_id=ALICE, kid=KID, epoch=epoch) is covered
    assert not revocations.covers(session_id=session_id, user_id=uuid4(), kid=KID, epoch=epoch)


async def test_the_later_epoch_counts_in_whatever_order_they_are_heard(
    revocations: Revocations, clock: FakeClock
) -> None:
    first, second, last = of_alice(clock, 1, SESSION), of_alice(clock, 2), of_alice(clock, None)
    for heard in ((first, second, last), (last, second, first), (second, last, first)):
        revocations.replace(())
        for each in heard:
            revocations.add(each)
        assert revocations.current() == (last,)
    revocations.replace([second])
    revocations.add(first)
    assert covers(revocations)
    # The former lives longer, for the clock was put back meanwhile: what it covered stays covered.
    longer = Revocation(RevocationKind.USER, str(ALICE), clock.now + 2 * LIFE, 1)
    revocations.add(longer)
    clock.now += LIFE + SKEW
    revocations.heard()
    assert covers(revocations)
    clock.now += LIFE
    revocations.heard()
    assert revocations.count == 0


@pytest.mark.parametrize("word", ["revocation", "snapshot"])
async def test_who_waits_is_called_when_all_but_one_session_end_unless_theirs_is_the_one(
    revocations: Revocations, clock: FakeClock, word: str
) -> None:
    called: list[str] = []

    def take(revocation: Revocation) -> None:
        revocations.add(revocation) if word == "revocation" else revocations.replace([revocation])

    def waiting(name: str, session_id: UUID, epoch: int) -> AbstractContextManager[None]:
        return revocations.calling(
            lambda: called.append(name), session_id=session_id, user_id=ALICE, kid=KID, epoch=epoch
        )

    revocations.replace(())
    with (
        waiting("kept", SESSION, 0),
        waiting("other", uuid4(), 0),
        waiting("later", uuid4(), 1),
        revocations.subscribed() as queue,
    ):
        take(of_alice(clock, 1, SESSION))
        assert called == ["other"]
        take(of_alice(clock, 1, SESSION))
        assert called == ["other"]
        take(of_alice(clock, 2))
        assert sorted(called) == ["kept", "later", "other", "other"]
        assert queue.qsize() == 2


async def test_a_list_that_was_never_known_is_stale(revocations: Revocations, elapsed: Stopwatch) -> None:
    assert (revocations.known, revocations.stale, revocations.overdue) == (False, True, False)
    elapsed.seconds += 31
    assert (revocations.age_seconds, revocations.stale, revocations.overdue) == (31, True, True)


@pytest.mark.parametrize("word", ["snapshot", "revocation", "heartbeat"])
async def test_each_word_makes_the_list_good_for_thirty_seconds(
    revocations: Revocations, clock: FakeClock, elapsed: Stopwatch, word: str
) -> None:
    revocations.replace(())
    elapsed.seconds += 31
    assert (revocations.known, revocations.stale) == (True, True)
    match word:
        case "snapshot":
            revocations.replace(())
        case "revocation":
            revocations.add(Revocation(RevocationKind.KEY, KID, clock.now + LIFE))
        case "heartbeat":
            revocations.heard()
    elapsed.seconds += 30
    assert not revocations.stale
    elapsed.seconds += 0.1
    assert revocations.stale


@pytest.mark.parametrize("days", [-400, 400])
async def test_a_jump_of_the_wall_clock_makes_nothing_stale_or_fresh(
    revocations: Revocations, clock: FakeClock, elapsed: Stopwatch, days: int
) -> None:
    revocations.replace(())
    clock.now += timedelta(days=days)
    assert not revocations.stale
    elapsed.seconds += 31
    clock.now -= timedelta(days=days)
    assert revocations.stale
