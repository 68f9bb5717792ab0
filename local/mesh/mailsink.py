"""An SMTP server that writes every mail it accepts to a file in a folder.

File names begin with the time of arrival, so that sorting by name sorts by arrival. A file appears under its name only
when it is complete: a reader that lists `*.eml` never sees half a mail. The envelope stands in front of the mail's own header, in
X-MailFrom and one X-RcptTo per recipient, and reads there as it was sent.
"""

import argparse
import asyncio
import itertools
import logging
import os
import re
import signal
import time
from base64 import b64encode
from datetime import UTC, datetime
from pathlib import Path

from aiosmtpd.smtp import SMTP, Envelope, Session

LARGEST_MAIL_BYTES = 10_000_000

_MAILBOX = r'(?P<mailbox>(?:"(?:[^"\\]|\\.)*"|[^"<>\s])*)'
_IN_BRACKETS = re.compile(rf"\s*<(?:@[^:<>\s]+:)?{_MAILBOX}>(?P<rest>.*)", re.DOTALL)
_BARE = re.compile(rf"\s*{_MAILBOX}(?P<rest>.*)", re.DOTALL)
NULL_SENDER = "<>"

log = logging.getLogger("local.mesh.mailsink")


class EnvelopeSmtp(SMTP):
    """Takes addresses literally: aiosmtpd parses them as those of a mail's header, and decodes `=?utf-8?q?a?=@example.org`."""

    def _getaddr(self, arg: str) -> tuple[str | None, str | None]:
        """The address of MAIL or RCPT as it was sent (RFC 5321, 4.1.2), without a source route, and what follows it."""
        found = _IN_BRACKETS.fullmatch(arg) or _BARE.fullmatch(arg)
        if found is None:
            return None, None
        if not found["mailbox"]:
            # A bounce's sender is empty; aiosmtpd takes an empty text for a missing address.
            return (NULL_SENDER if found.re is _IN_BRACKETS else ""), found["rest"]
        return found["mailbox"], found["rest"]


class Folder:
    """SMTP handler that accepts every mail and writes it below `path`."""

    def __init__(self, path: Path) -> None:
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = path
        self._numbers = itertools.count()

    async def handle_EHLO(  # noqa: N802, aiosmtpd's name
        self, server: SMTP, session: Session, envelope: Envelope, hostname: str, responses: list[str]
    ) -> list[str]:
        """Offer PIPELINING (RFC 2920), as the servers do that take mail from strangers: aiosmtpd reads one line after the other."""
        session.host_name = hostname
        return [*responses[:-1], "250-PIPELINING", responses[-1]]

    async def handle_DATA(self, server: SMTP, session: Session, envelope: Envelope) -> str:  # noqa: N802, aiosmtpd's name
        content = envelope.original_content or b""
        arrived = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        name = f"{arrived}-{os.getpid()}-{next(self._numbers)}.eml"
        sender = f"X-MailFrom: {_in_header(envelope.mail_from or NULL_SENDER)}\r\n"
        recipients = "".join(f"X-RcptTo: {_in_header(recipient)}\r\n" for recipient in envelope.rcpt_tos)
        # The draft does not end in .eml, because some globs match hidden files too.
        draft = self._path / f".{name}.part"
        try:
            draft.write_bytes((sender + recipients).encode() + content)
            draft.rename(self._path / name)
        except OSError as error:
            log.error("cannot store a mail in %s: %s", self._path, error.strerror)
            # A temporary failure, which makes the sender try again instead of losing the mail.
            return "452 4.3.1 Insufficient system storage"
        log.info("stored %s for %s", name, ", ".join(envelope.rcpt_tos))
        return "250 2.0.0 Stored"


def _in_header(address: str) -> str:
    """The address as a header's value. One that looks like an encoded word (RFC 2047) is encoded, so that reading gives it back."""
    return f"=?utf-8?b?{b64encode(address.encode()).decode()}?=" if "=?" in address else address


async def serve(port: int, folder: Path) -> None:
    """Serve until SIGTERM or SIGINT."""
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    handler = Folder(folder)
    server = await loop.create_server(
        lambda: EnvelopeSmtp(
            handler, hostname="localhost", data_size_limit=LARGEST_MAIL_BYTES, enable_SMTPUTF8=True, loop=loop
        ),
        "127.0.0.1",
        port,
    )
    log.info("mail for anyone goes to %s", folder)
    async with server:
        await stopped.wait()


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m local.mesh.mailsink", description=__doc__)
    parser.add_argument("--port", type=int, required=True, help="port on loopback")
    parser.add_argument("--folder", type=Path, required=True, help="where the mails go")
    arguments = parser.parse_args()
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(level=logging.INFO, format="%(asctime)s UTC %(message)s")
    # aiosmtpd logs every protocol line at INFO.
    logging.getLogger("mail.log").setLevel(logging.WARNING)
    asyncio.run(serve(arguments.port, arguments.folder))


if __name__ == "__main__":
    main()
