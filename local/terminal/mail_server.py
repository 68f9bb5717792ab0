"""Serves the mails of the sink as pages on loopback, to who knows the URL.

The URL has a secret, because every account of the machine reaches a port on loopback, and the mails hold codes. The Host header
is checked as well: a page from elsewhere could otherwise name this server by a name of its own (DNS rebinding).
"""

from __future__ import annotations

import hmac
import os
import secrets
import sys
import webbrowser
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TextIO
from urllib.parse import unquote, urlsplit

from local.failures import LocalError
from local.layout import Layout
from local.supervision.supervisor import is_running
from local.terminal import mail_pages

LISTED = 200
"""Mails on the list; each is read to show its subject."""

_HOST = "127.0.0.1"
_HTML = "text/html; charset=utf-8"
_TEXT = "text/plain; charset=utf-8"


def show(layout: Layout, *, port: int, browser: bool, output: TextIO) -> None:
    """Serve the mails until interrupted, and open them in a browser if there is one. Raises LocalError."""
    with server(layout.mail, port) as running:
        print(f"The mails of {layout.mail} are at {running.url}", file=output)
        if not is_running(layout):
            print("No mesh is running, so no others will come: `make up` starts one.", file=output)
        print("Ctrl-C ends it.", file=output, flush=True)
        if browser and _has_screen():
            webbrowser.open(running.url)
        try:
            running.serve_forever()
        except KeyboardInterrupt:
            print(file=output)


def server(folder: Path, port: int = 0) -> MailServer:
    """A server of the folder's mails; port 0 is any free one. Raises LocalError."""
    if not folder.is_dir():
        raise LocalError(
            f"There is no folder {folder}: no mesh has run there yet; start one with `make up`. "
            "Without one, `make mails` writes a sample of every mail."
        )
    try:
        return MailServer(folder, port)
    except OSError as error:
        raise LocalError(f"Port {port} cannot be listened on: {error.strerror}.") from error


class MailServer(ThreadingHTTPServer):
    """The HTTP server; `url` leads to its list."""

    daemon_threads = True

    def __init__(self, folder: Path, port: int) -> None:
        super().__init__((_HOST, port), _Handler)
        self.folder = folder
        self.secret = secrets.token_urlsafe(16)

    @property
    def authority(self) -> str:
        return f"{_HOST}:{self.server_port}"

    @property
    def url(self) -> str:
        return f"http://{self.authority}/{self.secret}/"


@dataclass(frozen=True)
class _Answer:
    content: str
    media_type: str = _HTML
    policy: str = mail_pages.PAGE_POLICY
    status: HTTPStatus = HTTPStatus.OK


class _Handler(BaseHTTPRequestHandler):
    server: MailServer
    protocol_version = "HTTP/1.1"
    server_version = "storymesh"
    sys_version = ""

    def do_GET(self) -> None:
        self._send(self._answer() or _Answer("There is no such page.\n", _TEXT, status=HTTPStatus.NOT_FOUND))

    do_HEAD = do_GET  # noqa: N815, likewise

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002, http.server's name
        """Log nothing: a line would hold the secret, in the terminal of who has it already."""

    def _answer(self) -> _Answer | None:
        """The answer; None if there is nothing at the path."""
        if self.headers.get("host") != self.server.authority:
            return None
        secret, *path = unquote(urlsplit(self.path).path).removeprefix("/").split("/")
        if not hmac.compare_digest(secret.encode(), self.server.secret.encode()):
            return None
        if path == [""]:
            return _Answer(self._list())
        kind, name, *form = path if len(path) > 1 else ("", "")
        mail = mail_pages.read(self.server.folder, name) if kind == "mails" else None
        shown = _FORMS.get(tuple(form))
        return shown(mail) if mail and shown else None

    def _list(self) -> str:
        names = mail_pages.mails_in(self.server.folder)
        mails = (mail_pages.read(self.server.folder, name) for name in names[:LISTED])
        return mail_pages.list_page([mail for mail in mails if mail], max(0, len(names) - LISTED))

    def _send(self, answer: _Answer) -> None:
        data = answer.content.encode("utf-8", "replace")
        self.send_response(answer.status)
        for name, value in {
            "content-type": answer.media_type,
            "content-length": str(len(data)),
            "content-security-policy": answer.policy,
            "referrer-policy": "no-referrer",
            "x-content-type-options": "nosniff",
            "cache-control": "no-store",
            "cross-origin-resource-policy": "same-origin",
        }.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)


def _html(mail: mail_pages.Mail) -> _Answer | None:
    html = mail_pages.html_of(mail)
    return None if html is None else _Answer(html, policy=mail_pages.CONTENT_POLICY)


_FORMS: dict[tuple[str, ...], Callable[[mail_pages.Mail], _Answer | None]] = {
    (): lambda mail: _Answer(mail_pages.mail_page(mail)),
    ("html",): _html,
    ("source",): lambda mail: _Answer(mail.source.decode("utf-8", "replace"), _TEXT),
}
"""The forms of a mail, by what follows its name in the path."""


def _has_screen() -> bool:
    """Whether a browser would open in a window; one for terminals would take over this one."""
    return sys.platform == "darwin" or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
