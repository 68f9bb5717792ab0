"""Links to stories: who makes, sees and takes them back, and what they show to whoever has them."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from uuid import UUID, uuid4

import pytest
from grpc import StatusCode
from sqlalchemy import func, select, update
from storymesh.story.v1 import directory_service_pb2, story_link_pb2
from storymesh.story.v1 import story_link_service_pb2 as pb
from storymesh.story.v1.directory_service_pb2_grpc import DirectoryServiceStub
from storymesh.story.v1.story_link_service_pb2_grpc import StoryLinkServiceStub

from kit.identity.signing import Signer
from kit.identity.tokens import ServiceTokens
from services.story.model import State
from services.story.tables import stories, story_links
from tests.identity import MESH_KEY, bearer
from tests.statuses import raises_status
from tests.story import calls
from tests.story.conftest import Person, StoryWorld
from tests.story.scripted import ScriptedWriter

if TYPE_CHECKING:
    from storymesh.story.v1.story_link_service_pb2_grpc import StoryLinkServiceAsyncStub

NOT_THERE = (StatusCode.NOT_FOUND, "STORY_NOT_FOUND")
NO_LINK = (StatusCode.NOT_FOUND, "STORY_LINK_NOT_FOUND")
MONTH = timedelta(days=30)
HOSTILE = "<script>alert(1)</script> & \"quotes\" <img src=x onerror='y'>"


@dataclass
class Desk:
    """Calls of the links' API by one person, of its page by anybody, and of the directory by another service."""

    world: StoryWorld
    person: Person

    @property
    def stub(self) -> StoryLinkServiceAsyncStub:
        return StoryLinkServiceStub(self.world.channel)

    async def story(self, *, title: str = "The Lamp", text: str = "It burned.\n\nAnd burned.") -> str:
        """A story that is written."""
        story = await calls.create(self.person)
        await self.alter(story.id, state=State.COMPLETED, title=title, text=text, completed_at=datetime.now(UTC))
        return story.id

    async def alter(self, story_id: str, **values: object) -> None:
        async with self.world.db.transaction() as tx:
            await tx.execute(update(stories).where(stories.c.id == UUID(story_id)).values(**values))

    async def create(self, story_id: str) -> story_link_pb2.StoryLink:
        request = pb.CreateStoryLinkRequest(story_id=story_id)
        return (await self.stub.CreateStoryLink(request, metadata=self.person.auth)).link

    async def list(self, **fields: object) -> pb.ListStoryLinksResponse:
        return await self.stub.ListStoryLinks(pb.ListStoryLinksRequest(**fields), metadata=self.person.auth)  # type: ignore[arg-type]

    async def revoke(self, story_id: str) -> None:
        await self.stub.RevokeStoryLink(pb.RevokeStoryLinkRequest(story_id=story_id), metadata=self.person.auth)

    async def page(self, path: str) -> str:
        """The page at a path, as the edge asks for it: without a credential."""
        answer = await self.stub.GetStoryPage(pb.GetStoryPageRequest(token=path.removeprefix("/s/")))
        assert answer.page.content_type == "text/html; charset=utf-8"
        return answer.page.data.decode()

    async def mailed(self, story_id: str) -> story_link_pb2.StoryLink | None:
        """The link that notification gets for its mail."""
        tokens = ServiceTokens(MESH_KEY, service="notification", clock=self.world.resources.clock)
        request = directory_service_pb2.LinkStoryRequest(story_id=story_id)
        stub = DirectoryServiceStub(self.world.channel)
        answer = await stub.LinkStory(request, metadata=bearer(tokens.mint("story")))
        return answer.link if answer.HasField("link") else None

    async def mailed_together(self, *story_ids: str) -> dict[str, story_link_pb2.StoryLink | None]:
        """The links that notification gets for a mail about many stories."""
        tokens = ServiceTokens(MESH_KEY, service="notification", clock=self.world.resources.clock)
        request = directory_service_pb2.LinkStoriesRequest(story_ids=story_ids)
        stub = DirectoryServiceStub(self.world.channel)
        answer = await stub.LinkStories(request, metadata=bearer(tokens.mint("story")))
        return {each.story_id: each.link if each.HasField("link") else None for each in answer.stories}


