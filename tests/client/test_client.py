"""The client's session: it survives lost answers, and no call is made twice by accident."""

from __future__ import annotations

import asyncio
import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from grpc import StatusCode
from storymesh.auth.v1.account_service_pb2 import ChangePasswordRequest, GetAccountRequest, UpdateAccountRequest
from storymesh.methods import METHODS
from storymesh.story.v1.story_service_pb2 import WatchStoryRequest, WatchStoryResponse

from storymesh_client import FileTokens, Storymesh, StorymeshError, TokenFileError, Tokens
from storymesh_client.channels import service_config, stays_here
from storymesh_client.tokens import Kept
from tests.client.edge import LOGIN, PASSWORD, Edge
from tests.waiting import until


def text_of(file: Path) -> str:
    return file.read_text()


def mode_of(file: Path) -> int:
    return stat.S_IMODE(file.stat().st_mode)


def write(file: Path, text: str, *, mode: int) -> None:
    file.parent.mkdir(exist_ok=True)
    file.write_text(text)
    file.chmod(mode)


async def account(mesh: Storymesh) -> str:
    return (await mesh.accounts.GetAccount(GetAccountRequest())).user.email


async def test_calls_carry_the_access_token_and_have_a_deadline(mesh: Storymesh, edge: Edge) -> None:
    assert await account(mesh) == LOGIN
    assert edge.authorizations == ["Bearer access-1"]
    assert 10 < edge.deadlines[0] < 30


async def test_a_token_that_ends_soon_is_renewed_before_the_call(target: str, edge: Edge) -> None:
    edge.access_seconds = 20
    async with Storymesh(target) as mesh:
        await mesh.sign_in(LOGIN, PASSWORD)
        edge.access_seconds = 600
        await account(mesh)
        await account(mesh)
    assert edge.refreshes == ["refresh-1"]
    assert edge.authorizations == ["Bearer access-2", "Bearer access-2"]


async def test_a_clock_that_is_ahead_does_not_renew_for_every_call(target: str, edge: Edge) -> None:
    async with Storymesh(target, clock=lambda: datetime.now(UTC) + timedelta(hours=1)) as mesh:
        await mesh.sign_in(LOGIN, PASSWORD)
        for _ in range(3):
            await account(mesh)
    assert edge.refreshes == ["refresh-1"]


async def test_a_refused_token_is_renewed_once_for_all_calls_that_were_under_way(mesh: Storymesh, edge: Edge) -> None:
    edge.revoked_access.add("access-1")
    edge.refreshing.clear()
    asked = [asyncio.create_task(account(mesh)) for _ in range(20)]
    await until(lambda: edge.authorizations.count("Bearer access-1") == 20 and edge.refreshes)
    edge.refreshing.set()
    assert await asyncio.gather(*asked) == [LOGIN] * 20
    assert edge.refreshes == ["refresh-1"]


async def test_a_call_that_is_refused_twice_is_not_made_a_third_time(mesh: Storymesh, edge: Edge) -> None:
    edge.revoked_access |= {"access-1", "access-2"}
    with pytest.raises(StorymeshError) as raised:
        await account(mesh)
    assert raised.value.reason == "UNAUTHENTICATED"
    assert edge.calls.count("GetAccount") == 2


async def test_a_lost_refresh_response_costs_nothing(mesh: Storymesh, edge: Edge, file: Path, target: str) -> None:
    edge.revoked_access.add("access-1")
    edge.lost_refreshes = 2
    assert await account(mesh) == LOGIN
    assert edge.refreshes == ["refresh-1"] * 3
    kept = FileTokens(file).load(target).tokens
    assert kept
    assert kept.refresh_token == "refresh-2"


async def test_a_cancelled_caller_does_not_lose_the_renewed_token(
    mesh: Storymesh, edge: Edge, file: Path, target: str
) -> None:
    edge.revoked_access.add("access-1")
    edge.refreshing.clear()
    asked = asyncio.create_task(account(mesh))
    await until(lambda: edge.refreshes)
    asked.cancel()
    await asyncio.wait([asked])
    edge.refreshing.set()
    await mesh.close()
    kept = FileTokens(file).load(target).tokens
    assert kept
    assert kept.refresh_token == "refresh-2"


async def test_another_program_that_renewed_the_token_first_is_followed(
    mesh: Storymesh, edge: Edge, file: Path, target: str
) -> None:
    async with Storymesh(target, tokens=FileTokens(file)) as other:
        edge.revoked_access.add("access-1")
        assert await account(other) == LOGIN
        assert await account(mesh) == LOGIN
    assert edge.refreshes == ["refresh-1"]


async def test_a_session_that_ended_is_forgotten_and_the_device_is_not(mesh: Storymesh, edge: Edge, file: Path) -> None:
    edge.live = False
    with pytest.raises(StorymeshError) as raised:
        await account(mesh)
    assert raised.value.reason == "SESSION_REVOKED"
    assert not mesh.signed_in
    assert "refresh-1" not in text_of(file)

    with pytest.raises(StorymeshError) as raised:
        await account(mesh)
    assert (raised.value.code(), raised.value.reason) == (StatusCode.UNAUTHENTICATED, "NOT_SIGNED_IN")
    assert edge.calls.count("GetAccount") == 1

    await mesh.sign_in(LOGIN, PASSWORD)
    assert edge.device_tokens == ["", "known-device"]


async def test_a_wrong_password_is_not_sent_twice(mesh: Storymesh, edge: Edge) -> None:
    with pytest.raises(StorymeshError) as raised:
        await mesh.accounts.ChangePassword(ChangePasswordRequest(current_password="guess", new_password=PASSWORD))
    assert raised.value.reason == "INVALID_CREDENTIALS"
    assert (edge.calls.count("ChangePassword"), edge.refreshes) == (1, [])


