"""Complaints: a reader who marks a mail as spam gets no more of what may be suppressed, and nobody can complain for another."""

from __future__ import annotations

import asyncio
import json
import logging
import os
from pathlib import Path
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st
from storymesh.notification.v1 import delivery_pb2
from storymesh.notification.v1 import delivery_service_pb2 as pb

from kit.events.envelope import Event
from services.notification.model import returned as reports
from services.notification.model.complaints import Complaint
from services.notification.model.report_parts import NotABounce
from services.notification.model.return_paths import ReturnPaths
from tests.notification.conftest import MailWorld, code_issued, story_completed, user_deleted
from tests.notification.desk import Desk, shown
from tests.notification.keys import ADDRESS_KEY
from tests.notification.people import password_changed, welcome
from tests.notification.returned_mail import put, read_all, suppressed
from tests.notification.returned_mail import returned as bounce
from tests.notification.test_provider_bounces import call, signed, webhook
from tests.waiting import until

BOUNCES = "bounces@mail.example"


def arf(
    returned: str,
    *,
    kind: str = "abuse",
    fields: str = "",
    to: str = "fbl@mail.example",
    returned_type: str = "message/rfc822",
    feedback: str | None = None,
) -> bytes:
    """A complaint as RFC 5965 shows it."""
    if feedback is None:
        feedback = f"Feedback-Type: {kind}\r\nUser-Agent: SomeGenerator/1.0\r\nVersion: 1\r\n{fields}"
    parts = (
        "Content-Type: text/plain; charset=us-ascii\r\n\r\nThis is an email abuse report.\r\n",
        f"Content-Type: message/feedback-report\r\n\r\n{feedback}",
        f"Content-Type: {returned_type}\r\n\r\n{returned}Subject: x\r\n\r\nHello\r\n",
    )
    head = (
        f"From: <abusedesk@example.com>\r\nTo: {to}\r\nSubject: FW: x\r\nMIME-Version: 1.0\r\n"
        'Content-Type: multipart/report; report-type=feedback-report;\r\n\tboundary="part1_13d.2e68ed54"\r\n\r\n'
    )
    return (head + "".join(f"--part1_13d.2e68ed54\r\n{part}\r\n" for part in parts) + "--part1_13d.2e68ed54--").encode()


def left_in(folder: Path) -> list[Path]:
    """What was not dealt with, or was put aside."""
    return list(folder.rglob("*.eml"))


def about(of: Event) -> str:
    return f"Message-ID: <{of.id}@mail.example>\r\n"


def path_of(of: Event, key: bytes = ADDRESS_KEY) -> str:
    return ReturnPaths(BOUNCES, key).of(of.id)


async def test_after_a_complaint_only_mails_about_security_go_to_the_address(world: MailWorld, folder: Path) -> None:
    user = world.accounts.add("ada@example.com")
    story, code, warning, later = story_completed(user), code_issued(), password_changed(user), welcome(user)
    await world.handle(story)
    await read_all(world, folder, arf(about(story)))
    (row,) = await suppressed(world)
    assert (row["reason"], row["code"], row["source"], row["user_id"]) == ("COMPLAINT", "abuse", "REPORT", user)
    assert await world.steps(story) == ["QUEUED", "SENT", "ADDRESS_SUPPRESSED COMPLAINT abuse"]
    await world.handle(code, warning, later)
    records = await world.records()
    assert [(records[each.id]["state"], records[each.id]["reason"]) for each in (story, code, warning, later)] == [
        ("SENT", ""),
        ("SENT", ""),
        ("SENT", ""),
        ("SUPPRESSED", "SUPPRESSED_COMPLAINT"),
    ]
    assert await world.steps(later) == ["QUEUED", "SUPPRESSED SUPPRESSED_COMPLAINT abuse"]
    assert len(world.mailbox.mails()) == 3


async def test_administrators_see_a_complaint_as_such_and_lift_it(world: MailWorld, folder: Path, desk: Desk) -> None:
    user = world.accounts.add("ada@example.com")
    story, later, after = story_completed(user), welcome(user), story_completed(user)
    await world.handle(story)
    await read_all(world, folder, arf(about(story)))
    await world.handle(later)
    (listed,) = await desk.suppressions(user_id=str(user))
    assert (listed.reason, listed.code) == (delivery_pb2.SUPPRESSION_REASON_COMPLAINT, "abuse")
    explained = await desk.explain_event(later)
    assert ("EMAIL", "SUPPRESSED", "SUPPRESSED_COMPLAINT abuse") in shown(explained)
    assert ("EMAIL", "SENT", "") in shown(await desk.explain_event(story))
    request = pb.DeleteSuppressionRequest(suppression_id=listed.id)
    await desk.stub.DeleteSuppression(request, metadata=desk.auth)
    await world.handle(after)
    assert (await world.records())[after.id]["state"] == "SENT"


