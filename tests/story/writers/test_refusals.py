"""Endpoints' errors: their translation, and how often a request is retried."""

from __future__ import annotations

import io
import json
import logging
import traceback

import pytest

from kit.runtime import logs
from services.story.adapters.writers import Refusal, WriterRefused, WriterUnavailable
from tests.logging_state import restored_logging

from .chat_server import ChatServer, answering, delta, refusing, sending, sending_bytes, streaming
from .telling import ANSWER, KEY, STORY, WISH, Make, content, frames, refusal_of, told


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
        (401, {"error": {"message": "The key sk-p...2Kc9 (ending in 2Kc9) is unknown"}}, "is unknown"),
        (401, {"detail": {"error": {"message": "no key", "input": WISH}}}, "no key"),
        (404, {"detail": "Not Found"}, "Not Found"),
        (404, "[" * 100_000, "[[["),
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


async def test_nothing_but_our_own_lines_is_logged_of_a_request(server: ChatServer, make: Make) -> None:
    lines = io.StringIO()
    server.script = [refusing(503), streaming(ANSWER)]
    writer = make(attempts=2)

    with restored_logging():
        # Without pytest's own handlers, which `configure` would close.
        logging.getLogger().handlers.clear()
        logs.configure("story-worker", "development", "DEBUG", stream=lines)
        await told(writer)

    names = {json.loads(line)["log"]["logger"] for line in lines.getvalue().splitlines()}
    # asyncio and gRPC's poller may still log what earlier tests of this process did.
    assert {name for name in names if not name.startswith(("asyncio", "grpc._cython"))} == {
        "services.story.adapters.writers.openai.writer"
    }
    assert KEY not in lines.getvalue()
    assert WISH not in lines.getvalue()


@pytest.mark.parametrize(
    "body",
    [
        {"error": {"error": {"message": "no", "type": "insufficient_quota"}}},
        {"detail": {"error": {"message": "no", "code": "insufficient_quota"}}},
        {"code": "insufficient_quota", "message": "no"},
        [{"error": {"code": 429, "details": [{"reason": "INSUFFICIENT_QUOTA"}], "message": "no"}}],
    ],
)
async def test_a_code_is_found_wherever_an_error_holds_it(server: ChatServer, make: Make, body: object) -> None:
    server.script = [answering(429, body)]

    failure = await refusal_of(make())

    assert isinstance(failure, WriterRefused)
    assert "the account is exhausted: the endpoint answered 429: no" in str(failure)


async def test_an_input_that_was_flagged_is_a_refusal_of_the_content(server: ChatServer, make: Make) -> None:
    flagged = {"reasons": ["violence"], "flagged_input": WISH}
    server.script = [answering(403, {"error": {"code": 403, "message": "moderation", "metadata": flagged}})]

    failure = await refusal_of(make())

    assert isinstance(failure, WriterRefused)
    assert failure.reason == Refusal.CONTENT_REFUSED
    assert WISH not in str(failure)


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