@pytest.fixture
def desk(world: StoryWorld) -> Desk:
    return Desk(world, world.person())


async def test_a_link_shows_its_story_to_whoever_has_it(desk: Desk) -> None:
    story_id = await desk.story(title="The Lamp", text="It burned.\n\nAnd burned\nagain.")
    link = await desk.create(story_id)
    assert link.story_id == story_id
    assert link.expire_time.ToDatetime() - link.create_time.ToDatetime() == MONTH
    page = await desk.page(link.path)
    assert "<h1>The Lamp</h1>" in page
    assert "<p>It burned.</p>" in page
    assert "<p>And burned\nagain.</p>" in page
    assert f"{link.expire_time.ToDatetime():%Y-%m-%d}" in page
    assert str(desk.person.id) not in page
    assert story_id not in page


async def test_what_people_and_models_wrote_is_text_on_the_page(desk: Desk) -> None:
    story_id = await desk.story(title=HOSTILE, text=f"{HOSTILE}\n\n</main></body>{HOSTILE}")
    await desk.alter(story_id, language='en"><script>')
    page = await desk.page((await desk.create(story_id)).path)
    assert "<script" not in page
    assert "<img" not in page
    assert page.count("</main>") == page.count("</body>") == 1
    assert 'lang="en&quot;&gt;&lt;script&gt;"' in page


async def test_a_page_is_in_the_language_of_its_story(desk: Desk) -> None:
    story_id = await desk.story(text="Grüße, 你好, שלום.")
    await desk.alter(story_id, language="de")
    page = await desk.page((await desk.create(story_id)).path)
    assert '<html lang="de">' in page
    assert "Grüße, 你好, שלום." in page


async def test_a_story_has_one_link_which_asking_again_renews(desk: Desk, world: StoryWorld) -> None:
    story_id = await desk.story()
    first = await desk.create(story_id)
    world.passed = timedelta(days=20)
    again = await desk.create(story_id)
    assert (again.path, again.create_time) == (first.path, first.create_time)
    assert again.expire_time.ToDatetime() - first.expire_time.ToDatetime() >= timedelta(days=20)
    world.passed = timedelta(days=40)
    await desk.page(first.path)


async def test_a_link_works_for_30_days(desk: Desk, world: StoryWorld) -> None:
    story_id = await desk.story()
    link = await desk.create(story_id)
    world.passed = MONTH - timedelta(minutes=5)
    await desk.page(link.path)
    world.passed = MONTH
    with raises_status(*NO_LINK):
        await desk.page(link.path)
    assert list((await desk.list()).links) == []
    renewed = await desk.create(story_id)
    assert renewed.path != link.path
    with raises_status(*NO_LINK):
        await desk.page(link.path)
    await desk.page(renewed.path)


async def test_a_revoked_link_shows_nothing_and_the_next_one_is_another(desk: Desk) -> None:
    story_id = await desk.story()
    link = await desk.create(story_id)
    for _ in range(2):
        await desk.revoke(story_id)
        with raises_status(*NO_LINK):
            await desk.page(link.path)
    assert list((await desk.list()).links) == []
    after = await desk.create(story_id)
    assert after.path != link.path
    await desk.page(after.path)
    with raises_status(*NO_LINK):
        await desk.page(link.path)


async def test_a_mail_gets_the_same_link_each_time_and_it_is_the_owners(desk: Desk, world: StoryWorld) -> None:
    story_id = await desk.story()
    first = await desk.mailed(story_id)
    assert first is not None
    world.passed = timedelta(days=4)
    assert await desk.mailed(story_id) == first
    assert (await desk.create(story_id)).path == first.path
    assert [link.path for link in (await desk.list()).links] == [first.path]
    await desk.page(first.path)


async def test_simultaneous_mails_get_one_link(desk: Desk, world: StoryWorld) -> None:
    story_id = await desk.story()
    mailed = await asyncio.gather(*(desk.mailed(story_id) for _ in range(20)))
    assert len({link.path for link in mailed if link}) == 1
    async with world.db.transaction() as tx:
        assert await tx.scalar(select(func.count()).select_from(story_links)) == 1


