"""Reports of returned mail as mail servers write them, and the folder from which the worker reads them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

import pytest
from sqlalchemy import select
from sqlalchemy.engine.row import RowMapping

from kit.events.envelope import Event
from services.notification.tables import suppressions
from tests.waiting import until

if TYPE_CHECKING:
    from tests.notification.conftest import MailWorld

MESSAGE_ID = "<018f2f6e-0000-7000-8000-000000000001@mail.example>"

DOMAIN = "mail.example"


@pytest.fixture
def folder(world: MailWorld, tmp_path: Path) -> Path:
    path = tmp_path / "bounces"
    path.mkdir()
    world.bounce_folder = str(path)
    return path


def put(folder: Path, *reports: bytes) -> None:
    """Put reports where a mail server does, long ago enough to be whole."""
    for raw in reports:
        path = folder / f"{uuid4()}.eml"
        path.write_bytes(raw)
        os.utime(path, (1, 1))


def returned(of: Event, *, status: str = "5.1.1", final: str = "ada@example.com", to: str = "", **parts: str) -> bytes:
    """The report of an event's mail."""
    headers = f"Message-ID: <{of.id}@{DOMAIN}>\r\nSubject: x\r\n"
    return report(status=status, final=final, returned=headers, to=to or f"no-reply@{DOMAIN}", **parts)


async def read_all(world: MailWorld, folder: Path, *reports: bytes) -> None:
    """Have a worker read the reports."""
    put(folder, *reports)
    async with world.working():
        await until(lambda: not list(folder.glob("*.eml")))


async def suppressed(world: MailWorld) -> list[RowMapping]:
    async with world.db.transaction() as tx:
        return list((await tx.execute(select(suppressions).order_by(suppressions.c.id))).mappings())


def report(
    *,
    action: str = "failed",
    status: str = "5.1.1",
    diagnostic: str = "",
    returned: str | None = f"Message-ID: {MESSAGE_ID}\r\nSubject: Your code\r\n",
    returned_type: str = "message/rfc822",
    final: str = "ada@example.com",
    to: str = "no-reply@mail.example",
) -> bytes:
    """A report as Postfix writes it."""
    parts = [
        "Content-Type: text/plain; charset=us-ascii\r\n\r\nThis is the mail system. I am sorry.\r\n",
        "Content-Description: Delivery report\r\nContent-Type: message/delivery-status\r\n\r\n"
        "Reporting-MTA: dns; mx.example\r\nX-Postfix-Queue-ID: 4Xyz\r\nArrival-Date: Mon, 30 Nov 2026 00:00:00 +0000\r\n\r\n"
        f"Final-Recipient: rfc822; {final}\r\nOriginal-Recipient: rfc822;{final}\r\nAction: {action}\r\n"
        f"Status: {status}\r\nRemote-MTA: dns; mx.example\r\n"
        + (f"Diagnostic-Code: smtp; {diagnostic}\r\n" if diagnostic else ""),
    ]
    if returned is not None:
        parts.append(f"Content-Type: {returned_type}\r\n\r\n{returned}\r\nHello Ada\r\n")
    head = (
        f"From: MAILER-DAEMON@mx.example\r\nTo: {to}\r\nSubject: Undelivered Mail\r\nMIME-Version: 1.0\r\n"
        'Content-Type: multipart/report; report-type=delivery-status;\r\n\tboundary="4X/mx.example"\r\n\r\n'
    )
    body = "".join(f"--4X/mx.example\r\n{part}\r\n" for part in parts)
    return (head + body + "--4X/mx.example--\r\n").encode()
