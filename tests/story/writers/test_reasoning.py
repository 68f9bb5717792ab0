"""A model's reasoning does not become part of a story."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import aclosing

import pytest

from services.story.adapters.writers import Refusal, Title, WriterRefused, WriterUnavailable

from .chat_server import ChatServer, delta, falling_silent, sending, streaming
from .telling import ANSWER, BRIEF, STORY, Make, content, refusal_of, told


@pytest.mark.parametrize("size", [1, 3, 10_000])
@pytest.mark.parametrize(
    "answer",
    [
        f"<think>\nThe user wants a story.\n\nI could.</think>\n\n{ANSWER}",
        f"<THINK>x</Think>{ANSWER}",
        f'<thinking budget="9">Sure! a < b, <b>bold</b></thinking>\n{ANSWER}',
        f"<think>a<think>b</think>c</think>{ANSWER}",
        f"<think></think>\n\n{ANSWER}",
        f"<think/>{ANSWER}",
        f"<reasoning>x\n\ny</reasoning>{ANSWER}",
        f"<thought>\nx</thought>{ANSWER}",
        f"[THINK]x[/THINK]{ANSWER}",
        f"◁think▷x◁/think▷{ANSWER}",
        f"<|START_THINKING|>x<|END_THINKING|><|START_RESPONSE|>{ANSWER}<|END_RESPONSE|>",
        f"<|channel|>analysis<|message|>x y.<|end|><|start|>assistant<|channel|>final<|message|>{ANSWER}<|return|>",
        f"<|begin_of_thought|>x<|end_of_thought|>{ANSWER}<|im_end|>",
        f"The Key<think>x\n\ny</think>\n\n{STORY}",
        f"The Key\n\n{STORY[:200]}<think>x\n\ny.</think>{STORY[200:]}",
        f"<answer>\n{ANSWER}</answer>",
        f"&lt;think&gt;x&lt;/think&gt;{ANSWER}",
        f"<|im_start|>assistant\n{ANSWER}<|im_end|>",
        f"<title>The Key</title><story>{STORY}</story>",
        f"Hm, a story.\nLet me think.</think>\n\n{ANSWER}",
        f"{ANSWER}<\uff5cend▁of▁sentence\uff5c>",
    ],
)
async def test_reasoning_and_tags_are_no_part_of_a_story(
    server: ChatServer, make: Make, answer: str, size: int
) -> None:
    server.script = [streaming(*(answer[i : i + size] for i in range(0, len(answer), size)))] * 2

    writer = make()
    if "Hm," in answer and size < 10_000:
        # The first attempt streams lines before a closing tag marks them as reasoning; the next attempt waits for the tag.
        assert isinstance(await refusal_of(writer), WriterUnavailable)

    assert await told(writer) == ("The Key", STORY)


async def test_a_model_that_does_not_think_first_any_more_is_shown_at_once_again(
    server: ChatServer, make: Make
) -> None:
    thinking = streaming("Well.\nHm.\n", f"</think>{ANSWER}")
    server.script = [thinking, thinking, streaming(ANSWER), falling_silent(ANSWER)]
    writer = make()

    assert isinstance(await refusal_of(writer), WriterUnavailable)
    assert await told(writer) == ("The Key", STORY)
    assert await told(writer) == ("The Key", STORY)
    async with aclosing(writer.write(BRIEF)) as pieces:
        assert await anext(pieces) == Title("The Key")


async def test_a_model_that_never_stops_thinking_has_written_nothing(server: ChatServer, make: Make) -> None:
    server.script = [streaming(f"<think>{ANSWER}")]

    assert isinstance(await refusal_of(make()), WriterUnavailable)


async def test_a_smaller_sign_is_no_tag(server: ChatServer, make: Make) -> None:
    story = f"{STORY} Is 3 < 5? [T is. <3"
    server.script = [streaming("The Key\n\n", *f"{story}.")]

    assert (await told(make()))[1] == f"{story}."


@pytest.mark.parametrize(
    "parts",
    [
        [{"type": "text", "text": ANSWER}],
        [{"type": "thinking", "thinking": [{"type": "text", "text": "Hm."}]}, {"type": "text", "text": ANSWER}],
        [{"type": "reasoning", "text": "Hm."}, {"type": "output_text", "text": ANSWER}],
        [{"type": "text", "text": "Hm.", "thought": True}, ANSWER],
        [{"type": "text", "text": {"value": ANSWER}}, {"type": "image_url", "image_url": "x"}],
        {"type": "text", "text": ANSWER},
    ],
)
async def test_of_a_content_in_parts_only_text_counts(server: ChatServer, make: Make, parts: object) -> None:
    server.script = [sending(content(parts), delta({}, "stop"))]

    assert await told(make()) == ("The Key", STORY)


@pytest.mark.parametrize(
    "thought",
    [
        {"content": None, "reasoning_content": "Hm."},
        {"content": "", "reasoning": "Hm.", "reasoning_details": [{"type": "reasoning.text", "text": "Hm."}]},
        {"content": "Hm.\n", "extra_content": {"google": {"thought": True}}},
    ],
)
async def test_fields_of_reasoning_are_left_out(server: ChatServer, make: Make, thought: Mapping[str, object]) -> None:
    server.script = [sending(delta(thought), content(ANSWER), delta({}, "stop"))]

    assert await told(make()) == ("The Key", STORY)


async def test_a_refusal_among_the_parts_refuses(server: ChatServer, make: Make) -> None:
    server.script = [sending(content([{"type": "refusal", "refusal": "I will not."}]), delta({}, "stop"))]

    failure = await refusal_of(make())

    assert isinstance(failure, WriterRefused)
    assert failure.reason == Refusal.CONTENT_REFUSED
