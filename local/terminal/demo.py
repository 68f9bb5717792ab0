"""A demonstration of the mesh, by an HTTP client through Envoy.

It registers with a code from the mail sink, asks for a story, shows it while it is written, compares the streamed text with
the stored one, and finds the mail that announces it by its trace id. The exit code is 0 only if all steps succeed.
"""

import argparse
import asyncio
import email
import json
import re
import secrets
import sys
import time
import uuid
from collections.abc import AsyncIterator, Callable, Sequence
from email.message import EmailMessage
from email.policy import default
from pathlib import Path
from typing import Any

import httpx2
from rich.console import Console

from local import settings
from local.failures import LocalError
from local.layout import Layout
from local.terminal import lifecycle, status
from local.terminal.storyteller import Storyteller

PREFERENCES = ["the sea", "old lighthouses", "cats"]
THEME = "a keeper who finds a letter"
CALL_SECONDS = 20.0
MAIL_SECONDS = 60.0
STORY_SECONDS = 600.0
SILENCE_SECONDS = 60.0
"""A stream is broken if it sends nothing for this long, which is more than four heartbeats."""
POLL_SECONDS = 0.2

FINAL = {"STORY_STATE_COMPLETED", "STORY_STATE_FAILED", "STORY_STATE_CANCELLED"}


class DemoFailed(LocalError):
    """A step failed; the message says which."""


class Api:
    """A client of JSON over HTTP. Any answer but the expected one raises DemoFailed with one sentence."""

    def __init__(self, client: httpx2.AsyncClient) -> None:
        self._client = client

    def sign_in(self, access_token: str) -> None:
        self._client.headers["authorization"] = f"Bearer {access_token}"

    async def call(self, step: str, method: str, path: str, **request: Any) -> dict[str, Any]:
        """Make a call and return the JSON answer. Raises DemoFailed."""
        try:
            answer = await self._client.request(method, path, **request)
        except httpx2.HTTPError as error:
            raise DemoFailed(f"{step} failed: {method} {path} got no answer ({_reason(error)}).") from None
        if not answer.is_success:
            raise DemoFailed(f"{step} failed: {method} {path} answered {answer.status_code} {answer.text.strip()}")
        try:
            document: dict[str, Any] = answer.json()
        except ValueError:
            raise DemoFailed(f"{step} failed: {method} {path} answered something that is not JSON.") from None
        return document

    async def events(self, path: str, resume_token: str) -> AsyncIterator[dict[str, Any]]:
        """The messages of one server-sent event stream until it ends."""
        parameters = {"resume_token": resume_token} if resume_token else {}
        headers = {"accept": "text/event-stream"}
        timeout = httpx2.Timeout(CALL_SECONDS, read=SILENCE_SECONDS)
        async with self._client.stream("GET", path, params=parameters, headers=headers, timeout=timeout) as answer:
            if not answer.is_success:
                await answer.aread()
                raise DemoFailed(f"Watching failed: GET {path} answered {answer.status_code} {answer.text.strip()}")
            data: list[str] = []
            async for line in answer.aiter_lines():
                if line.startswith("data:"):
                    data.append(line.removeprefix("data:").removeprefix(" "))
                elif not line and data:
                    yield json.loads("\n".join(data))
                    data.clear()


async def demonstrate(layout: Layout, console: Console) -> None:
    """Run the steps. Raises DemoFailed at the first step that fails."""
    async with httpx2.AsyncClient(base_url=layout.edge_url, timeout=CALL_SECONDS, trust_env=False) as client:
        api = Api(client)
        address = f"reader-{secrets.token_hex(4)}@example.com"
        await _register(api, layout.mail, address, console)
        trace_id = secrets.token_hex(16)
        story = await _request_story(api, trace_id, console)
        streamed = await _watch(api, story["id"], console)
        stored = await _compare(api, story["id"], streamed, layout.settings.writer, console)
        await _find_announcement(layout.mail, address, trace_id, console)
        await _list_stories(api, stored, console)


async def _register(api: Api, mail: Path, address: str, console: Console) -> None:
    registration = await api.call(
        "Registering",
        "POST",
        "/v1/registrations",
        json={"email": address, "password": secrets.token_urlsafe(18), "preferences": PREFERENCES},
    )
    console.print(f"registered [bold]{address}[/], who likes {', '.join(PREFERENCES)}", highlight=False)

    def holds_a_code(message: EmailMessage) -> bool:
        return _code(message) is not None

    message = await _mail(mail, address, holds_a_code, "No mail with a 6-digit code")
    code = _code(message)
    console.print(f"the mail sink has [bold]{message['subject']}[/]; the code is {code}", highlight=False)
    answer = await api.call(
        "Completing the registration",
        "POST",
        f"/v1/registrations/{registration['registration_id']}:complete",
        json={"code": code, "device_name": "the demo"},
    )
    api.sign_in(answer["tokens"]["access_token"])
    console.print(f"signed in as user {answer['user']['id']}", highlight=False)


async def _request_story(api: Api, trace_id: str, console: Console) -> dict[str, Any]:
    answer = await api.call(
        "Asking for a story",
        "POST",
        "/v1/stories",
        json={
            "preferences": PREFERENCES,
            "theme": THEME,
            "length": "STORY_LENGTH_SHORT",
            "request_id": str(uuid.uuid4()),
        },
        headers={"traceparent": f"00-{trace_id}-{secrets.token_hex(8)}-01"},
    )
    story: dict[str, Any] = answer["story"]
    console.print(f"asked for story {story['id']}, trace id [bold]{trace_id}[/]\n", highlight=False)
    return story


