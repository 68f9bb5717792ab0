"""What endpoints that speak OpenAI's protocol really send, against a server that sends it byte by byte."""

from __future__ import annotations

import io
import json
import logging
import traceback
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing
from typing import TypeAlias

import pytest

from services.kit import logs
from services.story.writers import Brief, Length, Piece, Refusal, Title, Usage, Words, WriterRefused, WriterUnavailable
from services.story.writers.openai import OpenAIWriter

from .chat_server import (
    ChatServer,
    answering,
    chat_server,
    delta,
    falling_silent,
    refusing,
    sending,
    sending_bytes,
    streaming,
)

Make: TypeAlias = Callable[..., OpenAIWriter]

KEY = "sk-proj-Zq8Lm3Xw5Tr7Yv2Kc9"
WISH = "My grandmother Ottilie hid her letters under the floor."
BRIEF = Brief(
    length=Length.SHORT, prompt=WISH, theme="forgiveness", preferences=("zeppelins",), first_name="Wilhelmina"
)
STORY = ("One two three four five six seven eight nine ten. " * 14).strip()
ANSWER = f"The Key\n\n{STORY}"


@pytest.fixture
async def server() -> AsyncIterator[ChatServer]:
    async with chat_server() as running:
        yield running


@pytest.fixture
async def make(server: ChatServer) -> AsyncIterator[Make]:
    writers: list[OpenAIWriter] = []

    def build(**overrides: float) -> OpenAIWriter:
        settings = {"first_wait": 0.001, "read_timeout": 10.0, "attempts": 1, **overrides}
        writers.append(OpenAIWriter(base_url=server.url, api_key=KEY, model="model-1", **settings))  # type: ignore[arg-type]
        return writers[-1]

    yield build
    for writer in writers:
        await writer.aclose()


async def told(writer: OpenAIWriter, brief: Brief = BRIEF) -> tuple[str, str]:
    """The title and the text, as a reader gets them."""
    pieces: list[Piece] = []
    async with aclosing(writer.write(brief)) as writing:
        pieces += [piece async for piece in writing]
    [title] = [piece.text for piece in pieces if isinstance(piece, Title)]
    return title, "".join(piece.text for piece in pieces if isinstance(piece, Words))


async def refusal_of(writer: OpenAIWriter) -> WriterRefused | WriterUnavailable:
    try:
        story = await told(writer)
    except (WriterRefused, WriterUnavailable) as failure:
        return failure
    pytest.fail(f"it told {story}")


def content(text: object) -> dict[str, object]:
    return delta({"content": text})


def frames(*payloads: object, end: str = "\n", done: str = "data: [DONE]\n\n") -> bytes:
    lines = [f"data: {json.dumps(payload)}\n\n" for payload in payloads]
    return ("".join(lines) + done).replace("\n", end).encode()


# How an answer ends


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
    assert Length.SHORT.words <= len(text.split()) <= Length.SHORT.most


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


# What only the model was to read


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
        # Its first lines are told before the tag shows that they were none; the next attempt knows.
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


# Titles


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


# Events


