"""Requests a story from an endpoint, streams it, and retries until the first text has arrived."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing, suppress
from dataclasses import replace

import httpx2
import openai
from tenacity import AsyncRetrying, RetryCallState, retry_if_exception, stop_after_attempt, wait_random_exponential

from .. import Brief, Piece, Refusal, Usage, WriterRefused, WriterUnavailable
from . import answer
from .answer import Delta, ErrorEvent, Surrogates
from .failures import Complaint, Failure, Redaction, retry_after
from .manuscript import Manuscript
from .reasoning import Thoughts
from .request import Dialect, messages
from .response import NoStream, Response, events

log = logging.getLogger(__name__)


class OpenAIWriter:
    """Streams stories from `base_url` (None: OpenAI itself) with `model`.

    `connect_timeout` and `read_timeout` are in seconds; the latter bounds each wait for more of the answer, not the whole answer.
    Transient errors are retried up to `attempts` times altogether, but only before any text has arrived; a `Retry-After` longer
    than `longest_wait` seconds is left to the caller. After a story was cut short, the writer waits at most `usage_wait` seconds
    for the token count, which endpoints send last, after the unwanted text. Errors map thus:

    - connection failures, timeouts, 408, 409, 425, 429, 5xx, an answer that is cut off, ends in mid-sentence or with a finish
      reason that is no end, or makes no sense, a story without a title or shorter than asked for: `WriterUnavailable`;
    - a content filter's finish reason or error code, or a refusal in place of text: `WriterRefused` CONTENT_REFUSED;
    - every other 4xx (key, model, request), an exhausted account, an answer stopped by the endpoint's own token limit or not
      streamed: `WriterRefused` WRITER_MISCONFIGURED.

    The exception's message holds the endpoint's message, redacted.
    """

    name = "openai"

    def __init__(
        self,
        *,
        base_url: str | None,
        api_key: str,
        model: str,
        connect_timeout: float = 5.0,
        read_timeout: float = 60.0,
        attempts: int = 3,
        first_wait: float = 0.5,
        longest_wait: float = 10.0,
        usage_wait: float = 2.0,
    ) -> None:
        self.model = model
        self._api_key = api_key
        self._attempts = attempts
        self._longest_wait = longest_wait
        self._usage_wait = usage_wait
        self._backoff = wait_random_exponential(multiplier=first_wait, max=longest_wait)
        self._dialect = Dialect()
        self._thinks_first = False
        self._client = openai.AsyncOpenAI(
            base_url=base_url,
            api_key=api_key,
            timeout=openai.Timeout(read_timeout, connect=connect_timeout),
            max_retries=0,
        )

    async def warm_up(self) -> None:
        """Do nothing: a probe would cost money and would not prove that the endpoint answers a minute later."""

    async def write(self, brief: Brief) -> AsyncGenerator[Piece, None]:
        if self._client.is_closed():
            raise WriterUnavailable("the openai writer is shut down")
        retrying = AsyncRetrying(
            stop=stop_after_attempt(self._attempts),
            wait=self._wait,
            retry=retry_if_exception(self._is_worth_a_wait),
            before_sleep=_log_failure,
            reraise=True,
        )
        opened: tuple[Delta, AsyncGenerator[Delta, None]] = await retrying(self._open, brief)
        first, rest = opened
        async with aclosing(rest):
            manuscript = Manuscript(brief)
            for piece in manuscript.take(first):
                yield piece
            usage = first.usage
            while not (manuscript.is_full or manuscript.has_ended) and (delta := await anext(rest, None)) is not None:
                usage = delta.usage or usage
                for piece in manuscript.take(delta):
                    yield piece
            if not manuscript.is_full:
                for delta in await self._epilogue(rest):
                    usage = delta.usage or usage
                    for piece in manuscript.take(delta):
                        yield piece
            for piece in manuscript.finish():
                yield piece
            if manuscript.is_full and usage is None:
                usage = await self._usage_at_the_end(rest)
            if usage is not None:
                yield usage

    async def aclose(self) -> None:
        await self._client.close()

    async def _open(self, brief: Brief) -> tuple[Delta, AsyncGenerator[Delta, None]]:
        """Send the request and wait for the first text; until then a retry is invisible to the reader."""
        deltas = self._deltas(brief)
        try:
            async for delta in deltas:
                if delta.text.strip() or delta.finish_reason:
                    return delta, deltas
        except BaseException:
            await deltas.aclose()
            raise
        raise WriterUnavailable("the endpoint's answer was empty")

    async def _epilogue(self, rest: AsyncGenerator[Delta, None]) -> list[Delta]:
        """Read the events after the end of the story for a short time: the token count, or a content filter's verdict.

        The story is whole: of all errors now only such a verdict fails it.
        """
        heard: list[Delta] = []
        try:
            async with asyncio.timeout(self._usage_wait):
                while (delta := await anext(rest, None)) is not None:
                    heard.append(delta)
        except (TimeoutError, WriterUnavailable) as error:
            log.info("the endpoint's answer went wrong after its end: %s", error)
        except WriterRefused as refused:
            if refused.reason is Refusal.CONTENT_REFUSED:
                raise
            log.info("the endpoint's answer went wrong after its end: %s", refused)
        return heard

    async def _usage_at_the_end(self, rest: AsyncGenerator[Delta, None]) -> Usage | None:
        """Read the rest of a story that was cut short, for its token count. An error now only leaves the count unknown."""
        with suppress(TimeoutError, WriterUnavailable, WriterRefused):
            async with asyncio.timeout(self._usage_wait):
                async for delta in rest:
                    if delta.usage is not None:
                        return delta.usage
        return None

    async def _deltas(self, brief: Brief) -> AsyncGenerator[Delta, None]:
        """Yield the deltas for the reader. Errors are raised `from None`, because those of the package quote the whole answer."""
        redact = Redaction(self._api_key, [brief.theme, brief.prompt, brief.first_name, *brief.preferences])
        surrogates, thoughts = Surrogates(), Thoughts(thinks_first=self._thinks_first)
        failure: Failure | None = None
        try:
            async with AsyncExitStack() as closing:
                stream = events(await self._create(closing, brief, redact))
                await closing.enter_async_context(aclosing(stream))
                async for event in stream:
                    delta = answer.read(event)
                    yield self._meant_for_the_reader(replace(delta, text=surrogates.join(delta.text)), thoughts)
                if rest := thoughts.finish():
                    yield Delta(text=rest)
        except openai.APIStatusError as error:
            failure = _refused(error, redact)
        except (openai.APIError, httpx2.HTTPError, httpx2.StreamError, OSError) as error:
            cause = error.__cause__ or error
            failure = WriterUnavailable(redact(f"{type(error).__name__}: {type(cause).__name__}: {cause}"))
        except NoStream as error:
            failure = error.failure(redact)
        except ErrorEvent as error:
            failure = self._interrupted(error.body, redact)
        except ValueError as error:
            failure = WriterUnavailable(redact(f"the endpoint sent a malformed chunk: {error}"))
        if failure:
            raise failure

    def _meant_for_the_reader(self, delta: Delta, thoughts: Thoughts) -> Delta:
        was_thought = thoughts.was_thought
        text = thoughts.feed(delta.text)
        if delta.finish_reason:
            text += thoughts.finish()
            # Remember whether this model reasons first; if not, its next text is streamed at once.
            self._thinks_first = self._thinks_first and not thoughts.thinks_first
        starts_over = thoughts.was_thought and not was_thought
        self._thinks_first = self._thinks_first or starts_over
        return replace(delta, text=text, starts_over=starts_over)

    async def _create(self, closing: AsyncExitStack, brief: Brief, redact: Redaction) -> Response:
        """Send the request without fields that the endpoint refuses, and remember them while the process runs."""
        dialect = self._dialect
        while True:
            asked = self._client.chat.completions.with_streaming_response.create(
                model=self.model,
                messages=messages(brief, system_role=dialect.system_role),
                stream=True,
                stream_options={"include_usage": True} if dialect.counted else openai.omit,
            )
            try:
                response = await closing.enter_async_context(asked)
            except openai.APIStatusError as error:
                refused = _refused(error, redact)
                simpler = dialect.simplified(error.status_code, error.response.text)
                if simpler is None or _is_about_content(refused):
                    raise
                log.warning("asking again without %s: %s", simpler.left_out, refused)
                dialect = simpler
            else:
                self._dialect = dialect
                return response

    def _interrupted(self, body: object, redact: Redaction) -> Failure:
        text = json.dumps(body)
        complaint = Complaint.read(body)
        failure = complaint.failure(f"the endpoint broke off with an error: {redact(complaint.words or text)}", None)
        simpler = self._dialect.simplified(None, text)
        if simpler is None or _is_about_content(failure):
            return failure
        self._dialect = simpler
        return WriterUnavailable(f"asking without {simpler.left_out} from now on: {failure}", retry_after=0.0)

    def _is_worth_a_wait(self, error: BaseException) -> bool:
        return isinstance(error, WriterUnavailable) and (error.retry_after or 0.0) <= self._longest_wait

    def _wait(self, state: RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after if isinstance(error, WriterUnavailable) else None
        return self._backoff(state) if asked is None else asked


def _log_failure(state: RetryCallState) -> None:
    log.warning("asking the endpoint again: %s", state.outcome.exception() if state.outcome else None)


def _is_about_content(failure: Failure) -> bool:
    return isinstance(failure, WriterRefused) and failure.reason is Refusal.CONTENT_REFUSED


def _refused(error: openai.APIStatusError, redact: Redaction) -> Failure:
    complaint = Complaint.parse(error.response.text)
    description = f"the endpoint answered {error.status_code}: {redact(complaint.words)}"
    return complaint.failure(description, error.status_code, retry_after(error.response.headers))