async def _watch(api: Api, story_id: str, console: Console) -> str:
    """Show the story while it is written and return its text as streamed."""
    resume_token = ""
    with Storyteller(console) as teller:
        try:
            async with asyncio.timeout(STORY_SECONDS):
                while True:
                    pause = 1.0
                    try:
                        async for message in api.events(f"/v1/stories/{story_id}:watch", resume_token):
                            resume_token = message.get("resume_token", resume_token)
                            if "snapshot" in message:
                                teller.replace(message["snapshot"].get("text", ""))
                            elif "chunk" in message:
                                teller.append(message["chunk"]["text"])
                            elif "reset" in message:
                                teller.start_over(message["reset"].get("attempt", 0))
                            elif "state" in message:
                                teller.show_state(message["state"]["state"])
                            elif "done" in message:
                                _require_completed(message["done"]["story"])
                                return teller.text
                            elif "reconnect" in message:
                                pause = float(str(message["reconnect"].get("after", "1s")).removesuffix("s"))
                    except httpx2.TransportError as error:
                        teller.show_state(f"reconnecting ({_reason(error)})")
                    await asyncio.sleep(pause)
        except TimeoutError:
            raise DemoFailed(
                f"The story was not finished within {STORY_SECONDS:g} s: see the story workers' logs."
            ) from None


def _require_completed(story: dict[str, Any]) -> None:
    if story["state"] != "STORY_STATE_COMPLETED":
        raise DemoFailed(f"The story ended in {story['state']} {story.get('failure_reason', '')}".strip() + ".")


async def _compare(api: Api, story_id: str, streamed: str, writer: str, console: Console) -> dict[str, Any]:
    answer = await api.call("Reading the story", "GET", f"/v1/stories/{story_id}")
    story: dict[str, Any] = answer["story"]
    if not story["text"]:
        raise DemoFailed("The stored story has no text.")
    if story["writer"] != writer:
        raise DemoFailed(f"The story was written by {story['writer']}, not by {writer}.")
    if story["text"] != streamed:
        raise DemoFailed(
            f"The streamed text ({len(streamed)} characters) differs from the stored one ({len(story['text'])} characters)."
        )
    console.print(
        f"[bold]{story['title']}[/] was written by {story['writer']} ({story['model'] or 'no model'}); "
        f"the stream and the stored text are equal, {len(streamed.split())} words",
        highlight=False,
    )
    return story


async def _find_announcement(mail: Path, address: str, trace_id: str, console: Console) -> None:
    def carries_the_trace(message: EmailMessage) -> bool:
        return trace_id in str(message.get("X-Trace-Id", ""))

    message = await _mail(mail, address, carries_the_trace, f"No mail with X-Trace-Id {trace_id}")
    console.print(
        f"the mail [bold]{message['subject']}[/] to {message['to']} announces it, trace id {message['X-Trace-Id']}",
        highlight=False,
    )


async def _list_stories(api: Api, story: dict[str, Any], console: Console) -> None:
    answer = await api.call("Listing the stories", "GET", "/v1/stories")
    ids = [each["id"] for each in answer["stories"]]
    if story["id"] not in ids:
        raise DemoFailed(f"The list of stories lacks {story['id']}.")
    for each in answer["stories"]:
        console.print(f"  {each['create_time']}  {each['state']}  {each['title']}", highlight=False)


async def _mail(folder: Path, address: str, wanted: Callable[[EmailMessage], bool], missing: str) -> EmailMessage:
    """The newest wanted mail to an address. Raises DemoFailed, with a message that begins with `missing`, if none comes in time."""
    deadline = time.monotonic() + MAIL_SECONDS
    while True:
        seen = [message for path in _newest_first(folder) if address in str((message := _read(path))["to"])]
        for message in seen:
            if wanted(message):
                return message
        if time.monotonic() > deadline:
            subjects = (
                ", ".join(f"{each['subject']!r} (trace {each['X-Trace-Id']})" for each in seen) or "no mail at all"
            )
            raise DemoFailed(f"{missing} came to {address} in {folder} within {MAIL_SECONDS:g} s; there is {subjects}.")
        await asyncio.sleep(POLL_SECONDS)


def _newest_first(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.eml"), reverse=True)


def _read(path: Path) -> EmailMessage:
    return email.message_from_bytes(path.read_bytes(), EmailMessage, policy=default)


def _code(message: EmailMessage) -> str | None:
    body = message.get_body(("plain",))
    found = re.search(r"\b\d{6}\b", body.get_content()) if body else None
    return found[0] if found else None


def _reason(error: httpx2.HTTPError) -> str:
    return str(error) or type(error).__name__


def main(arguments: Sequence[str] | None = None) -> int:
    """Start the mesh if it is not running, run the demonstration, and return the exit code."""
    parser = argparse.ArgumentParser(prog="python -m local.terminal.demo", description=__doc__)
    parser.add_argument("--writer", help="who writes the story: local, openai or composer (STORYMESH_WRITER)")
    parser.add_argument(
        "--state-dir", type=Path, metavar="DIR", help="the mesh's directory (STORYMESH_STATE_DIR, .local)"
    )
    options = parser.parse_args(arguments)
    console = Console(soft_wrap=True)
    try:
        layout = Layout(settings.load(state_dir=options.state_dir, writer=options.writer))
        running = status.layout_of(lifecycle.up(layout, ()))
        console.print(f"\nthe mesh answers on {running.edge_url}", highlight=False)
        asyncio.run(demonstrate(running, console))
    except LocalError as failure:
        print(failure, file=sys.stderr)
        return failure.exit_code
    except (KeyError, TypeError) as error:
        print(f"An answer lacks {error}, which the contract promises.", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    console.print("\nAll of it happened.", style="green")
    return 0


if __name__ == "__main__":
    sys.exit(main())