async def test_a_complaint_names_the_mail_by_its_id_or_by_the_envelope_address_that_we_gave_it(
    world: MailWorld,
    folder: Path,
) -> None:
    world.bounce_address = BOUNCES
    users = [world.accounts.add(f"{number}@example.com") for number in range(5)]
    stories = [story_completed(user) for user in users]
    await world.handle(*stories)
    redacted = "Original-Rcpt-To: redacted@example.com\r\n"
    await read_all(
        world,
        folder,
        arf(about(stories[0]), fields=redacted),
        arf(about(stories[1]), returned_type="text/rfc822-headers"),
        arf("", fields=f"Original-Mail-From: <{path_of(stories[2])}>\r\n{redacted}"),
        arf(f"Return-Path: <{path_of(stories[3])}>\r\n"),
        arf("", to=path_of(stories[4])),
    )
    assert {row["event_id"] for row in await suppressed(world)} == {story.id for story in stories}


async def test_a_complaint_that_names_no_mail_of_ours_suppresses_nobody(world: MailWorld, folder: Path) -> None:
    world.bounce_address = BOUNCES
    user = world.accounts.add("ada@example.com")
    story = story_completed(user)
    await world.handle(story)
    ours = "Original-Rcpt-To: <ada@example.com>\r\nRemoval-Recipient: ada@example.com\r\n"
    forged = path_of(story)[:-20] + "aaaaaaa@mail.example"
    await read_all(
        world,
        folder,
        arf("To: ada@example.com\r\n", fields=ours),
        arf(f"Message-ID: <{uuid4()}@mail.example>\r\n", fields=ours),
        arf(f"Message-ID: <{story.id}@elsewhere.example>\r\n", fields=ours),
        arf(about(story) + about(story), fields=ours),
        arf("", fields=f"{ours}Original-Mail-From: <{path_of(story, b'o' * 32)}>\r\n"),
        arf("", fields=f"{ours}Original-Mail-From: <{forged}>\r\n"),
        arf("", fields=f"{ours}Message-ID: <{story.id}@mail.example>\r\n"),
    )
    assert await suppressed(world) == []
    assert not left_in(folder)


@pytest.mark.parametrize("kind", ["abuse", "Fraud", "opt-out", "OPT-OUT-LIST"])
async def test_complaints_of_readers_count_whatever_their_type(world: MailWorld, folder: Path, kind: str) -> None:
    story = story_completed(world.accounts.add())
    await world.handle(story)
    await read_all(world, folder, arf(about(story), kind=kind))
    assert [row["code"] for row in await suppressed(world)] == [kind.lower()]


async def test_feedback_that_is_no_complaint_suppresses_nobody(world: MailWorld, folder: Path) -> None:
    story = story_completed(world.accounts.add())
    await world.handle(story)
    kinds = ("not-spam", "virus", "auth-failure", "other", "dmarc", "of-tomorrow")
    await read_all(world, folder, *(arf(about(story), kind=kind) for kind in kinds))
    assert await suppressed(world) == []
    assert not left_in(folder)


async def test_a_complaint_that_comes_again_changes_nothing(world: MailWorld, folder: Path) -> None:
    story = story_completed(world.accounts.add())
    await world.handle(story)
    await read_all(world, folder, arf(about(story)))
    before, steps = await suppressed(world), await world.steps(story)
    await read_all(world, folder, arf(about(story)), arf(about(story), kind="fraud"))
    assert (await suppressed(world), await world.steps(story)) == (before, steps)


async def test_the_gravest_reason_holds_whatever_comes_first(world: MailWorld, folder: Path) -> None:
    users = [world.accounts.add(f"{number}@example.com") for number in range(4)]
    stories = [story_completed(user) for user in users]
    await world.handle(*stories)
    full, gone = ({"status": status, "final": ""} for status in ("5.2.2", "5.1.1"))
    first, second, third, fourth = stories
    await read_all(world, folder, bounce(first, **full), arf(about(second)), bounce(third, **gone), arf(about(fourth)))
    await read_all(world, folder, arf(about(first)), bounce(second, **full), arf(about(third)), bounce(fourth, **gone))
    reasons = {row["event_id"]: row["reason"] for row in await suppressed(world)}
    assert [reasons[story.id] for story in stories] == ["COMPLAINT", "COMPLAINT", "NO_ADDRESS", "NO_ADDRESS"]


