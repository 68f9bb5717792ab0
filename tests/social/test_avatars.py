"""Avatars: claimed before they are shown, released when they are not, and never in the way of what else a profile is."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, timedelta
from time import monotonic
from typing import Any
from uuid import uuid4

import pytest
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import RetryInfo
from grpc import StatusCode
from grpc.aio import AioRpcError
from sqlalchemy import select
from storymesh.events.v1 import file_events_pb2 as events
from storymesh.social.v1 import profile_service_pb2 as pb

from kit.errors import MeshError, Unavailable
from mesh.edge_protocol import REDIRECT_HEADER
from services.social.tables import profiles
from tests.social.conftest import Person, SocialWorld
from tests.social.files import NotReady, OtherPurpose
from tests.statuses import detail, raises_status, reason_of, violated_fields
from tests.waiting import until

NO_AVATAR = (StatusCode.NOT_FOUND, "NO_AVATAR")
AWAY = (StatusCode.UNAVAILABLE, "DEPENDENCY_UNAVAILABLE")


async def claims_told(world: SocialWorld) -> Sequence[Message]:
    """The events of claims, in order."""
    return [
        getattr(events, name).FromString(payload) for name, payload in await world.events() if name.startswith("File")
    ]


async def with_avatar(world: SocialWorld) -> tuple[Person, str]:
    person = world.person()
    file_id = world.files.add(person.id)
    await person.change(avatar_file_id=file_id)
    return person, file_id


async def own_file(person: Person) -> str:
    answer = await person.profiles.GetOwnProfile(pb.GetOwnProfileRequest(), metadata=person.auth)
    return answer.avatar_file_id


async def test_a_file_is_claimed_confirmed_shown_and_released_when_another_takes_its_place(world: SocialWorld) -> None:
    person, viewer = world.person(), await world.member()
    first, second = (world.files.add(person.id) for _ in range(2))
    shown = await person.change(avatar_file_id=first)
    assert f"/{first}/512" in shown.avatar_url
    assert await own_file(person) == first
    await person.change(avatar_file_id=first)
    assert [file_id for _, file_id in world.files.claimed] == [first]
    assert (await viewer.look_at(person)).avatar_url == shown.avatar_url
    await person.change(avatar_file_id=second, bio="anew")
    assert f"/{second}/512" in (await viewer.look_at(person)).avatar_url
    assert (await person.change(avatar_file_id="")).avatar_url == ""
    assert await own_file(person) == ""
    with raises_status(*NO_AVATAR):
        await viewer.avatar(person)
    (of_first, _), (of_second, _) = world.files.claimed
    assert await claims_told(world) == [
        events.FileClaimsConfirmed(holder=of_first, file_ids=[first]),
        events.FileClaimsConfirmed(holder=of_second, file_ids=[second]),
        events.FileClaimsReleased(holder=of_first, file_ids=[first]),
        events.FileClaimsReleased(holder=of_second, file_ids=[second]),
    ]


async def test_the_late_end_of_a_claim_leaves_a_file_alone_that_is_the_avatar_again(world: SocialWorld) -> None:
    person = await world.member()
    first, second = (world.files.add(person.id) for _ in range(2))
    for file_id in (first, second, first):
        await person.change(avatar_file_id=file_id)
    holders = [holder for holder, _ in world.files.claimed]
    assert len(set(holders)) == 3
    told = await claims_told(world)
    assert events.FileClaimsConfirmed(holder=holders[2], file_ids=[first]) == told[-2]
    released = [event for event in told if isinstance(event, events.FileClaimsReleased)]
    assert [(event.holder, list(event.file_ids)) for event in released] == [
        (holders[0], [first]),
        (holders[1], [second]),
    ]


@pytest.mark.parametrize(
    ("refusal", "expected"),
    [
        (NotReady(), (StatusCode.FAILED_PRECONDITION, "FILE_NOT_READY")),
        (OtherPurpose(), (StatusCode.FAILED_PRECONDITION, "FILE_PURPOSE_MISMATCH")),
        (Unavailable(), AWAY),
    ],
)
async def test_a_file_that_cannot_be_claimed_changes_nothing(
    world: SocialWorld, refusal: MeshError, expected: tuple[StatusCode, str]
) -> None:
    person, kept = await with_avatar(world)
    with raises_status(*expected):
        await person.change(avatar_file_id=world.files.add(person.id, refusal), bio="not this either")
    assert await own_file(person) == kept
    assert (await person.own()).bio == ""
    assert len(await claims_told(world)) == 1


async def test_the_file_of_another_person_is_like_none(world: SocialWorld) -> None:
    person, other = await world.member(), await world.member()
    answers = set()
    for file_id in (world.files.add(other.id), str(uuid4())):
        with pytest.raises(AioRpcError) as refused:
            await person.change(avatar_file_id=file_id)
        assert (refused.value.code(), reason_of(refused.value)) == (StatusCode.NOT_FOUND, "FILE_NOT_FOUND")
        answers.add(dict(refused.value.trailing_metadata())["grpc-status-details-bin"])
    assert len(answers) == 1
    with pytest.raises(AioRpcError) as refused:
        await person.change(avatar_file_id="no uuid")
    assert violated_fields(refused.value) == ["avatar_file_id"]


async def test_of_many_who_set_an_avatar_at_once_one_file_stays_and_the_rest_is_released(world: SocialWorld) -> None:
    person = await world.member()
    files = [world.files.add(person.id) for _ in range(8)]
    await asyncio.gather(*(person.change(avatar_file_id=each) for each in files))
    kept = await own_file(person)
    confirmed: list[str] = []
    released: list[str] = []
    for event in await claims_told(world):
        (confirmed if isinstance(event, events.FileClaimsConfirmed) else released).extend(event.file_ids)  # type: ignore[attr-defined]
    assert sorted(confirmed) == sorted(files)
    assert sorted(released) == sorted(set(files) - {kept})


async def test_a_list_of_people_costs_one_call_of_the_file_service_at_most(world: SocialWorld) -> None:
    viewer = await world.member()
    people = [(await with_avatar(world))[0] for _ in range(5)] + [await world.member()]
    for each in people:
        await viewer.block(each)
    world.passed = timedelta(minutes=6)
    before = len(world.files.signed)
    urls = [each.avatar_url for each in await viewer.look_at_all(*people)]
    assert len(set(urls)) == 6
    assert urls[-1] == ""
    assert len(world.files.signed) == before + 1
    # The same URLs for as long as they are good for: a browser then has the images already.
    assert [each.avatar_url for each in await viewer.look_at_all(*people)] == urls
    assert [each.avatar_url for each in reversed((await viewer.blocked()).profiles)] == urls
    assert [each.avatar_url for each in await world.seen_by_service(*people)] == urls
    assert len(world.files.signed) == before + 1
    world.passed += timedelta(minutes=6)
    assert not set(urls[:5]) & {each.avatar_url for each in await viewer.look_at_all(*people)}


async def test_an_avatar_is_answered_with_its_url_and_for_the_edge_with_how_long_it_may_be_kept(
    world: SocialWorld,
) -> None:
    person, file_id = await with_avatar(world)
    viewer = await world.member()
    await person.change(private=True)
    for size in (96, 512, 1600):
        call = viewer.profiles.GetAvatar(pb.GetAvatarRequest(user_id=str(person.id), size=size), metadata=viewer.auth)
        answer, metadata = await call, dict(await call.initial_metadata())
        assert f"/{file_id}/{size}?" in answer.url
        assert metadata[REDIRECT_HEADER] == answer.url
        works_for = answer.expire_time.ToDatetime(tzinfo=UTC) - world.resources.clock()
        age = timedelta(seconds=int(str(metadata["cache-control"]).removeprefix("private, max-age=")))
        assert timedelta(minutes=4) < age < works_for
    assert (await viewer.avatar(person)).url == (await viewer.avatar(person, 512)).url
    with raises_status(StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"):
        await viewer.avatar(person, 100)


async def test_an_avatar_is_as_absent_as_its_person(world: SocialWorld) -> None:
    person, _ = await with_avatar(world)
    viewer = await world.member()
    assert (await viewer.avatar(person)).url
    await person.block(viewer)
    answers = set()
    for other in (person, world.person()):
        with pytest.raises(AioRpcError) as refused:
            await viewer.avatar(other)
        assert reason_of(refused.value) == "USER_NOT_FOUND"
        answers.add(dict(refused.value.trailing_metadata())["grpc-status-details-bin"])
    assert len(answers) == 1


async def test_while_the_file_service_is_away_people_are_shown_without_pictures_and_nothing_else_fails(
    world: SocialWorld,
) -> None:
    person, _ = await with_avatar(world)
    viewer = await world.member()
    world.files.error = Unavailable()
    # URLs that are still good are handed out.
    assert (await viewer.look_at(person)).avatar_url
    world.passed = timedelta(minutes=6)
    calls: list[Any] = [
        lambda: viewer.avatar(person),
        lambda: viewer.avatar(person),
        lambda: person.change(avatar_file_id=world.files.add(person.id)),
    ]
    for call in calls:
        with pytest.raises(AioRpcError) as refused:
            await call()
        assert (refused.value.code(), reason_of(refused.value)) == AWAY
        assert detail(refused.value, RetryInfo) is not None
    assert (await viewer.look_at(person)).avatar_url == ""
    assert [each.avatar_url for each in await viewer.look_at_all(person)] == [""]
    assert (await person.change(bio="still")).bio == "still"
    assert await viewer.block(person)
    with raises_status(*NO_AVATAR):
        await viewer.avatar(viewer)
    world.files.error = None
    assert (await viewer.avatar(person)).url
    world.passed += timedelta(seconds=3)
    assert (await viewer.look_at(person)).avatar_url


async def test_a_file_service_that_stands_still_holds_up_one_list_and_no_further_one(world: SocialWorld) -> None:
    person, _ = await with_avatar(world)
    viewer = await world.member()
    world.passed = timedelta(minutes=6)
    world.files.silent = True
    asked, began = len(world.files.asked), monotonic()
    for _ in range(20):
        assert (await viewer.look_at(person)).avatar_url == ""
    # One, and another one each two seconds.
    assert len(world.files.asked) - asked <= 2 + (monotonic() - began) / 2
    with raises_status(*AWAY):
        await viewer.avatar(person)
    world.files.silent = False
    assert (await viewer.avatar(person)).url


async def test_a_file_that_is_no_more_is_shown_by_no_profile(world: SocialWorld) -> None:
    person, file_id = await with_avatar(world)
    _, another = await with_avatar(world)
    async with world.working():
        await world.deliver(events.FileErased(file_id=file_id), "social", uuid4())
        await until(lambda: _is_without(person))
    async with world.db.single() as tx:
        assert {str(each) for each in await tx.scalars(select(profiles.c.avatar_file_id)) if each} == {another}
    assert (await person.own()).avatar_url == ""
    # A file that comes late is not in the way of the next one.
    assert (await person.change(avatar_file_id=world.files.add(person.id))).avatar_url


async def _is_without(person: Person) -> bool:
    return not await own_file(person)


async def test_a_deleted_profile_releases_its_avatar(world: SocialWorld) -> None:
    person, file_id = await with_avatar(world)
    await person.delete()
    assert (await claims_told(world))[-1] == events.FileClaimsReleased(
        holder=world.files.claimed[-1][0], file_ids=[file_id]
    )
    async with world.db.single() as tx:
        assert list(await tx.scalars(select(profiles.c.avatar_file_id))) == [None]
    await world.work().erasing.erase_profile(person.id)
    assert (await person.change(bio="anew")).avatar_url == ""
