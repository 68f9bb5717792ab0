"""Languages: a request is admitted only in a language that the configured writer writes."""

from __future__ import annotations

from uuid import uuid4

import pytest

from kit.errors import InvalidArgument
from kit.identity.caller import Caller, Role
from services.story.adapters.writers import WriterName
from services.story.errors import StoryLanguageUnsupported
from services.story.model import Length, State, Wish
from services.story.operations import operations
from services.story.operations.stories import Stories
from tests.story.conftest import StoryWorld

CALLER = Caller(uuid4(), uuid4(), Role.USER, "kid")


def stories(world: StoryWorld, writer: WriterName) -> Stories:
    """The operations of a server whose workers have this writer."""
    settings = world.settings.model_copy(update={"writer": writer})
    return operations(settings, world.resources, world.preferences_of).stories


def wish(language: str) -> Wish:
    return Wish(preferences=("rain",), theme="", prompt="", length=Length.SHORT, language=language)


@pytest.mark.parametrize("language", ["en", "EN-us", "en-GB", "en-Latn-x-mine"])
async def test_a_language_that_the_writer_writes_is_taken_whatever_its_region(world: StoryWorld, language: str) -> None:
    story = await stories(world, "composer").request(CALLER, wish(language), None)
    assert (story.state, story.wish.language) == (State.QUEUED, language)


@pytest.mark.parametrize("language", ["pt-BR", "fr", "enm", "eng", "de-en", "und"])
@pytest.mark.parametrize("writer", ["composer", "local"])
async def test_a_language_that_the_writer_does_not_write_is_refused_at_the_request(
    world: StoryWorld, language: str, writer: WriterName
) -> None:
    with pytest.raises(InvalidArgument) as refused:
        await stories(world, writer).request(CALLER, wish(language), "r-1")
    (violation,) = refused.value.violations
    assert (violation.field, violation.reason) == ("language", "LANGUAGE_UNSUPPORTED")
    assert violation.description.endswith(": en")
    page = await world.ops.stories.list(CALLER, None, 10, "")
    assert not page.items


async def test_a_story_whose_language_is_not_written_any_more_is_repeated_but_not_written_anew(
    world: StoryWorld,
) -> None:
    story = await stories(world, "openai").request(CALLER, wish("pt-BR"), "r-1")
    now = stories(world, "composer")
    assert (await now.request(CALLER, wish("pt-BR"), "r-1")).id == story.id
    await now.cancel(CALLER, story.id)
    with pytest.raises(StoryLanguageUnsupported) as refused:
        await now.retry(CALLER, story.id)
    assert (refused.value.reason, refused.value.metadata) == ("LANGUAGE_UNSUPPORTED", {"languages": "en"})
    assert (await now.get(CALLER, story.id)).state is State.CANCELLED
