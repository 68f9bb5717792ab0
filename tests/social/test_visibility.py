"""Visibility: the rule in SQL and the rule in Python say the same of any people."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from uuid import UUID, uuid4

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import delete, insert

from kit.data.database import Database
from kit.data.paging import PageRequest
from services.social import store
from services.social.model import MessagePolicy, Profile, Sight, Stance, State, sight
from services.social.tables import blocks, mutes, profiles
from tests.conftest import empty

PEOPLE = tuple(uuid4() for _ in range(4))
AT = datetime(2026, 1, 1, tzinfo=UTC)
pairs = st.frozensets(st.sampled_from([pair for pair in product(PEOPLE, PEOPLE) if pair[0] != pair[1]]))


@dataclass(frozen=True)
class Facts:
    """Everything that the rule depends on."""

    profiles: dict[UUID, Profile]
    blocks: frozenset[tuple[UUID, UUID]]
    mutes: frozenset[tuple[UUID, UUID]]

    def sight(self, viewer_id: UUID | None, user_id: UUID) -> Sight:
        return sight(
            viewer_id,
            self.profiles.get(user_id),
            blocked=(user_id, viewer_id) in self.blocks,
            blocking=(viewer_id, user_id) in self.blocks,
        )


def profile(user_id: UUID, state: State, private: bool) -> Profile:
    handle = f"user_{PEOPLE.index(user_id)}" if state is State.ACTIVE else ""
    return Profile(user_id, state, handle, "", "bio", private, MessagePolicy.EVERYONE, AT)


def some(user_id: UUID) -> st.SearchStrategy[Profile | None]:
    return st.none() | st.builds(profile, st.just(user_id), st.sampled_from(State), st.booleans())


facts = st.builds(
    lambda found, blocked, muted: Facts({each.user_id: each for each in found if each}, blocked, muted),
    st.tuples(*map(some, PEOPLE)),
    pairs,
    pairs,
)


@pytest.fixture(scope="module")
async def db(database_of: Callable[[str], Database]) -> Database:
    found = database_of("social")
    await empty(found)
    return found


async def stored(db: Database, facts: Facts) -> None:
    async with db.transaction() as tx:
        for table in (profiles, blocks, mutes):
            await tx.execute(delete(table))
        for each in facts.profiles.values():
            names = ("user_id", "state", "display_name", "bio", "private", "message_policy", "created_at")
            values = {name: getattr(each, name) for name in names}
            await tx.execute(insert(profiles).values(handle=each.handle or None, **values))
        for table, taken in ((blocks, facts.blocks), (mutes, facts.mutes)):
            for number, (user_id, subject_id) in enumerate(sorted(taken)):
                row = {"user_id": user_id, "subject_id": subject_id, "id": UUID(int=number + 1), "created_at": AT}
                await tx.execute(insert(table).values(row))


@settings(max_examples=60)
@given(facts)
async def test_sql_and_python_agree_about_every_viewer_and_every_person(db: Database, facts: Facts) -> None:
    await stored(db, facts)
    async with db.transaction() as tx:
        for viewer_id in (None, *PEOPLE):
            seen = await store.visibility.by_ids(tx, viewer_id, PEOPLE)
            expected = {user_id: facts.sight(viewer_id, user_id) for user_id in PEOPLE}
            assert {
                user_id: seen[user_id].sight if user_id in seen else Sight.NOTHING for user_id in PEOPLE
            } == expected
            for user_id, each in seen.items():
                assert each.profile == facts.profiles[user_id]
                assert each.relationship.blocking == ((viewer_id, user_id) in facts.blocks)
                assert each.relationship.muting == ((viewer_id, user_id) in facts.mutes)
            if viewer_id is None:
                continue
            # The same verdict behind the other doors: the handle, and the lists.
            for user_id, person in facts.profiles.items():
                by_handle = await store.visibility.by_handle(tx, viewer_id, person.handle or "user_x")
                assert by_handle == (seen.get(user_id) if person.handle else None)
            for stance, taken in ((Stance.BLOCK, facts.blocks), (Stance.MUTE, facts.mutes)):
                listed = await store.stances.page(tx, stance, viewer_id, PageRequest(100, None))
                order = [subject_id for user_id, subject_id in sorted(taken, reverse=True) if user_id == viewer_id]
                assert [each.seen for each in listed] == [seen[user_id] for user_id in order if user_id in seen]