async def test_an_erasure_takes_the_complaint_along_and_later_ones_leave_nothing(
    world: MailWorld,
    folder: Path,
) -> None:
    user = world.accounts.add()
    story = story_completed(user)
    await world.handle(story)
    await read_all(world, folder, arf(about(story)))
    await world.handle(user_deleted(user))
    assert await suppressed(world) == []
    await read_all(world, folder, arf(about(story)))
    assert await suppressed(world) == []


MALFORMED = {
    "no type": arf("", feedback="User-Agent: x\r\nVersion: 1\r\n"),
    "two types": arf("", feedback="Feedback-Type: abuse\r\nFeedback-Type: fraud\r\n"),
    "an empty type": arf("", kind=""),
    "no words": arf("", kind="\0\x01%s"),
    "a long type": arf("", kind="a" * 100_000),
    "an empty part": arf("", feedback=""),
    "no report": arf("").replace(b"message/feedback-report", b"text/plain"),
    "headers without end": arf("").replace(b"\r\n\r\n", b"\r\n" + b"X: y\r\n" * 20_000, 1),
    "nested": arf("").replace(b"message/feedback-report", b"multipart/mixed; boundary=" + b"x" * 50),
    "torn": arf("")[:300],
    "another charset": arf("").decode().encode("utf-16"),
    "nothing": b"",
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_complaint_is_none(name: str) -> None:
    with pytest.raises(NotABounce):
        reports.read(MALFORMED[name])


@given(st.data())
def test_whatever_is_changed_in_a_complaint_it_is_read_or_refused(data: st.DataObject) -> None:
    whole = arf("Message-ID: <1@mail.example>\r\n", fields="Original-Mail-From: <a@b.example>\r\n")
    at, length = data.draw(st.integers(0, len(whole))), data.draw(st.integers(0, 40))
    changed = whole[:at] + data.draw(st.binary(max_size=40)) + whole[at + length :]
    try:
        found = reports.read(changed)
    except NotABounce:
        return
    assert isinstance(found, Complaint)
    assert len(found.type) <= 40


async def test_malformed_complaints_and_faults_of_the_reader_hold_no_other_report_back(
    world: MailWorld,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    story = story_completed(world.accounts.add())
    await world.handle(story)
    read = reports.read

    def faulty(raw: bytes) -> object:
        if b"poison" in raw:
            raise RuntimeError("a fault of the reader")
        return read(raw)

    monkeypatch.setattr("services.notification.operations.bounces.returned.read", faulty)
    put(folder, *MALFORMED.values(), arf("poison: 1\r\n"))
    good = folder / "good.eml"
    good.write_bytes(arf(about(story)))
    os.utime(good, (2, 2))
    with caplog.at_level(logging.WARNING):
        async with world.working():
            await until(lambda: not list(folder.glob("*.eml")))
    assert len(await suppressed(world)) == 1
    aside = sorted(path.read_bytes() for path in (folder / "not-bounces").iterdir())
    assert aside == sorted([*MALFORMED.values(), arf("poison: 1\r\n")])
    assert "a fault of the reader" in caplog.text


async def test_the_provider_tells_of_complaints_in_either_form(world: MailWorld) -> None:
    ada, bob = world.accounts.add("ada@example.com"), world.accounts.add("bob@example.com")
    first, second = story_completed(ada), story_completed(bob)
    await world.handle(first, second)
    raw = arf(about(first))
    body = json.dumps(
        {
            "complaints": [
                {"message_id": f"<{second.id}@mail.example>"},
                {"message_id": f"<{first.id}@mail.example>", "type": "not-spam"},
                {"message_id": f"<{uuid4()}@mail.example>", "type": "abuse"},
            ]
        }
    ).encode()
    async with webhook(world) as stub:
        answers = [
            await stub.ReportBounces(call(raw, "message/rfc822"), metadata=signed(raw)),
            await stub.ReportBounces(call(body), metadata=signed(body)),
        ]
    assert [(each.recorded, each.ignored) for each in answers] == [(1, 0), (1, 2)]
    rows = {row["event_id"]: (row["user_id"], row["reason"], row["source"]) for row in await suppressed(world)}
    assert rows == {first.id: (ada, "COMPLAINT", "PROVIDER"), second.id: (bob, "COMPLAINT", "PROVIDER")}


async def test_complaints_at_once_about_mails_to_one_address_make_one_suppression(world: MailWorld) -> None:
    user = world.accounts.add()
    stories = [story_completed(user) for _ in range(6)]
    await world.handle(*stories)
    bodies = [arf(about(story)) for story in stories]
    async with webhook(world) as stub:
        await asyncio.gather(
            *(stub.ReportBounces(call(each, "message/rfc822"), metadata=signed(each)) for each in bodies)
        )
    assert [row["reason"] for row in await suppressed(world)] == ["COMPLAINT"]
