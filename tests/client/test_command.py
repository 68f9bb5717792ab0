"""The `storymesh` command, run in a process of its own against a small edge, and its output."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import signal
import sys
from asyncio.subprocess import PIPE, Process
from dataclasses import dataclass
from pathlib import Path

import pytest
from grpc import StatusCode
from storymesh.auth.v1.session_pb2 import Session
from storymesh.story.v1 import story_pb2
from storymesh.story.v1.story_service_pb2 import WatchStoryResponse

from storymesh_client.file_commands import Bar
from tests.client.edge import CODE, KID, LOGIN, PASSWORD, Edge
from tests.client.test_client import text_of
from tests.waiting import until

pytestmark = pytest.mark.slow

Said = WatchStoryResponse


@dataclass
class Outcome:
    code: int
    out: str
    err: str


@dataclass
class Terminal:
    """Runs commands with the test's token file and edge."""

    target: str
    file: Path
    command: tuple[str, ...] = (sys.executable, "-m", "storymesh_client")

    async def start(self, *arguments: str, stdin: int = PIPE) -> Process:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("STORYMESH_")}
        environment = clean | {"STORYMESH_EDGE": self.target, "STORYMESH_TOKENS": str(self.file)}
        return await asyncio.create_subprocess_exec(
            *self.command,
            *arguments,
            stdin=stdin,
            stdout=PIPE,
            stderr=PIPE,
            env=environment,
            start_new_session=True,
        )

    async def __call__(self, *arguments: str, stdin: str = "") -> Outcome:
        process = await self.start(*arguments)
        out, err = await asyncio.wait_for(process.communicate(stdin.encode()), 60)
        assert process.returncode is not None
        assert "Traceback" not in err.decode()
        return Outcome(process.returncode, out.decode(), err.decode())


@pytest.fixture
def storymesh(target: str, file: Path) -> Terminal:
    return Terminal(target, file)


@pytest.fixture
async def signed_in(storymesh: Terminal) -> Terminal:
    outcome = await storymesh("sign-in", LOGIN, "--password-stdin", "--device-name", "desk", stdin=f"{PASSWORD}\n")
    assert (outcome.code, outcome.out) == (0, f"Signed in as {LOGIN}.\n"), outcome.err
    return storymesh


async def test_signing_in_lasts_until_signing_out(signed_in: Terminal, edge: Edge, file: Path) -> None:
    shown = await signed_in("whoami")
    assert shown.code == 0
    assert LOGIN in shown.out
    assert json.loads((await signed_in("whoami", "--json")).out)["email"] == LOGIN

    assert (await signed_in("sign-out")).out == "Signed out.\n"
    assert not edge.live
    shown = await signed_in("whoami")
    assert (shown.code, shown.err) == (3, "Nobody is signed in. Sign in first: storymesh sign-in\n")
    assert (await signed_in("sign-out")).out == "Nobody was signed in.\n"
    assert "access-1" not in text_of(file)


async def test_the_password_is_asked_for_without_being_shown(storymesh: Terminal, edge: Edge) -> None:
    ours, theirs = pty.openpty()
    try:
        # The process has no controlling terminal, so getpass uses standard input, which is a terminal here.
        process = await storymesh.start("sign-in", LOGIN, stdin=theirs)
        assert process.stderr
        await process.stderr.readuntil(b"Password: ")
        os.write(ours, f"{PASSWORD}\n".encode())
        out, _ = await asyncio.wait_for(process.communicate(), 60)
    finally:
        os.close(theirs)
        os.close(ours)
    assert (process.returncode, out.decode()) == (0, f"Signed in as {LOGIN}.\n")


@pytest.mark.parametrize(
    ("password", "said"),
    [
        ("a guess", "Refused: invalid_credentials.\n"),
        ("too often", "Refused: too_many_sign_ins. Try again in 7 s.\n"),
        ("", "No password was given.\n"),
    ],
)
async def test_a_sign_in_that_fails_says_why_in_a_sentence(storymesh: Terminal, password: str, said: str) -> None:
    outcome = await storymesh("sign-in", LOGIN, "--password-stdin", stdin=f"{password}\n")
    assert (outcome.code, outcome.out, outcome.err) == (1, "", said)


async def test_an_account_without_a_password_signs_in_with_a_mailed_code(storymesh: Terminal, edge: Edge) -> None:
    outcome = await storymesh("sign-in", LOGIN, "--code", "--device-name", "desk", stdin=f"{CODE}\n")
    assert (outcome.code, outcome.out) == (0, f"Signed in as {LOGIN}.\n"), outcome.err
    assert outcome.err.endswith("Code: ")
    assert LOGIN in (await storymesh("whoami")).out
    await storymesh("sign-out")
    await storymesh("sign-in", LOGIN, "--code", stdin=f"{CODE}\n")
    assert edge.device_tokens == ["", "", "known-device", "known-device"]


@pytest.mark.parametrize(("code", "said"), [("00000000", "Refused: code_invalid.\n"), ("", "No code was given.\n")])
async def test_a_code_that_fails_says_why_in_a_sentence(storymesh: Terminal, code: str, said: str) -> None:
    outcome = await storymesh("sign-in", LOGIN, "--code", stdin=f"{code}\n")
    assert (outcome.code, outcome.out) == (1, "")
    assert outcome.err.endswith(f"Code: {said}")


