"""What every kind of mail carries for receivers, as it arrives at a mail server: its signature, and headers that they act on."""

from __future__ import annotations

import re
from email.message import EmailMessage
from pathlib import Path
from uuid import UUID

import dkim
import pytest

from services.notification.model.notices import NOTICES
from services.notification.model.preferences import Timing
from tests.notification.conftest import MailWorld, story_completed
from tests.notification.every_notice import KINDS, event_of
from tests.notification.people import START, STORY, People
from tests.notification.test_dkim import KEY, pem, record

ALL = [*KINDS, "DIGEST"]
UNSUBSCRIBE = re.compile(r"<https://stories\.example/v1/unsubscribe/[\w.~-]+>")


@pytest.fixture
def people(world: MailWorld, tmp_path: Path) -> People:
    path = tmp_path / "dkim.pem"
    path.write_bytes(pem(KEY))
    world.dkim_key_file = str(path)
    return People(world)


def dns(name: bytes, timeout: float = 5) -> bytes:
    return record(KEY) if name == b"storymesh._domainkey.mail.example." else b""


async def sent(people: People, kind: str) -> tuple[bytes, EmailMessage, UUID]:
    """The mail of a kind, as it came and as it is read, and the id of its event."""
    user = people.world.accounts.add()
    if kind == "DIGEST":
        await people.prefer(user, choices={STORY: Timing.DAILY})
        await people.tell(story_completed(user))
        people.at(START.replace(day=START.day + 1, hour=8, minute=0))
        await people.settle()
    else:
        await people.tell(event_of(kind, user, now=START))
    (event_id,) = (event_id for event_id, row in (await people.world.records()).items() if row["kind"] == kind)
    (raw,), (mail,) = people.world.mailbox.raw(), people.world.mailbox.mails()
    return raw, mail, event_id


@pytest.mark.parametrize("kind", ALL)
async def test_the_mail_of_every_kind_is_signed_and_says_what_receivers_act_on(people: People, kind: str) -> None:
    raw, mail, event_id = await sent(people, kind)
    assert dkim.verify(raw, dnsfunc=dns)
    assert not dkim.verify(raw.replace(b"Auto-Submitted: auto-generated", b"Auto-Submitted: no"), dnsfunc=dns)
    signature = str(mail["DKIM-Signature"])
    assert "d=mail.example" in signature
    assert "a=rsa-sha256" in signature
    assert mail["Message-ID"] == f"<{event_id}@mail.example>"
    assert mail["Feedback-ID"] == f"{kind}:::storymesh"
    assert mail["Auto-Submitted"] == "auto-generated"
    assert mail["Date"].datetime == people.clock.now
    signed = {
        each.strip().lower() for each in re.sub(r"\s", "", signature.partition("h=")[2]).partition(";")[0].split(":")
    }
    for name in ("From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "Feedback-ID", "List-Unsubscribe"):
        assert name.lower() in signed, name
    if NOTICES[kind].security:
        assert (mail["List-Unsubscribe"], mail["List-Unsubscribe-Post"]) == (None, None)
        assert b"/v1/unsubscribe/" not in raw
    else:
        assert UNSUBSCRIBE.fullmatch(str(mail["List-Unsubscribe"]))
        assert mail["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
        assert {"list-unsubscribe", "list-unsubscribe-post"} <= signed
    for name in ("Message-ID", "Feedback-ID", "Auto-Submitted", "DKIM-Signature", "Date", "From", "To"):
        assert len(mail.get_all(name, [])) == 1, name


async def test_a_header_that_a_mail_lacks_cannot_be_added_on_the_way(people: People) -> None:
    raw, _, _ = await sent(people, "PASSWORD_CHANGED")
    added = raw.replace(b"Auto-Submitted:", b"List-Unsubscribe: <https://evil.example>\r\nAuto-Submitted:", 1)
    assert added != raw
    assert not dkim.verify(added, dnsfunc=dns)
