"""The API: requests for stories and reads."""

from __future__ import annotations

import asyncio

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError
from sqlalchemy import func, select
from storymesh.story.v1 import story_pb2
from storymesh.story.v1 import story_service_pb2 as pb

from kit.events import outbox
from tests.statuses import raises_status, violated_fields
from tests.story.conftest import Person, StoryWorld


async def create(person: Person, **fields: object) -> story_pb2.Story:
    response = await person.stub.CreateStory(pb.CreateStoryRequest(**fields), metadata=person.auth)  # type: ignore[arg-type]
    return response.story


async def test_a_requested_story_is_queued_with_what_was_asked_for(world: StoryWorld) -> None:
    person = world.person()
    story = await create(person, preferences=["foxes"], theme="a lost key", length=story_pb2.STORY_LENGTH_SHORT)
    assert story.state == story_pb2.STORY_STATE_QUEUED
    assert list(story.preferences) == ["foxes"]
    assert (story.theme, story.length, story.language) == ("a lost key", story_pb2.STORY_LENGTH_SHORT, "en")
    assert (story.attempt, story.queue_position) == (0, 1)
    read = await person.stub.GetStory(pb.GetStoryRequest(story_id=story.id), metadata=person.auth)
    assert read.story == story


async def test_the_queue_position_counts_the_stories_ahead(world: StoryWorld) -> None:
    person = world.person()
    positions = [(await create(person)).queue_position for _ in range(3)]
    assert positions == [1, 2, 3]


async def test_a_story_without_preferences_takes_the_accounts(world: StoryWorld) -> None:
    world.account_preferences = ("harbours", "bread")
    assert list((await create(world.person())).preferences) == ["harbours", "bread"]


async def test_a_repeated_request_id_answers_with_the_same_story(world: StoryWorld) -> None:
    person = world.person()
    first = await create(person, theme="rain", request_id="r-1")
    world.account_preferences = ("changed",)
    assert (await create(person, theme="rain", request_id="r-1")).id == first.id
    assert (await create(world.person(), theme="rain", request_id="r-1")).id != first.id


async def test_64_simultaneous_requests_with_one_id_make_one_story_and_one_event(world: StoryWorld) -> None:
    person = world.person()
    stories = await asyncio.gather(*(create(person, request_id="once") for _ in range(64)))
    assert len({story.id for story in stories}) == 1
    async with world.db.transaction() as tx:
        assert await tx.scalar(select(func.count()).select_from(outbox.table)) == 1


