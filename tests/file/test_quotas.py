"""Quotas of a person, and what declarations may say."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from grpc import StatusCode
from grpc.aio import AioRpcError
from storymesh.file.v1 import file_pb2

from kit.events import erasure
from services.file.model import State
from services.file.model.quotas import DAY, Limits, wait_for_day
from tests.file.conftest import MIB, PDF, FileWorld, Person
from tests.statuses import detail, raises_status, violated_fields

NOW = datetime(2026, 1, 1, tzinfo=UTC)


async def refusal(person: Person, **changes: Any) -> tuple[str, bool]:
    """The quota that a file exceeds, and whether the refusal says when to come back."""
    with pytest.raises(AioRpcError) as raised:
        await person.create(**changes)
    assert raised.value.code() is StatusCode.RESOURCE_EXHAUSTED
    info = detail(raised.value, ErrorInfo)
    assert info
    assert info.reason == "FILE_QUOTA_EXCEEDED"
    return info.metadata["quota"], detail(raised.value, RetryInfo) is not None


class TestOfFiles:
    @pytest.fixture
    def changes(self) -> dict[str, Any]:
        return {"files_most": 5, "files_a_day": 9}

    async def test_not_one_file_too_many_is_created_by_64_calls_at_once(self, world: FileWorld) -> None:
        person = world.person()
        made = await asyncio.gather(*(person.create() for _ in range(64)), return_exceptions=True)
        files = [each.file.id for each in made if not isinstance(each, BaseException)]
        assert len(files) == 5
        assert all(each.code() is StatusCode.RESOURCE_EXHAUSTED for each in made if isinstance(each, AioRpcError))
        # Somebody else's quota is their own.
        assert (await world.person().create()).file.id

        # Deletion, rejection and expiry give a place back, each once.
        assert await refusal(person) == ("files", False)
        await person.delete(files[0])
        await world.becomes(files[1], State.REJECTED)
        await person.abort(files[2])
        await person.abort(files[2])
        assert len([await person.create() for _ in range(3)]) == 3
        assert await refusal(person) == ("files", False)

        # Those of a day do not come back by deletion, but with the day's end.
        await person.delete(files[3])
        await person.create()
        await person.delete(files[4])
        assert await refusal(person) == ("files_a_day", True)
        world.passed = timedelta(days=1, seconds=1)
        assert (await person.create()).file.id

    async def test_a_repeated_request_takes_no_second_place(self, world: FileWorld) -> None:
        person = world.person()
        await asyncio.gather(*(person.create(request_id="one") for _ in range(6)))
        assert len([await person.create() for _ in range(4)]) == 4
        # Also when the quota is used up.
        assert (await person.create(request_id="one")).HasField("upload")
        assert await refusal(person) == ("files", False)


class TestOfBytes:
    @pytest.fixture
    def changes(self) -> dict[str, Any]:
        return {"files_bytes": 10 * MIB, "files_bytes_a_day": 15 * MIB}

    async def test_bytes_are_reserved_when_they_are_declared(self, world: FileWorld) -> None:
        person = world.person()
        made = await asyncio.gather(*(person.create(size=4 * MIB) for _ in range(16)), return_exceptions=True)
        files = [each.file.id for each in made if not isinstance(each, BaseException)]
        assert len(files) == 2
        await person.create(size=2 * MIB)
        assert await refusal(person, size=1) == ("bytes", False)
        await person.delete(files[0])
        assert await refusal(person, size=4 * MIB + 1) == ("bytes", False)
        await person.create(size=4 * MIB)
        await person.delete(files[1])
        assert await refusal(person, size=2 * MIB) == ("bytes_a_day", True)
        assert await refusal(person, size=5 * 1024 * MIB) == ("bytes", False)


def test_the_wait_for_a_quota_of_a_day_is_as_long_as_it_takes_until_the_file_fits() -> None:
    limits = Limits(stored_bytes=1000, files=1000, bytes_a_day=100, files_a_day=3)
    day = [(NOW - timedelta(hours=hours), 30) for hours in (20, 10, 5)]
    assert wait_for_day(day, 10, limits, NOW) == timedelta(hours=4)
    assert wait_for_day(day, 50, limits, NOW) == timedelta(hours=14)
    assert wait_for_day(day, 100, limits, NOW) == DAY - timedelta(hours=5)
    assert wait_for_day(day, 101, limits, NOW) is None


async def test_an_erased_person_creates_nothing(world: FileWorld) -> None:
    person = world.person()
    async with world.db.transaction() as tx:
        await erasure.erase(tx, person.id)
    with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
        await person.create()


BAD: dict[str, tuple[dict[str, Any], str, str]] = {
    "no bytes": ({"size": 0}, "size", ""),
    "a negative size": ({"size": -1}, "size", ""),
    "more than 5 GiB": ({"size": 5 * 1024 * MIB + 1}, "size", ""),
    "5 GiB of a picture": (
        {"purpose": file_pb2.FILE_PURPOSE_AVATAR, "media_type": "image/png", "size": 5 * 1024 * MIB},
        "size",
        "FILE_TOO_LARGE",
    ),
    "a script": ({"media_type": "text/html"}, "media_type", "MEDIA_TYPE_NOT_ALLOWED"),
    "a drawing that runs": ({"media_type": "image/svg+xml"}, "media_type", "MEDIA_TYPE_NOT_ALLOWED"),
    "a document for a picture": ({"purpose": file_pb2.FILE_PURPOSE_AVATAR}, "media_type", "MEDIA_TYPE_NOT_ALLOWED"),
    "a header in the type": ({"media_type": "image/png\r\nx-evil: 1"}, "media_type", ""),
    "parameters of the type": ({"media_type": "text/plain; charset=utf-7"}, "media_type", ""),
    "no purpose": ({"purpose": 0}, "purpose", ""),
    "an unknown purpose": ({"purpose": 99}, "purpose", ""),
    "a short checksum": ({"sha256": "abc"}, "sha256", ""),
    "a checksum in capitals": ({"sha256": "A" * 64}, "sha256", ""),
    "no name": ({"name": ""}, "name", ""),
    "a blank name": ({"name": " \u3164 "}, "name", "FILE_NAME_INVALID"),
    "a path": ({"name": "../../etc/passwd"}, "name", ""),
    "a path of Windows": ({"name": "..\\boot.ini"}, "name", ""),
    "dots": ({"name": ".."}, "name", "FILE_NAME_INVALID"),
    "NUL": ({"name": "page\0.pdf"}, "name", ""),
    "a line break": ({"name": "page\n.pdf"}, "name", ""),
    "an override of the direction": ({"name": "invoice\u202efdp.exe"}, "name", "FILE_NAME_INVALID"),
    "an isolate": ({"name": "invoice\u2067fdp.exe"}, "name", "FILE_NAME_INVALID"),
    "a character without width": ({"name": "pa\u200bge.pdf"}, "name", "FILE_NAME_INVALID"),
    "a long name": ({"name": "ä" * 128}, "name", ""),
    "a request id with blanks": ({"request_id": "a b"}, "request_id", ""),
}


@pytest.mark.parametrize("wrong", BAD)
async def test_a_declaration_is_refused_with_the_field_that_is_wrong(world: FileWorld, wrong: str) -> None:
    changes, field, reason = BAD[wrong]
    with pytest.raises(AioRpcError) as raised:
        await world.person().create(**changes)
    assert raised.value.code() is StatusCode.INVALID_ARGUMENT
    assert violated_fields(raised.value) == [field]
    if reason:
        request = detail(raised.value, BadRequest)
        assert request
        assert [violation.reason for violation in request.field_violations] == [reason]


@pytest.mark.parametrize(
    ("given", "kept"),
    [(" page.pdf ", "page.pdf"), ("Übergröße 😀.pdf", "Übergröße 😀.pdf"), ("u\u0308.pdf", "ü.pdf")],
)
async def test_names_in_any_script_are_kept(world: FileWorld, given: str, kept: str) -> None:
    assert (await world.person().create(PDF, name=given)).file.name == kept
