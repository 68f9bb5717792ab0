"""Server-sent events and chunks as real endpoints send them."""

from __future__ import annotations

import json
from contextlib import aclosing

import pytest

from services.story.adapters.writers import Title, Usage, Words

from .chat_server import ChatServer, delta, sending, sending_bytes
from .telling import ANSWER, BRIEF, STORY, Make, content, frames, refusal_of, told


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


@pytest.mark.parametrize(
    "data", ["{oops", "3", '"x"', "[]", "[" * 100_000, '{"choices": 3}', '{"choices": [{"delta": 3}]}']
)
async def test_an_event_that_makes_no_sense_is_to_be_tried_again(server: ChatServer, make: Make, data: str) -> None:
    server.script = [sending(content("The Key\n\nOne"), data, content(ANSWER), delta({}, "stop"))]

    assert "malformed" in str(await refusal_of(make()))


async def test_bytes_that_are_no_utf_8_cost_a_character_and_no_story(server: ChatServer, make: Make) -> None:
    stream = frames(content(f"The Key\n\nXX {STORY}"), delta({}, "stop")).replace(b"XX", b"\xff\xc3")
    server.script = [sending_bytes(stream)]

    title, text = await told(make())

    assert (title, text.endswith(STORY)) == ("The Key", True)
    assert text.encode()


@pytest.mark.parametrize("size", [0, 1])
async def test_halves_of_a_character_in_two_chunks_are_joined(server: ChatServer, make: Make, size: int) -> None:
    # JSON escapes a character beyond U+FFFF as a surrogate pair, and a token may end between its halves.
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