async def test_a_request_id_with_other_parameters_is_refused(world: StoryWorld) -> None:
    person = world.person()
    await create(person, theme="rain", request_id="r-1")
    with raises_status(StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED"):
        await create(person, theme="snow", request_id="r-1")


@pytest.mark.parametrize(
    ("fields", "violated"),
    [
        ({"preferences": ["a"] * 2}, "preferences"),
        ({"preferences": list("abcdef")}, "preferences"),
        ({"preferences": ["ok", "   "]}, "preferences[1]"),
        ({"preferences": ["é" * 11]}, "preferences[0]"),
        ({"preferences": ["two\nlines"]}, "preferences[0]"),
        ({"theme": "x" * 101}, "theme"),
        ({"theme": "two\nlines"}, "theme"),
        ({"prompt": "x" * 1001}, "prompt"),
        ({"prompt": "nul\0"}, "prompt"),
        ({"length": 9}, "length"),
        *(
            ({"language": tag}, "language")
            for tag in ("en_US!", "e", "english", "xx-", "-en", "en--GB", "en-a", "en\n", " en")
        ),
        *(
            ({"language": tag}, "language")
            for tag in ("en-GB-US", "en-Latn-Cyrl", "x-mine", "i-klingon", "en" + "-abcde" * 6)
        ),
        ({"request_id": "x" * 65}, "request_id"),
        ({"request_id": "sp ace"}, "request_id"),
    ],
)
async def test_each_invalid_field_is_named(world: StoryWorld, fields: dict[str, object], violated: str) -> None:
    with pytest.raises(AioRpcError) as raised:
        await create(world.person(), **fields)
    assert raised.value.code() is StatusCode.INVALID_ARGUMENT
    assert violated_fields(raised.value) == [violated]


async def test_a_strangers_story_looks_like_absence(world: StoryWorld) -> None:
    story = await create(world.person())
    stranger = world.person()
    with raises_status(StatusCode.NOT_FOUND, "STORY_NOT_FOUND"):
        await stranger.stub.GetStory(pb.GetStoryRequest(story_id=story.id), metadata=stranger.auth)
    with raises_status(StatusCode.NOT_FOUND, "STORY_NOT_FOUND"):
        async for _ in stranger.stub.WatchStory(pb.WatchStoryRequest(story_id=story.id), metadata=stranger.auth):
            pass


async def test_without_a_token_nothing_is_answered(world: StoryWorld) -> None:
    with raises_status(StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"):
        await world.stub.ListStories(pb.ListStoriesRequest())


async def test_pages_hold_every_story_once_newest_first(world: StoryWorld) -> None:
    person = world.person()
    made = [(await create(person)).id for _ in range(5)]
    await create(world.person())
    listed: list[str] = []
    token = ""
    while True:
        page = await person.stub.ListStories(pb.ListStoriesRequest(page_size=2, page_token=token), metadata=person.auth)
        assert len(page.stories) <= 2
        listed += [story.id for story in page.stories]
        token = page.next_page_token
        if not token:
            break
    assert listed == made[::-1]


async def test_a_page_token_of_somebody_else_is_refused(world: StoryWorld) -> None:
    person, other = world.person(), world.person()
    for _ in range(2):
        await create(person)
    page = await person.stub.ListStories(pb.ListStoriesRequest(page_size=1), metadata=person.auth)
    for token in (page.next_page_token, "nonsense", "ä"):
        with pytest.raises(AioRpcError) as raised:
            await other.stub.ListStories(pb.ListStoriesRequest(page_token=token), metadata=other.auth)
        assert (raised.value.code(), violated_fields(raised.value)) == (StatusCode.INVALID_ARGUMENT, ["page_token"])


async def test_a_list_can_be_had_of_one_state_alone(world: StoryWorld) -> None:
    person = world.person()
    made = [(await create(person)).id for _ in range(6)]
    for story_id in made[::2]:
        await person.stub.CancelStory(pb.CancelStoryRequest(story_id=story_id), metadata=person.auth)
    listed: list[str] = []
    token = ""
    while True:
        request = pb.ListStoriesRequest(page_size=2, page_token=token, state=story_pb2.STORY_STATE_CANCELLED)
        page = await person.stub.ListStories(request, metadata=person.auth)
        assert {story.state for story in page.stories} == {story_pb2.STORY_STATE_CANCELLED}
        listed += [story.id for story in page.stories]
        token = page.next_page_token
        if not token:
            break
    assert listed == made[::2][::-1]
    completed = pb.ListStoriesRequest(state=story_pb2.STORY_STATE_COMPLETED)
    assert not (await person.stub.ListStories(completed, metadata=person.auth)).stories


async def test_a_page_token_holds_for_its_state_alone(world: StoryWorld) -> None:
    person = world.person()
    for _ in range(2):
        await create(person)
    queued, everything = story_pb2.STORY_STATE_QUEUED, story_pb2.STORY_STATE_UNSPECIFIED
    for made_for, presented_for in ((queued, everything), (everything, queued)):
        page = await person.stub.ListStories(pb.ListStoriesRequest(page_size=1, state=made_for), metadata=person.auth)
        request = pb.ListStoriesRequest(page_token=page.next_page_token, state=presented_for)
        with pytest.raises(AioRpcError) as raised:
            await person.stub.ListStories(request, metadata=person.auth)
        assert (raised.value.code(), violated_fields(raised.value)) == (StatusCode.INVALID_ARGUMENT, ["page_token"])


@pytest.mark.parametrize(
    "tag",
    ["en", "EN", "de-CH-1901", "zh-Hant-TW", "es-419", "sr-Latn", "zh-yue", "ast", "de-u-co-phonebk", "en-x-pirate"],
)
async def test_every_well_formed_tag_is_a_language(world: StoryWorld, tag: str) -> None:
    assert (await create(world.person(), language=tag)).language == tag