async def test_a_mail_gets_no_link_after_its_owner_took_it_back(desk: Desk, world: StoryWorld) -> None:
    with_a_link, without = await desk.story(), await desk.story()
    link = await desk.mailed(with_a_link)
    assert link is not None
    for story_id in (with_a_link, without):
        await desk.revoke(story_id)
        assert await desk.mailed(story_id) is None
    world.passed = 2 * MONTH
    await desk.world.working(ScriptedWriter()).pruning.prune()
    assert await desk.mailed(with_a_link) is None
    with raises_status(*NO_LINK):
        await desk.page(link.path)


async def test_an_expired_link_is_forgotten_and_a_later_mail_gets_another(desk: Desk, world: StoryWorld) -> None:
    story_id = await desk.story()
    first = await desk.mailed(story_id)
    world.passed = MONTH + timedelta(hours=1)
    second = await desk.mailed(story_id)
    assert first is not None
    assert second is not None
    assert second.path != first.path
    world.passed = 2 * MONTH + timedelta(days=2)
    await desk.world.working(ScriptedWriter()).pruning.prune()
    async with world.db.transaction() as tx:
        assert await tx.scalar(select(func.count()).select_from(story_links)) == 0


@pytest.mark.parametrize("state", [State.QUEUED, State.RUNNING, State.FAILED, State.CANCELLED])
async def test_only_a_finished_story_gets_a_link(desk: Desk, state: State) -> None:
    story_id = await desk.story()
    await desk.alter(story_id, state=state)
    with raises_status(StatusCode.FAILED_PRECONDITION, "STORY_NOT_COMPLETED"):
        await desk.create(story_id)
    with raises_status(*NOT_THERE):
        await desk.mailed(story_id)


async def test_a_strangers_story_looks_like_absence(desk: Desk, world: StoryWorld) -> None:
    story_id = await desk.story()
    link = await desk.create(story_id)
    stranger = Desk(world, world.person())
    for attempt in (stranger.create, stranger.revoke):
        with raises_status(*NOT_THERE):
            await attempt(story_id)
        with raises_status(*NOT_THERE):
            await attempt(str(uuid4()))
    assert list((await stranger.list()).links) == []
    await desk.page(link.path)


async def test_the_link_of_a_deleted_story_shows_nothing(desk: Desk, world: StoryWorld) -> None:
    story_id, hidden = await desk.story(), await desk.story()
    paths = [(await desk.create(each)).path for each in (story_id, hidden)]
    await calls.delete(desk.person, story_id)
    # A deletion that was interrupted: the row is there and its story hidden.
    await desk.alter(hidden, deleted_at=datetime.now(UTC))
    for path, deleted in zip(paths, (story_id, hidden), strict=True):
        with raises_status(*NO_LINK):
            await desk.page(path)
        for call in (desk.create, desk.revoke, desk.mailed):
            with raises_status(*NOT_THERE):
                await call(deleted)
    assert list((await desk.list()).links) == []
    async with world.db.transaction() as tx:
        assert (
            await tx.scalar(
                select(func.count()).select_from(story_links).where(story_links.c.story_id == UUID(story_id))
            )
            == 0
        )


async def test_the_erasure_of_an_account_removes_its_links(desk: Desk, world: StoryWorld) -> None:
    other = Desk(world, world.person())
    links = [await desk.create(await desk.story()), await desk.create(await desk.story())]
    kept = await other.create(await other.story())
    revoked = await desk.story()
    await desk.revoke(revoked)
    await world.erasing().erase(desk.person.id)
    for link in links:
        with raises_status(*NO_LINK):
            await desk.page(link.path)
    await other.page(kept.path)
    async with world.db.transaction() as tx:
        owners = set(await tx.scalars(select(story_links.c.owner_id)))
    assert owners == {other.person.id}