@pytest.mark.parametrize(
    "nothing",
    [
        {"choices": [], "prompt_filter_results": [{"prompt_index": 0, "content_filter_results": {}}]},
        {"choices": [{"index": 0, "finish_reason": None, "content_filter_results": {"hate": {"filtered": False}}}]},
        {"choices": [{"index": 0, "delta": None, "finish_reason": None}]},
        {"choices": [{"index": 0, "delta": {}}]},
        {"choices": [{"index": 0, "delta": {"content": None, "role": "assistant"}}]},
        {"choices": [None]},
        {"choices": None},
        {"id": "x", "usage": None},
        {"type": "ping"},
        {},
        None,
    ],
)
async def test_a_chunk_that_says_nothing_is_skipped(server: ChatServer, make: Make, nothing: object) -> None:
    server.script = [
        sending(
            nothing if isinstance(nothing, dict) else "null",
            content(ANSWER),
            nothing or {},
            delta({}, "stop"),
            nothing or {},
        )
    ]

    assert await told(make()) == ("The Key", STORY)
    assert len(server.exchanges) == 1


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    "frame",
    [
        "event: ping\n\n",
        "event: ping\ndata: \n\n",
        "event: ping\ndata: pong\n\n",
        "retry: 100\n\n",
        "data:\n\n",
        "data\n\n",
        "data: \n\n",
        ": keep-alive\n\n",
        ": OPENROUTER PROCESSING\n",
        "id: 1\n\n",
        "id: 1\nretry: x\nevent: message\n\n",
        "unknown: x\n\n",
        "\n\n\n",
    ],
)
async def test_a_frame_without_data_is_skipped(server: ChatServer, make: Make, frame: str, end: str) -> None:
    empty = frame.replace("\n", end).encode()
    half = len(ANSWER) // 2
    events = [frames(payload, end=end, done="") for payload in (content(ANSWER[:half]), content(ANSWER[half:]))]
    server.script = [sending_bytes(empty + empty.join([*events, frames(delta({}, "stop"), end=end)]) + empty)]

    assert await told(make()) == ("The Key", STORY)
    assert len(server.exchanges) == 1


STOP = frames(delta({}, "stop"), done="")


@pytest.mark.parametrize(
    "stream",
    [
        b"\xef\xbb\xbf" + frames(content(ANSWER)),
        frames(content(ANSWER), done="") + STOP + b"data:[DONE]",
        frames(content(ANSWER), done="") + STOP.rstrip() + b"\ndata: [DONE]",
        frames(content(ANSWER), done="") + STOP.rstrip(),
        b"data: " + json.dumps(content(ANSWER), indent=1).replace("\n", "\ndata: ").encode() + b"\n\n" + STOP,
        b"id: 7\nevent: completion\nretry: 1\ndata:" + json.dumps(content(ANSWER)).encode() + b"\n\n" + STOP,
    ],
)
@pytest.mark.parametrize("size", [0, 1])
async def test_events_are_read_however_they_are_written(
    server: ChatServer, make: Make, stream: bytes, size: int
) -> None:
    if STOP.rstrip() not in stream:
        stream = stream.replace(b"data: [DONE]", STOP + b"data: [DONE]")
    server.script = [sending_bytes(stream, size=size)]

    assert await told(make()) == ("The Key", STORY)


async def test_bytes_that_are_no_utf_8_cost_a_character_and_no_story(server: ChatServer, make: Make) -> None:
    stream = frames(content(f"The Key\n\nXX {STORY}"), delta({}, "stop")).replace(b"XX", b"\xff\xc3")
    server.script = [sending_bytes(stream)]

    title, text = await told(make())

    assert (title, text.endswith(STORY)) == ("The Key", True)
    assert text.encode()


@pytest.mark.parametrize("size", [0, 1])
async def test_halves_of_a_character_in_two_chunks_are_joined(server: ChatServer, make: Make, size: int) -> None:
    # JSON writes a character beyond the first 65,536 as two escapes, and tokens may end between them.
    stream = frames(
        content("The \ud83d"),
        content("\ude00 Key\n\nA \ud83d"),
        delta({}),
        content("\udc31 came. "),
        content("\ud83d lone \udc00 half \x00 came. "),
        content(STORY),
        delta({}, "stop"),
    )
    server.script = [sending_bytes(stream, size=size)]

    title, text = await told(make())

    assert title == "The 😀 Key"
    assert text.encode() == f"A 🐱 came. lone half came. {STORY}".encode()


async def test_each_byte_may_come_alone(server: ChatServer, make: Make) -> None:
    stream = frames(content("Der Schlüssel\n\n„Ü 😀.“ "), content(STORY), delta({}, "stop"))
    usage = {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 9}}
    server.script = [sending_bytes(stream.replace(b"data: [DONE]", frames(usage)), size=1)]

    async with aclosing(make().write(BRIEF)) as writing:
        pieces = [piece async for piece in writing]

    assert pieces[0] == Title("Der Schlüssel")
    assert "".join(piece.text for piece in pieces if isinstance(piece, Words)) == f"„Ü 😀.“ {STORY}"
    assert pieces[-1] == Usage(7, 9)


