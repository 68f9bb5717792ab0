"""The `storymesh` command against the whole mesh: native gRPC through Envoy."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from local.harness import RunningMesh
from storymesh_client import FileTokens, Storymesh
from tests.client.installed import Installed
from tests.client.test_command import Terminal
from tests.system.conftest import PASSWORD, Person


async def test_a_person_signs_in_reads_a_story_and_ends_sessions_with_the_client_that_people_install(
    mesh: RunningMesh, installed_client: Installed, person: Person, tmp_path: Path
) -> None:
    command = (str(installed_client.command),)
    desk = Terminal(mesh.edge_address, tmp_path / "desk.json", command)
    phone = Terminal(mesh.edge_address, tmp_path / "phone.json", command)
    for terminal, name in ((desk, "desk"), (phone, "phone")):
        arguments = ("sign-in", person.email, "--password-stdin", "--device-name", name)
        outcome = await terminal(*arguments, stdin=f"{PASSWORD}\n")
        assert (outcome.code, outcome.out) == (0, f"Signed in as {person.email}.\n"), outcome.err
    assert person.email in (await desk("whoami")).out

    read = await desk("stories", "ask", "--theme", "a lighthouse", "--length", "short")
    assert read.code == 0, read.err
    (story,) = json.loads((await desk("stories", "list", "--json")).out)["stories"]
    assert read.out == story["text"] + "\n"

    listed = json.loads((await desk("sessions", "list", "--json")).out)["sessions"]
    assert {each["device_name"]: each["current"] for each in listed if each["device_name"] in ("desk", "phone")} == {
        "desk": True,
        "phone": False,
    }
    (other,) = [each["id"] for each in listed if each["device_name"] == "phone"]
    assert (await desk("sessions", "revoke", other)).out == "Signed out there.\n"
    outcome = await phone("whoami")
    assert (outcome.code, outcome.err) == (3, "The session was ended. Sign in again: storymesh sign-in\n")
    assert (await desk("auth", "rotate-keys")).err == "This account may not do that.\n"
    assert (await desk("sign-out")).out == "Signed out.\n"


async def test_a_wrong_password_at_the_terminal_is_a_sentence(mesh: RunningMesh, tmp_path: Path) -> None:
    terminal = Terminal(mesh.edge_address, tmp_path / "tokens.json")
    outcome = await terminal("sign-in", "nobody@example.com", "--password-stdin", stdin="a guess\n")
    assert (outcome.code, outcome.err) == (1, "The login or the password is wrong.\n")


async def test_an_access_token_that_the_edge_refuses_is_renewed_without_the_person_noticing(
    mesh: RunningMesh, person: Person, tmp_path: Path
) -> None:
    store = FileTokens(tmp_path / "tokens.json")
    async with Storymesh(mesh.edge_address, tokens=store) as client:
        await client.sign_in(person.email, PASSWORD)
    tokens = store.load(mesh.edge_address).tokens
    assert tokens
    # A forged token whose expiry is far away.
    forged = replace(
        tokens, access_token=tokens.access_token[:-8] + "AAAAAAAA", access_expires_at=datetime.max.replace(tzinfo=UTC)
    )
    store.change(mesh.edge_address, lambda kept: replace(kept, tokens=forged))
    terminal = Terminal(mesh.edge_address, store.path)
    shown = await asyncio.gather(terminal("whoami"), terminal("whoami"))
    assert [each.code for each in shown] == [0, 0], shown


async def test_a_person_uploads_lists_downloads_and_deletes_files_with_the_client_that_people_install(
    mesh: RunningMesh, installed_client: Installed, person: Person, tmp_path: Path
) -> None:
    command = (str(installed_client.command),)
    desk = Terminal(mesh.edge_address, tmp_path / "desk.json", command)
    await desk("sign-in", person.email, "--password-stdin", stdin=f"{PASSWORD}\n")
    book = tmp_path / "book.pdf"
    data = b"%PDF-1.7\n" + bytes(range(256)) * 80_000
    book.write_bytes(data)

    put = await desk("files", "put", str(book))
    assert (put.code, put.err) == (0, "")
    file_id, state = put.out.split()
    assert state == "ready"
    (listed,) = json.loads((await desk("files", "list", "--json")).out)["files"]
    assert (listed["id"], listed["name"], listed["size"]) == (file_id, "book.pdf", str(len(data)))
    assert "20,480,009" in (await desk("files", "list")).out

    folder = tmp_path / "here"
    folder.mkdir()
    got = await desk("files", "get", file_id, str(folder))
    assert (got.code, got.out, got.err) == (0, f"{folder / 'book.pdf'}\n", "")
    assert (folder / "book.pdf").read_bytes() == data
    twice = await desk("files", "get", file_id, str(folder))
    assert twice.code == 1
    assert twice.err == f"{folder / 'book.pdf'} exists; replace it with --force, or name another path.\n"
    assert (await desk("files", "get", file_id, str(folder), "--force")).code == 0
    assert [path.name for path in folder.iterdir()] == ["book.pdf"]

    assert (await desk("files", "rm", file_id)).out == f"Deleted {file_id}.\n"
    gone = await desk("files", "get", file_id, str(folder), "--force")
    assert (gone.code, gone.out) == (1, "")
    absent = await desk("files", "put", str(tmp_path / "absent.pdf"))
    assert (absent.code, absent.err) == (1, f"{tmp_path / 'absent.pdf'} cannot be read: No such file or directory.\n")
    script = tmp_path / "page.pdf"
    script.write_bytes(b"<script>alert(1)</script>")
    rejected = await desk("files", "put", str(script))
    assert (rejected.code, rejected.err) == (1, "The file was not taken: MEDIA_TYPE_MISMATCH.\n")
    stranger = Terminal(mesh.edge_address, tmp_path / "nobody.json", command)
    assert (await stranger("files", "put", str(book))).code == 3
