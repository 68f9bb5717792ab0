"""Titles, and the text that models put before them."""

from __future__ import annotations

import json

import pytest

from services.story.adapters.writers import WriterUnavailable

from .chat_server import ChatServer, streaming
from .telling import ANSWER, STORY, Make, refusal_of, told


@pytest.mark.parametrize("size", [1, 10_000])
@pytest.mark.parametrize(
    "head",
    [
        "Sure! Here is your story:\n\nThe Key\n\n",
        "Sure! Here is a short story about forgiveness.\n\n# The Key\n\n",
        "Sure! The Key\n\n",
        "**Sure! Here's a story for Wilhelmina:**\n\n**The Key**\n\n",
        "Certainly!\n\nTitle: The Key\n\n",
        "Sure, I can do that!\n\nThe Key\n\n",
        "Of course! Here you go:\n\n---\n\n## The Key\n\n",
        "Okay, here is the story you asked for:\n\nThe Key\n\n",
        "Great idea, Wilhelmina! Here\u2019s a tale about zeppelins and forgiveness:\n\nThe Key\n\n",
        "Here is your story: The Key\n\n",
        "Absolutely, I'd be happy to write a story.\nThe Key\n\n",
        "¡Claro! Aquí tienes tu historia:\n\nThe Key\n\n",
        "Natürlich! Hier ist deine Geschichte:\n\nTitel: The Key\n\n",
        "Bien sûr ! Voici l'histoire :\n\nTitre : The Key\n\n",
        "当然！以下是故事：\n\nThe Key\n\n",  # noqa: RUF001
        "A short story for you to enjoy:\nThe Key\n\n",
        "```\nThe Key\n\n",
        "```markdown\n# The Key\n\n",
        "~~~text\nThe Key\n~~~\n",
        "Title:\nThe Key\n\n",
        "Title - The Key\n\n",
        "[Title: The Key]\n\n",
        "Sure! Here is\n\nThe Key\n\n",
        "Okay! Here goes:\n\nThe Key\n\n",
        "Here you are!\n\nThe Key\n\n",
        "Assistant: The Key\n===\n\n",
        "# The Key\n\n---\n\n",
        "Title: The Key\n**Story:**\n\n",
        "Sure \N{EN DASH} here is your story:\n\nThe Key\n\n",
        "Thank you for your request. Here's your story.\n\nThe Key\n\n",
        "I hope you enjoy this story!\n\nThe Key\n\n",
        "The Key\n\n```text\n",
        "The Key\n\nHere is the story:\n\n",
        "The Key\n\nSure! Here's a story about forgiveness.\n\n",
    ],
)
async def test_a_title_is_none_of_what_models_put_before_it(
    server: ChatServer, make: Make, head: str, size: int
) -> None:
    answer = head + STORY + ("\n```" if "```" in head else "")
    server.script = [streaming(*(answer[i : i + size] for i in range(0, len(answer), size)))]

    assert await told(make()) == ("The Key", STORY)


@pytest.mark.parametrize(
    "title",
    [
        "Here Comes the Sea",
        "Sure as the Tide",
        "Of Course Not",
        "Title Fight",
        "The Key [Part One]",
        "Here",
        "Claro and the Moon",
        "Here Is Where",
    ],
)
async def test_a_title_may_begin_like_an_announcement(server: ChatServer, make: Make, title: str) -> None:
    story = f"Here and there a lamp was lit, and surely of course it was late. Sure enough, {STORY}"
    server.script = [streaming(f"{title}\n\n", *(f"{word} " for word in story.split()))]

    assert await told(make()) == (title, story)


@pytest.mark.parametrize(
    "answer",
    [
        json.dumps({"title": "The Key", "story": STORY}),
        json.dumps({"title": "The Key", "story": STORY}, indent=2),
        "```json\n" + json.dumps({"title": "The Key", "story": STORY}, indent=2) + "\n```",
        str([{"type": "text", "text": ANSWER}]),
    ],
)
async def test_data_is_no_story(server: ChatServer, make: Make, answer: str) -> None:
    server.script = [streaming(*answer)]

    assert isinstance(await refusal_of(make()), WriterUnavailable)
