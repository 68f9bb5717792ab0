"""Profiles: made once, changed by their owners, and seen by others."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from uuid import uuid4

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError
from grpc_status import rpc_status
from sqlalchemy import func, select
from storymesh.events.v1 import auth_events_pb2
from storymesh.social.v1 import directory_service_pb2 as directory_pb
from storymesh.social.v1 import profile_pb2
from storymesh.social.v1 import profile_service_pb2 as pb

from services.social.tables import profiles
from tests.social.conftest import Person, SocialWorld, ids
from tests.statuses import raises_status, violated_fields
from tests.waiting import until

NOBODY = (StatusCode.NOT_FOUND, "USER_NOT_FOUND")


async def test_a_person_has_one_profile_however_many_ask_for_it_first(world: SocialWorld) -> None:
    person = world.person()
    registered = auth_events_pb2.UserRegistered(user_id=str(person.id))
    async with world.working():
        for _ in range(3):
            await world.deliver(registered, "social", person.id)
        found = await asyncio.gather(*(person.own() for _ in range(16)))
    assert len({each.SerializeToString() for each in found}) == 1
    assert found[0].user_id == str(person.id)
    assert found[0].handle.startswith("user_")
    async with world.db.single() as tx:
        assert await tx.scalar(select(func.count()).select_from(profiles)) == 1


async def test_a_profile_is_made_by_the_registration_alone(world: SocialWorld) -> None:
    person, viewer = world.person(), world.person()
    with raises_status(*NOBODY):
        await viewer.look_at(person)
    async with world.working():
        await world.deliver(auth_events_pb2.UserRegistered(user_id=str(person.id)), "social", person.id)
        await until(lambda: _is_found(viewer, person))


async def _is_found(viewer: Person, person: Person) -> bool:
    return bool(await viewer.look_at_all(person))


async def test_a_persons_own_id_is_found_before_the_event_of_the_registration_has_come(world: SocialWorld) -> None:
    person = world.person()
    assert (await person.look_at(person)).user_id == str(person.id)


async def test_only_what_a_change_names_is_changed(world: SocialWorld) -> None:
    person = world.person()
    await person.change(handle="ada_l", display_name="Ada", bio="One.\nTwo.", private=True)
    changed = await person.change(bio="")
    assert (changed.handle, changed.display_name, changed.bio, changed.private) == ("ada_l", "Ada", "", True)
    assert await person.own() == changed
    assert await person.change() == changed
    request = pb.UpdateProfileRequest(message_policy=profile_pb2.MESSAGE_POLICY_NOBODY)
    answer = await person.profiles.UpdateProfile(request, metadata=person.auth)
    own = await person.profiles.GetOwnProfile(pb.GetOwnProfileRequest(), metadata=person.auth)
    assert answer.message_policy == own.message_policy == profile_pb2.MESSAGE_POLICY_NOBODY
    assert own.profile == changed


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("  Ada \u00a0 L. ", "Ada L."),
        ("\u202egnp.exe\u2066", "gnp.exe"),
        ("A\u200bd\ufeffa\u00ad", "Ada"),
        ("\u3164\u200b\u2800", ""),
        ("<b>Ada</b> & 'co'", "<b>Ada</b> & 'co'"),
        ("e\u0301", "\u00e9"),
        ("\U0001f469\u200d\U0001f469\u200d\U0001f467", "\U0001f469\u200d\U0001f469\u200d\U0001f467"),
        ("\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645", "\u0645\u06cc\u200c\u062e\u0648\u0627\u0647\u0645"),
        ("\U0001f600" * 64, "\U0001f600" * 64),
    ],
)
async def test_a_display_name_is_kept_without_what_nobody_sees(world: SocialWorld, given: str, kept: str) -> None:
    assert (await world.person().change(display_name=given)).display_name == kept


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("One.\r\nTwo.\rThree.", "One.\nTwo.\nThree."),
        ("\n\n A \n\n\n\n B\u202e \n \n", "A\n\nB"),
        ("\U0001f600" * 500, "\U0001f600" * 500),
        ("\u200b\n\u200b", ""),
    ],
)
async def test_a_bio_keeps_its_lines(world: SocialWorld, given: str, kept: str) -> None:
    assert (await world.person().change(bio=given)).bio == kept


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("display_name", "a\x00b"),
        ("display_name", "a\nb"),
        ("display_name", "\U0001f600" * 65),
        ("bio", "a\x00b"),
        ("bio", "a\x1b[31mb"),
        ("bio", "x" * 501),
        ("message_policy", 0),
        ("message_policy", 99),
    ],
)
async def test_what_breaks_a_rule_is_refused_with_the_name_of_its_field(
    world: SocialWorld, field: str, value: object
) -> None:
    person = await world.member()
    with pytest.raises(AioRpcError) as refused:
        await person.change(**{field: value})
    assert refused.value.code() is StatusCode.INVALID_ARGUMENT
    assert violated_fields(refused.value) == [field]


async def test_strangers_see_a_card_of_a_private_account_and_all_of_an_open_one(world: SocialWorld) -> None:
    person, viewer = world.person(), await world.member()
    await person.change(handle="ada_l", display_name="Ada", bio="Secret")
    whole = await viewer.look_at(person)
    assert (whole.bio, whole.HasField("create_time")) == ("Secret", True)
    await person.change(private=True)
    for card in (
        await viewer.look_at(person),
        await viewer.find("ada_l"),
        *await viewer.look_at_all(person),
        *await world.seen_by_service(person, viewer=viewer),
    ):
        assert (card.handle, card.display_name, card.private) == ("ada_l", "Ada", True)
        assert (card.bio, card.HasField("create_time")) == ("", False)
    assert (await person.look_at(person)).bio == "Secret"
    assert (await world.seen_by_service(person))[0].bio == "Secret"
    # Nobody takes a stance towards themselves, by whatever method they read their profile.
    own = (
        await person.look_at(person),
        await person.find("ada_l"),
        *await person.look_at_all(person),
        await person.own(),
    )
    assert len({each.SerializeToString() for each in own}) == 1
    assert not own[0].HasField("relationship")
    # Open again, it is what it was before.
    await person.change(private=False)
    assert await viewer.look_at(person) == whole


async def test_many_profiles_come_in_the_order_of_the_ids_without_those_that_are_not_there(world: SocialWorld) -> None:
    viewer = await world.member()
    others = [await world.member() for _ in range(3)]
    asked = [others[2], world.person(), others[0], viewer, others[1]]
    expected = [str(each.id) for each in asked if each is not asked[1]]
    assert ids(await viewer.look_at_all(*asked)) == expected
    assert ids(await world.seen_by_service(*asked)) == expected


@pytest.mark.parametrize("wrong", [[], ["no uuid"], [str(uuid4())] * 2, [str(uuid4()) for _ in range(101)]])
async def test_many_profiles_are_asked_for_by_1_to_100_different_ids(world: SocialWorld, wrong: list[str]) -> None:
    viewer = await world.member()
    with raises_status(StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"):
        await viewer.profiles.BatchGetProfiles(pb.BatchGetProfilesRequest(user_ids=wrong), metadata=viewer.auth)


async def test_absence_a_block_and_a_deleted_profile_are_answered_with_equal_bytes(world: SocialWorld) -> None:
    viewer, blocking, gone = await world.member(), world.person(), world.person()
    await blocking.change(handle="blocking_one")
    await gone.change(handle="gone_one")
    await blocking.block(viewer)
    await gone.delete()
    answers = set()
    for who, handle in ((world.person(), "nobody_there"), (blocking, "blocking_one"), (gone, "gone_one")):
        assert await viewer.look_at_all(who) == []
        assert await world.seen_by_service(who, viewer=viewer) == []
        for call in (
            viewer.look_at(who),
            viewer.find(handle),
            viewer.block(who),
            viewer.unblock(who),
            viewer.mute(who),
            viewer.unmute(who),
        ):
            with pytest.raises(AioRpcError) as refused:
                await call
            status = rpc_status.from_call(refused.value)  # type: ignore[arg-type]
            assert status is not None
            answers.add(status.SerializeToString(deterministic=True))
    assert len(answers) == 1
    assert await world.may_contact(viewer, blocking) is False


async def test_a_deleted_profile_comes_back_by_its_owners_change_alone(world: SocialWorld) -> None:
    person, viewer, other = world.person(), await world.member(), await world.member()
    await person.change(handle="ada_l", display_name="Ada", bio="Secret")
    await person.block(other)
    await person.mute(viewer)
    await viewer.mute(person)
    await person.delete()
    await person.delete()
    with raises_status(*NOBODY):
        await viewer.look_at(person)
    for call in (person.own(), person.change(bio="no"), person.block(viewer)):
        with raises_status(StatusCode.FAILED_PRECONDITION, "PROFILE_ERASING"):
            await call
    async with world.working():
        await until(lambda: _deleted(person))
        await world.deliver(auth_events_pb2.UserRegistered(user_id=str(person.id)), "social", person.id)
        later = world.person()
        await world.deliver(auth_events_pb2.UserRegistered(user_id=str(later.id)), "social", later.id)
        await until(lambda: _is_found(viewer, later))
        with raises_status(*NOBODY):
            await person.look_at(person)
        with raises_status(StatusCode.NOT_FOUND, "PROFILE_DELETED"):
            await person.own()
        anew = await person.change(display_name="Ada again")
        assert (anew.display_name, anew.bio) == ("Ada again", "")
        assert anew.handle != "ada_l"
        # What happens again of the former erasure touches nothing of the new profile.
        await person.block(other)
        await world.work().erasing.erase_profile(person.id)
        assert ids((await person.blocked()).profiles) == [str(other.id)]
        assert (await person.muted()).profiles == []
        assert (await viewer.look_at(person)).relationship.muting
        assert (await person.change(handle="ada_l")).handle == "ada_l"


async def _deleted(person: Person) -> bool:
    try:
        await person.own()
    except AioRpcError as error:
        return error.code() is StatusCode.NOT_FOUND
    return False


async def test_a_sender_may_write_to_who_is_there_wants_messages_and_is_not_blocked_either_way(
    world: SocialWorld,
) -> None:
    sender, recipient = await world.member(), await world.member()
    assert await world.may_contact(sender, recipient)
    await sender.mute(recipient)
    await recipient.change(private=True)
    assert await world.may_contact(sender, recipient)
    await recipient.change(message_policy=profile_pb2.MESSAGE_POLICY_NOBODY)
    assert not await world.may_contact(sender, recipient)
    assert await world.may_contact(recipient, sender)
    await recipient.change(message_policy=profile_pb2.MESSAGE_POLICY_EVERYONE)
    await sender.block(recipient)
    assert not await world.may_contact(sender, recipient)
    assert not await world.may_contact(recipient, sender)
    await sender.unblock(recipient)
    assert await world.may_contact(sender, recipient)
    for one, other in ((sender, world.person()), (world.person(), sender), (sender, sender)):
        assert not await world.may_contact(one, other)


async def test_other_services_alone_may_ask_the_directory(world: SocialWorld) -> None:
    person = await world.member()
    for metadata in ((), person.auth):
        with pytest.raises(AioRpcError) as refused:
            await world.directory.GetProfiles(
                directory_pb.GetProfilesRequest(user_ids=[str(person.id)]), metadata=metadata
            )
        assert refused.value.code() in (StatusCode.UNAUTHENTICATED, StatusCode.PERMISSION_DENIED)


async def test_a_clock_that_was_put_back_makes_no_difference_to_a_profile(world: SocialWorld) -> None:
    world.passed = timedelta(days=2)
    person = await world.member()
    world.passed = timedelta()
    assert (await person.change(handle="ada_l")).handle == "ada_l"
    assert (await (await world.member()).look_at(person)).handle == "ada_l"