# Errors and refusals


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        ({"error": {"message": "slow down please", "type": "rate_limit_error"}}, None, "slow down please"),
        ({"error": {"message": "we are full", "type": "overloaded_error"}}, None, "we are full"),
        ({"type": "error", "error": {"message": "we are full", "code": 529}}, None, "we are full"),
        ({"error": "the runner crashed"}, None, "the runner crashed"),
        ({"error": {"message": "bad gateway", "code": 502}}, None, "bad gateway"),
        ({"object": "error", "message": "no such model", "code": 404}, Refusal.WRITER_MISCONFIGURED, "no such model"),
        (
            {"error": {"message": "too long", "code": "context_length_exceeded"}},
            Refusal.WRITER_MISCONFIGURED,
            "too long",
        ),
        ({"error": {"message": "broke", "type": "insufficient_quota"}}, Refusal.WRITER_MISCONFIGURED, "broke"),
        ({"error": {"message": "not that", "code": "content_filter"}}, Refusal.CONTENT_REFUSED, "not that"),
    ],
)
@pytest.mark.parametrize("named", [False, True])
async def test_an_error_in_the_stream_is_one_of_its_kind(
    server: ChatServer, make: Make, error: object, kind: Refusal | None, words: str, named: bool
) -> None:
    name = b"event: error\n" if named else b""
    server.script = [sending_bytes(frames(content("The Key\n\nOne"), done="") + name + frames(error))]

    failure = await refusal_of(make())

    assert getattr(failure, "reason", None) == kind
    assert words in str(failure)


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (
            422,
            {
                "detail": [
                    {"type": "extra_forbidden", "loc": ["body", "stream_options"], "msg": "no extras", "input": WISH}
                ]
            },
        ),
        (422, {"detail": "Unprocessable Entity"}),
        (400, {"error": {"message": "Unrecognized request argument supplied: stream_options"}}),
        (400, {"message": "stream_options is not supported"}),
        (500, "unexpected keyword argument 'stream_options'"),
        (200, "stream"),
    ],
)
async def test_an_endpoint_that_refuses_the_token_count_is_asked_without_from_then_on(
    server: ChatServer, make: Make, status: int, body: object, caplog: pytest.LogCaptureFixture
) -> None:
    in_stream = sending({"error": {"message": "bad stream_options", "code": 400}})
    refused = in_stream if status == 200 else answering(status, body)
    server.script = [refused, streaming(ANSWER), streaming(ANSWER)]
    writer = make(attempts=2)

    assert await told(writer) == ("The Key", STORY)
    assert await told(writer) == ("The Key", STORY)

    assert ["stream_options" in exchange.body for exchange in server.exchanges] == [True, False, False]
    assert "without stream_options" in caplog.text
    assert WISH not in caplog.text


async def test_an_endpoint_that_refuses_the_system_role_is_asked_without_from_then_on(
    server: ChatServer, make: Make
) -> None:
    refused = answering(400, {"error": {"message": "System role not supported"}})
    server.script = [refused, streaming(ANSWER), streaming(ANSWER)]
    writer = make()

    assert await told(writer) == ("The Key", STORY)
    assert await told(writer) == ("The Key", STORY)

    assert [len(exchange.body["messages"]) for exchange in server.exchanges] == [2, 1, 1]
    assert WISH in server.exchanges[2].body["messages"][0]["content"]