async def test_sessions_are_listed_and_ended(signed_in: Terminal, edge: Edge) -> None:
    edge.sessions = [Session(id="one", device_name="desk", ip="192.0.2.1", current=True), Session(id="two")]
    shown = await signed_in("sessions", "list")
    assert [line.split()[0] for line in shown.out.splitlines()] == ["id", "one", "two"]
    assert "this one" in shown.out
    listed = json.loads((await signed_in("sessions", "list", "--json")).out)["sessions"]
    assert [each["id"] for each in listed] == ["one", "two"]

    assert (await signed_in("sessions", "revoke", "two")).out == "Signed out there.\n"
    assert (await signed_in("sessions", "revoke", "three")).err == "Refused: session_not_found.\n"
    assert (await signed_in("sessions", "revoke-others")).out == "Signed out on 2 other devices.\n"


async def test_keys_are_operated_by_administrators(signed_in: Terminal, edge: Edge) -> None:
    assert (await signed_in("auth", "rotate-keys")).out == f"{KID} signs from 2030-01-02 03:04:05 UTC on.\n"
    assert (await signed_in("auth", "drop-key", KID)).out == f"{KID} is withdrawn; not {KID} signs now.\n"
    edge.administrator = False
    outcome = await signed_in("auth", "drop-key", KID)
    assert (outcome.code, outcome.err) == (1, "This account may not do that.\n")


async def test_an_unavailable_mesh_and_a_wrong_command_have_different_exit_codes(file: Path) -> None:
    away = Terminal("127.0.0.1:1", file)
    outcome = await away("sign-in", LOGIN, "--password-stdin", stdin=f"{PASSWORD}\n")
    assert (outcome.code, outcome.err) == (
        4,
        "Nothing answers at 127.0.0.1:1. Is the mesh up, and is --edge right?\n",
    )
    assert (await away("sessions")).code == 2
    assert "exit codes" in (await away("--help")).out


async def test_a_title_cannot_steer_the_terminal(signed_in: Terminal) -> None:
    shown = await signed_in("stories", "list")
    assert "The [31mRed[0m Door" in shown.out
    assert "\x1b" not in shown.out


async def test_a_story_is_read_on_after_an_interruption_without_repeating_a_word(
    signed_in: Terminal, edge: Edge
) -> None:
    edge.story = [
        Said(snapshot=Said.Snapshot()),
        Said(chunk=Said.Chunk(text="Once upon"), resume_token="after upon"),
        StatusCode.UNAVAILABLE,
        Said(snapshot=Said.Snapshot(text="Once upon")),
        Said(chunk=Said.Chunk(text=" a time")),
        Said(reconnect=Said.Reconnect()),
        Said(snapshot=Said.Snapshot(text="Once upon a time.")),
        Said(done=Said.Done(story=story_pb2.Story(id="s1", state=story_pb2.STORY_STATE_COMPLETED))),
    ]
    shown = await signed_in("stories", "ask", "--theme", "a door", "--length", "short")
    assert (shown.code, shown.out) == (0, "Once upon a time.\n"), shown.err
    assert edge.resumed == ["", "after upon", "after upon"]


async def test_a_story_that_starts_over_begins_below_a_line_and_one_that_failed_says_so(
    signed_in: Terminal, edge: Edge
) -> None:
    failed = story_pb2.Story(id="s1", state=story_pb2.STORY_STATE_FAILED, failure_reason="WRITER_UNAVAILABLE")
    edge.story = [
        Said(snapshot=Said.Snapshot(text="Once")),
        Said(reset=Said.Reset(attempt=2)),
        Said(chunk=Said.Chunk(text="Twice")),
        Said(done=Said.Done(story=failed)),
    ]
    shown = await signed_in("stories", "watch", "s1")
    assert shown.out == "Once\n\n---\n\nTwice\n"
    assert (shown.code, shown.err) == (1, "The story was given up: WRITER_UNAVAILABLE.\n")


async def test_an_interrupted_refresh_keeps_the_session(signed_in: Terminal, edge: Edge, file: Path) -> None:
    edge.revoked_access.add("access-1")
    edge.refreshing.clear()
    process = await signed_in.start("whoami")
    await until(lambda: edge.refreshes)
    process.send_signal(signal.SIGINT)
    edge.refreshing.set()
    _, err = await asyncio.wait_for(process.communicate(), 60)
    assert (process.returncode, err.decode().strip()) == (130, "")
    assert "refresh-2" in text_of(file)


async def test_no_token_is_ever_printed(signed_in: Terminal, edge: Edge) -> None:
    edge.sessions = [Session(id="one")]
    said = [await signed_in(*command) for command in (("whoami", "--json"), ("sessions", "list", "--json"))]
    assert not any(
        secret in each.out + each.err for each in said for secret in ("access-1", "refresh-1", "known-device")
    )


def test_a_bar_is_shown_at_a_terminal_alone_and_leaves_nothing_there(monkeypatch: pytest.MonkeyPatch) -> None:
    controller, terminal = pty.openpty()
    with os.fdopen(terminal, "w") as out, os.fdopen(controller, "rb", buffering=0) as seen:
        monkeypatch.setattr(sys, "stdout", out)
        with Bar(out) as bar:
            bar.show(0, 200)
            bar.show(200, 200)
        shown = ""
        # It comes as the terminal passes it on.
        while "100%" not in shown or not shown.endswith("\r\x1b[K"):
            shown += seen.read(1000).decode()
        monkeypatch.setattr(sys, "stdout", io.StringIO())
        quiet = io.StringIO()
        with Bar(quiet) as bar:
            bar.show(200, 200)
        assert quiet.getvalue() == ""