async def test_only_methods_without_side_effects_are_repeated_when_the_mesh_is_unavailable(
    mesh: Storymesh, edge: Edge
) -> None:
    edge.faults = [StatusCode.UNAVAILABLE, StatusCode.UNAVAILABLE]
    assert await account(mesh) == LOGIN
    assert edge.calls.count("GetAccount") == 3

    edge.faults = [StatusCode.UNAVAILABLE]
    with pytest.raises(StorymeshError) as raised:
        await mesh.accounts.UpdateAccount(UpdateAccountRequest())
    assert (raised.value.code(), raised.value.reason) == (StatusCode.UNAVAILABLE, "")
    assert edge.calls.count("UpdateAccount") == 1


def test_the_contract_says_what_is_repeated() -> None:
    config: Any = service_config(METHODS)
    names = {each["method"] for each in config["methodConfig"][0]["name"]}
    assert {"GetAccount", "ListSessions", "GetJwks", "ListStories"} <= names
    assert not {"CreateSession", "RefreshSession", "Logout", "CreateStory", "UpdateAccount"} & names


async def test_an_error_tells_its_reason_its_fields_and_when_to_come_back(mesh: Storymesh) -> None:
    with pytest.raises(StorymeshError) as raised:
        await mesh.accounts.UpdateAccount(UpdateAccountRequest())
    error = raised.value
    assert (error.code(), error.reason) == (StatusCode.INVALID_ARGUMENT, "INVALID_ARGUMENT")
    assert [(each.field, each.description) for each in error.violations] == [("username", "is not good")]
    assert str(error) == "INVALID_ARGUMENT: refused: invalid_argument"

    with pytest.raises(StorymeshError) as raised:
        await mesh.sign_in(LOGIN, "too often")
    assert (raised.value.reason, raised.value.retry_after) == ("TOO_MANY_SIGN_INS", timedelta(seconds=7))


async def test_a_stream_is_opened_again_with_a_renewed_token_and_its_errors_are_the_same_kind(
    mesh: Storymesh, edge: Edge
) -> None:
    edge.revoked_access.add("access-1")
    chunk = WatchStoryResponse(chunk=WatchStoryResponse.Chunk(text="Once"))
    edge.story = [chunk, StatusCode.DATA_LOSS]
    told = aiter(mesh.stories.WatchStory(WatchStoryRequest(story_id="s1")))
    assert (await anext(told)).chunk.text == "Once"
    with pytest.raises(StorymeshError) as raised:
        await anext(told)
    assert raised.value.code() is StatusCode.DATA_LOSS
    assert edge.authorizations == ["Bearer access-1", "Bearer access-2"]


async def test_leaving_a_stream_ends_its_call(mesh: Storymesh, edge: Edge) -> None:
    edge.story = [WatchStoryResponse(heartbeat=WatchStoryResponse.Heartbeat()) for _ in range(3)]
    call = mesh.stories.WatchStory(WatchStoryRequest(story_id="s1"))
    async for _ in call:
        break
    call.cancel()
    assert await call.code() is StatusCode.CANCELLED


async def test_signing_out_forgets_the_tokens_only_when_the_session_has_ended(
    mesh: Storymesh, edge: Edge, file: Path
) -> None:
    edge.faults = [StatusCode.UNAVAILABLE]
    with pytest.raises(StorymeshError):
        await mesh.sign_out()
    assert mesh.signed_in
    await mesh.sign_out()
    assert not edge.live
    assert "access-1" not in text_of(file)
    await mesh.sign_out()


async def test_the_token_file_is_the_owners_alone_and_keeps_edges_apart(
    mesh: Storymesh, file: Path, target: str
) -> None:
    assert mode_of(file) == 0o600
    assert list(json.loads(text_of(file))["edges"]) == [target]
    async with Storymesh("127.0.0.1:1", tokens=FileTokens(file)) as elsewhere:
        assert not elsewhere.signed_in
    assert [path.name for path in file.parent.iterdir() if not path.name.endswith(".lock")] == [file.name]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"edges": []}', '{"edges": {"TARGET": {"tokens": {"access_token": 1}}}}']
)
async def test_a_file_of_something_else_is_said_to_be_so(file: Path, target: str, content: str) -> None:
    write(file, content.replace("TARGET", target), mode=0o600)
    with pytest.raises(TokenFileError, match="delete it and sign in again"):
        Storymesh(target, tokens=FileTokens(file))


async def test_a_file_that_others_can_read_is_not_used(mesh: Storymesh, file: Path, target: str) -> None:
    write(file, text_of(file), mode=0o644)
    with pytest.raises(TokenFileError, match="can be read by others"):
        FileTokens(file).load(target)


def test_tokens_do_not_show_in_what_is_printed(file: Path, target: str) -> None:
    now = datetime.now(UTC)
    kept = Kept().signed_in(LOGIN, Tokens("access-secret", now, "refresh-secret", now), "device-secret")
    assert "secret" not in repr(kept)


@pytest.mark.parametrize(
    ("target", "here"),
    [
        ("127.0.0.1:8080", True),
        ("localhost:8080", True),
        ("[::1]:8080", True),
        ("dns:///localhost:8080", True),
        ("unix:/run/edge.sock", True),
        ("10.0.0.7:8080", False),
        ("edge.example.com:443", False),
        ("localhost.example.com:443", False),
    ],
)
def test_only_what_stays_on_this_machine_goes_unencrypted(target: str, here: bool) -> None:
    assert stays_here(target) is here