async def test_a_refusal_that_stays_without_the_token_count_is_told_and_not_remembered(
    server: ChatServer, make: Make
) -> None:
    server.script = [answering(422, {"detail": "no"}), answering(422, {"detail": "never"}), streaming(ANSWER)]
    writer = make()

    failure = await refusal_of(writer)
    await told(writer)

    assert isinstance(failure, WriterRefused)
    assert "422: never" in str(failure)
    assert ["stream_options" in exchange.body for exchange in server.exchanges] == [True, False, True]


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (
            401,
            {"error": {"message": f"Incorrect API key provided: {KEY}. See /keys", "code": "invalid_api_key"}},
            "See /keys",
        ),
        (401, {"error": {"message": "Incorrect API key provided: sk-pr***********2Kc9. See /keys"}}, "See /keys"),
        (401, {"error": {"message": f"Bearer {KEY[:12]}... is unknown"}}, "is unknown"),
        (403, {"message": f"...{KEY[-8:]} may not"}, "may not"),
        (404, {"error": "model 'model-1' not found"}, "model 'model-1' not found"),
        (404, {"detail": "Not Found"}, "Not Found"),
        (
            400,
            [{"error": {"code": 400, "message": "API key not valid", "status": "INVALID_ARGUMENT"}}],
            "API key not valid",
        ),
        (402, {"error": {"message": "Insufficient Balance"}}, "Insufficient Balance"),
        (400, {"error": {"message": f"bad input {WISH} for Wilhelmina, {WISH[:20]}", "param": WISH}}, "bad input"),
        (
            400,
            {"detail": [{"loc": ["body", "messages"], "msg": "too many", "input": [{"content": WISH}]}]},
            "body.messages: too many",
        ),
        (403, "<html><title>403 Forbidden</title>\n<p>Ask\r\nIT.</html>", "403 Forbidden"),
        (400, {"error": {"message": "no\nline \x1b[31mbreaks\u2028here" + "!" * 5000}}, "no line"),
        (413, "", "413"),
        (500, {"error": {"message": "boom"}}, "boom"),
        (429, {"error": {"message": "slow down"}}, "slow down"),
    ],
)
async def test_a_refusal_is_told_in_the_endpoints_words_without_the_key_or_the_wish(
    server: ChatServer, make: Make, status: int, body: object, words: str
) -> None:
    server.script = [answering(status, body)]

    failure = await refusal_of(make())

    assert words in str(failure)
    assert str(status) in str(failure)
    trace = "".join(traceback.format_exception(failure))
    for secret in (KEY, KEY[:12], KEY[-8:], "2Kc9", WISH, WISH[:20], "grandmother", "Wilhelmina"):
        assert secret not in trace
    assert len(str(failure)) < 300
    assert str(failure).isprintable()


async def test_each_attempt_that_failed_is_logged(
    server: ChatServer, make: Make, caplog: pytest.LogCaptureFixture
) -> None:
    server.script = [answering(503, {"error": {"message": f"busy, {KEY}"}}), streaming(ANSWER)]

    await told(make(attempts=2))

    assert "503: busy, [hidden]" in caplog.text
    assert KEY not in caplog.text


