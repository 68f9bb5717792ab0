"""Finish reasons and last sentences: which of them complete a story and which fail it."""

from __future__ import annotations

import pytest

from services.story.adapters.writers import Refusal, WordCount, WriterRefused, WriterUnavailable

from .chat_server import ChatServer, delta, sending, sending_bytes, streaming
from .telling import ANSWER, STORY, Make, content, frames, refusal_of, told


@pytest.mark.parametrize("reason", ["stop", "STOP", "eos", "eos_token", "end_turn"])
async def test_a_model_that_came_to_its_end_has_told_its_story(server: ChatServer, make: Make, reason: str) -> None:
    server.script = [streaming(ANSWER, finish_reason=reason)]

    assert await told(make()) == ("The Key", STORY)


@pytest.mark.parametrize(
    "reason",
    [
        *("abort", "error", "insufficient_system_resource", "network_error", "cancelled", "timeout", "load", "null"),
        *("tool_calls", "function_call", "MALFORMED_FUNCTION_CALL", "other", "OTHER", "unheard-of"),
    ],
)
async def test_a_story_that_was_interrupted_is_to_be_tried_again(server: ChatServer, make: Make, reason: str) -> None:
    server.script = [streaming(ANSWER, finish_reason=reason)]

    failure = await refusal_of(make())

    assert isinstance(failure, WriterUnavailable)
    assert reason in str(failure)


@pytest.mark.parametrize("reason", [None, "", False])
async def test_a_story_whose_end_nobody_names_is_to_be_tried_again(
    server: ChatServer, make: Make, reason: str | None
) -> None:
    server.script = [sending(content(ANSWER), {"choices": [{"delta": {}, "finish_reason": reason}]})]

    assert isinstance(await refusal_of(make()), WriterUnavailable)


@pytest.mark.parametrize(
    ("reason", "refusal"),
    [
        *((reason, Refusal.CONTENT_REFUSED) for reason in ("content_filter", "CONTENT_FILTER", "SAFETY", "RECITATION")),
        *((reason, Refusal.CONTENT_REFUSED) for reason in ("PROHIBITED_CONTENT", "BLOCKLIST", "SPII", "refusal")),
        *((reason, Refusal.CONTENT_REFUSED) for reason in ("sensitive", "guardrail_intervened")),
        ("LANGUAGE", Refusal.LANGUAGE_UNSUPPORTED),
        *((reason, Refusal.WRITER_MISCONFIGURED) for reason in ("length", "MAX_TOKENS", "model_length")),
    ],
)
async def test_a_story_that_was_stopped_on_purpose_is_refused(
    server: ChatServer, make: Make, reason: str, refusal: Refusal
) -> None:
    server.script = [streaming(ANSWER, finish_reason=reason)]

    failure = await refusal_of(make())

    assert isinstance(failure, WriterRefused)
    assert failure.reason == refusal


async def test_a_verdict_after_the_end_refuses_the_story(server: ChatServer, make: Make) -> None:
    server.script = [
        sending(content(ANSWER), delta({}, "stop"), {"error": {"message": "no", "code": "content_filter"}})
    ]

    failure = await refusal_of(make())

    assert isinstance(failure, WriterRefused)
    assert failure.reason == Refusal.CONTENT_REFUSED


@pytest.mark.parametrize("after", [b"", b"data: {oops\n\n", b'data: {"error": {"message": "overloaded"}}\n\n'])
async def test_what_else_goes_wrong_after_the_end_takes_no_story_back(
    server: ChatServer, make: Make, after: bytes
) -> None:
    server.script = [sending_bytes(frames(content(ANSWER), delta({}, "stop"), done="") + after)]

    assert await told(make()) == ("The Key", STORY)


@pytest.mark.parametrize(
    "ending", [" And then the", " He opened", " It was,", " It cost:", " He met Dr.", " “I", " He went —", " Then; "]
)
async def test_a_story_that_stops_in_mid_sentence_is_to_be_tried_again(
    server: ChatServer, make: Make, ending: str
) -> None:
    server.script = [streaming(f"The Key\n\n{STORY[:600]}. {ending}")]

    failure = await refusal_of(make())

    assert isinstance(failure, WriterUnavailable)
    assert "mid-sentence" in str(failure)


@pytest.mark.parametrize(
    "ending",
    ["The end of it!", "“Good night.”", "„Gute Nacht.“", "(So it was.)", "Gone…", "Home. 🌟✨", "¿No?", "Done.**"],
)
async def test_a_story_ends_however_a_sentence_may(server: ChatServer, make: Make, ending: str) -> None:
    server.script = [streaming(f"The Key\n\n{STORY} {ending}")]

    assert (await told(make()))[1] == f"{STORY} {ending}".replace("*", "")


@pytest.mark.parametrize(
    "sentence",
    [
        "से एक चाबी मिली।",
        "وجد مفتاحا قديما؟",
        "او ایک چابی ملی۔",  # noqa: RUF001
        "ある日、鍵を見つけた。",
        "አንድ ቀን ቁልፍ አገኘ።",
        "Գտավ մի բանալի։",  # noqa: RUF001
    ],
)
async def test_other_scripts_end_with_their_own_full_stop(server: ChatServer, make: Make, sentence: str) -> None:
    story = " ".join([sentence] * (120 // len(sentence.split()) if " " in sentence else 15))
    server.script = [streaming(f"T\n\n{story}"), streaming(f"T\n\n{story[:-1]}")]
    writer = make()

    assert (await told(writer))[1] == story
    assert isinstance(await refusal_of(writer), WriterUnavailable)


async def test_words_after_enough_whole_sentences_are_left_out_when_they_make_none(
    server: ChatServer, make: Make
) -> None:
    enough = (STORY + " ") * 2
    server.script = [streaming(f"T\n\n{enough[:790].rsplit('.', 1)[0]}. And then the")]

    text = (await told(make()))[1]

    assert text.endswith(" ten.")
    assert WordCount.SHORT.words <= len(text.split()) <= WordCount.SHORT.most


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't assist with that request.",
        "I cannot write about that",
        "Sorry,\n\nI am not able to write this story. Ask me for another one.",
        "<think>No.</think>Unfortunately, I can’t write that.",  # noqa: RUF001
    ],
)
async def test_a_model_that_declines_in_words_refuses(server: ChatServer, make: Make, answer: str) -> None:
    server.script = [streaming(answer)]

    failure = await refusal_of(make())

    assert isinstance(failure, WriterRefused)
    assert failure.reason == Refusal.CONTENT_REFUSED


async def test_a_story_may_begin_with_an_apology(server: ChatServer, make: Make) -> None:
    server.script = [streaming(f"Sorry\n\nI am sorry, said the fox. {STORY}")]

    assert (await told(make()))[0] == "Sorry"