async def test_links_are_listed_in_pages_newest_first(desk: Desk) -> None:
    made = [await desk.create(await desk.story()) for _ in range(5)]
    first = await desk.list(page_size=2)
    second = await desk.list(page_size=2, page_token=first.next_page_token)
    third = await desk.list(page_size=2, page_token=second.next_page_token)
    listed = [link.path for page in (first, second, third) for link in page.links]
    assert listed == [link.path for link in reversed(made)]
    assert third.next_page_token == ""
    with raises_status(StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"):
        await desk.list(page_token="invented")


async def test_no_other_token_opens_a_page(desk: Desk) -> None:
    story_id = await desk.story()
    path = (await desk.create(story_id)).path
    token = path.removeprefix("/s/")
    assert len(token) == 43
    last = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_".index(token[-1])
    respelled = token[:-1] + "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"[last ^ 1]
    forged = Signer(b"x" * 32).sign_id("story-link", uuid4())
    for other in (
        token[:-1],
        token[1:],
        token + "A",
        token + "=",
        respelled,
        forged,
        token.swapcase(),
        "x",
        "é",
        "\0",
        "A" * 43,
    ):
        with raises_status(*NO_LINK):
            await desk.page(other)
    for wrong in ("", "x" * 513):
        with raises_status(StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"):
            await desk.page(wrong)


async def test_the_database_holds_no_token(desk: Desk, world: StoryWorld) -> None:
    link = await desk.create(await desk.story())
    async with world.db.transaction() as tx:
        (row,) = (await tx.execute(select(story_links))).all()
    assert link.path.removeprefix("/s/") not in " ".join(map(str, row))


async def test_no_log_line_holds_a_token(desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    story_id = await desk.story()
    path = (await desk.create(story_id)).path
    await desk.mailed(story_id)
    await desk.page(path)
    await desk.revoke(story_id)
    with raises_status(*NO_LINK):
        await desk.page(path)
    assert caplog.records
    assert path.removeprefix("/s/") not in "".join(str(record.__dict__) for record in caplog.records)


async def test_a_mail_about_many_stories_has_the_link_of_each_that_a_mail_about_it_alone_would_have(desk: Desk) -> None:
    new, linked, revoked, deleted, expired = [await desk.story() for _ in range(5)]
    running = (await calls.create(desk.person)).id
    before = await desk.mailed(linked)
    await desk.mailed(revoked)
    await desk.revoke(revoked)
    await desk.alter(deleted, deleted_at=datetime.now(UTC))
    ended = await desk.mailed(expired)
    async with desk.world.db.transaction() as tx:
        past = update(story_links).where(story_links.c.story_id == UUID(expired))
        await tx.execute(past.values(expires_at=datetime.now(UTC) - timedelta(seconds=1)))
    found = await desk.mailed_together(new, linked, revoked, deleted, expired, running, str(uuid4()))
    assert set(found) == {new, linked, revoked, expired}
    assert found[linked] == before
    assert found[revoked] is None
    renewed = found[expired]
    assert renewed
    assert ended
    assert renewed.path != ended.path
    assert found == await desk.mailed_together(expired, revoked, linked, new)
    assert found[new] == await desk.mailed(new)


async def test_mails_about_the_same_stories_at_once_hold_the_same_links(desk: Desk) -> None:
    stories_of_all = [await desk.story() for _ in range(5)]
    answers = await asyncio.gather(
        *(desk.mailed_together(*stories_of_all) for _ in range(10)),
        *(desk.mailed_together(*reversed(stories_of_all)) for _ in range(10)),
    )
    assert all(answer == answers[0] for answer in answers)
    assert len(answers[0]) == 5


@pytest.mark.parametrize("story_ids", [[], ["x"], ["019ad1c2-7e55-7c1a-9d5e-3a1f0c9b7e21"] * 2])
async def test_a_list_of_stories_names_each_once(desk: Desk, story_ids: list[str]) -> None:
    with raises_status(StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT"):
        await desk.mailed_together(*story_ids)


async def test_only_services_ask_for_the_links_of_mails(desk: Desk) -> None:
    story_id = await desk.story()
    stub = DirectoryServiceStub(desk.world.channel)
    one = directory_service_pb2.LinkStoryRequest(story_id=story_id)
    many = directory_service_pb2.LinkStoriesRequest(story_ids=[story_id])
    for metadata in ((), desk.person.auth):
        with raises_status(StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"):
            await stub.LinkStory(one, metadata=metadata)
        with raises_status(StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"):
            await stub.LinkStories(many, metadata=metadata)