async def test_nothing_but_our_own_lines_is_logged_of_a_request(
    server: ChatServer, make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, lines = logging.getLogger(), io.StringIO()
    monkeypatch.setattr(root, "handlers", [])
    monkeypatch.setattr(root, "level", root.level)
    server.script = [refusing(503), streaming(ANSWER)]
    writer = make(attempts=2)

    logs.configure("story-worker", "development", "DEBUG", stream=lines)
    await told(writer)

    names = {json.loads(line)["log"]["logger"] for line in lines.getvalue().splitlines()}
    assert {name for name in names if not name.startswith("asyncio")} == {"services.story.writers.openai.writer"}
    assert KEY not in lines.getvalue()
    assert WISH not in lines.getvalue()


@pytest.mark.parametrize("field", ["code", "type"])
@pytest.mark.parametrize(
    ("status", "code"),
    [
        (429, "insufficient_quota"),
        (429, "billing_hard_limit_reached"),
        (429, "INSUFFICIENT_QUOTA"),
        (503, "invalid_api_key"),
        (200, "insufficient_quota"),
    ],
)
async def test_what_no_wait_will_mend_is_refused_at_once(
    server: ChatServer, make: Make, status: int, code: str, field: str
) -> None:
    server.script = [answering(status, {"error": {"message": "no", field: code}})]

    failure = await refusal_of(make(attempts=3))

    assert isinstance(failure, WriterRefused)
    assert failure.reason == Refusal.WRITER_MISCONFIGURED


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "1.5"}, 1.5),
        ({"Retry-After": "0.25"}, 0.25),
        ({"Retry-After-Ms": "1500"}, 1.5),
        ({"Retry-After-Ms": "250.5", "Retry-After": "1"}, 0.2505),
        ({"Retry-After-Ms": "soon", "Retry-After": "7"}, 7),
        ({"Retry-After": "Sun, 06 Nov 1994 08:49:37 GMT", "Date": "Sun, 06 Nov 1994 08:49:07 GMT"}, 30),
        ({"Retry-After": "Sun, 06 Nov 1994 08:49:00 GMT", "Date": "Sun, 06 Nov 1994 08:49:07 GMT"}, 0),
        ({"Retry-After": "Sun, 06 Nov 2094 08:49:00 GMT", "Date": "Sun, 06 Nov 1994 08:49:07 GMT"}, 86_400),
        ({"Retry-After": "Sun, 06 Nov 2094 08:49:00 GMT"}, None),
        ({"Retry-After-Ms": "9" * 400}, 86_400),
        *(({"Retry-After": value}, None) for value in ("-1.5", "nan", "inf", "1e3", "1.", "1,5", "soon", "", "٣")),
        *(({"Retry-After-Ms": value}, None) for value in ("-1", "NaN", "")),
    ],
)
async def test_the_time_that_an_endpoint_asks_for_is_heeded(
    server: ChatServer, make: Make, headers: dict[str, str], seconds: float | None
) -> None:
    server.script = [refusing(429, headers={name: value.encode().decode("latin-1") for name, value in headers.items()})]

    failure = await refusal_of(make())

    assert isinstance(failure, WriterUnavailable)
    assert failure.retry_after == seconds


@pytest.mark.parametrize(
    ("body", "media_type", "kind", "words"),
    [
        (
            "<!DOCTYPE html>\n<title>Sign in</title>" + "x" * 5000,
            "text/html",
            None,
            "<!DOCTYPE html> <title>Sign in</title>xxx",
        ),
        ("Welcome to the gateway", "text/plain", None, "Welcome to the gateway"),
        ({"detail": "maintenance"}, "application/json", None, '{"detail": "maintenance"}'),
        ({"error": {"message": f"key {KEY}", "code": "x"}}, "application/json", None, "key [hidden]"),
        ({"error": {"message": "no", "code": 401}}, "application/json", Refusal.WRITER_MISCONFIGURED, '"no"'),
        (
            {"id": "1", "choices": [{"message": {"content": "Once"}}]},
            "application/json",
            Refusal.WRITER_MISCONFIGURED,
            "Once",
        ),
        ('{"response": "Once"}\n{"response": " upon"}', "application/x-ndjson", None, '{"response": "Once"}'),
        ("  \n [1]", "text/event-stream", None, "[1]"),
        (": nothing\n\n", "text/event-stream", None, ": nothing"),
    ],
)
async def test_an_answer_that_is_no_event_stream_is_told_by_its_beginning(
    server: ChatServer, make: Make, body: object, media_type: str, kind: Refusal | None, words: str
) -> None:
    server.script = [answering(200, body, media_type=media_type)]

    failure = await refusal_of(make())

    assert getattr(failure, "reason", None) == kind
    assert words in str(failure)
    assert media_type in str(failure)
    assert KEY not in str(failure)
    assert len(str(failure)) < 400


async def test_an_empty_answer_is_told_as_such(server: ChatServer, make: Make) -> None:
    server.script = [answering(200, "", media_type="text/html")]

    assert "empty" in str(await refusal_of(make()))


@pytest.mark.parametrize("media_type", ["text/plain", "application/json", "application/octet-stream"])
async def test_a_stream_counts_whatever_it_calls_itself(server: ChatServer, make: Make, media_type: str) -> None:
    server.script = [answering(200, frames(content(ANSWER), delta({}, "stop")).decode(), media_type=media_type)]

    assert await told(make()) == ("The Key", STORY)
