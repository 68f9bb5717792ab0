"""The mails of the sink as pages: safe to look at whatever a mail holds, and open only to who has the URL."""

import http.client
import io
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from local.failures import LocalError
from local.layout import Layout
from local.terminal import mail_pages, mail_server
from local.terminal.mail_server import MailServer

HOSTILE = "<script>alert(1)</script><img src=https://tracker.example/1.png>"


def put(folder: Path, message: EmailMessage | bytes, *, number: int = 0) -> str:
    """Store a mail as the sink does, and return its name."""
    name = f"20261130T0102{number:02}.000000Z-1-{number}.eml"
    envelope = b"X-MailFrom: bounce@storymesh.localhost\r\nX-RcptTo: ada@example.org\r\n"
    (folder / name).write_bytes(envelope + (message if isinstance(message, bytes) else bytes(message)))
    return name


def letter(subject: str, text: str, html: str | None = None) -> EmailMessage:
    message = EmailMessage()
    message["Subject"], message["From"], message["To"] = subject, "Storymesh <a@b.example>", "Ada <ada@example.org>"
    message.set_content(text)
    if html is not None:
        message.add_alternative(html, subtype="html")
    return message


@pytest.fixture
def running(tmp_path: Path) -> Iterator[MailServer]:
    with mail_server.server(tmp_path) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


@pytest.fixture
def browser(running: MailServer) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=running.url) as client:
        yield client


def test_the_list_shows_the_newest_mail_first_and_leads_to_each(running: MailServer, browser: httpx2.Client) -> None:
    assert "No mail has come yet." in browser.get("").text
    old = put(running.folder, letter("The older", "one"), number=1)
    new = put(running.folder, letter("The newer", "two"), number=2)
    (running.folder / ".20261130.eml.part").write_bytes(b"half a mail")
    page = browser.get("").text
    assert page.index(f'<a href="mails/{new}">The newer</a>') < page.index(f'<a href="mails/{old}">The older</a>')
    assert "2026-11-30 01:02:02" in page
    assert ".part" not in page
    assert "<td>ada@example.org</td>" in page
    assert browser.get(f"mails/{new}").status_code == 200


def test_a_mail_is_shown_with_its_envelope_its_text_and_its_html_and_as_source(
    running: MailServer, browser: httpx2.Client
) -> None:
    name = put(running.folder, letter("Grüße", "Read it at http://127.0.0.1:8080/s/x.", "<p>Read <b>it</b></p>"))
    page = browser.get(f"mails/{name}").text
    assert "<h1>Grüße</h1>" in page
    assert "<th>MAIL FROM</th><td>bounce@storymesh.localhost</td>" in page
    assert "<th>RCPT TO</th><td>ada@example.org</td>" in page
    assert '<a href="http://127.0.0.1:8080/s/x" rel="noreferrer">http://127.0.0.1:8080/s/x</a>.' in page
    assert f'<iframe src="{name}/html" sandbox=' in page
    assert "<p>Read <b>it</b></p>" in browser.get(f"mails/{name}/html").text
    source = browser.get(f"mails/{name}/source")
    assert source.headers["content-type"] == "text/plain; charset=utf-8"
    assert source.text == (running.folder / name).read_bytes().decode()


def test_what_a_mail_holds_runs_nothing_and_loads_nothing(running: MailServer, browser: httpx2.Client) -> None:
    name = put(running.folder, letter(f"Hello {HOSTILE}", HOSTILE, HOSTILE))
    for path in ("", f"mails/{name}"):
        answer = browser.get(path)
        assert "<script" not in answer.text
        assert "<img" not in answer.text
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert "script-src" not in answer.headers["content-security-policy"]
    frame = browser.get(f"mails/{name}").text.partition("<iframe")[2].partition(">")[0]
    html = browser.get(f"mails/{name}/html")
    for sandbox in (frame, html.headers["content-security-policy"]):
        assert "sandbox" in sandbox
        assert "allow-scripts" not in sandbox
        assert "allow-same-origin" not in sandbox
        assert "allow-forms" not in sandbox
        assert "allow-top-navigation" not in sandbox
    directives = [each.strip() for each in html.headers["content-security-policy"].split(";")]
    assert {"default-src 'none'", "img-src data:", "base-uri 'none'"} <= set(directives)
    for path in ("", f"mails/{name}", f"mails/{name}/html", f"mails/{name}/source"):
        headers = browser.get(path).headers
        assert (headers["x-content-type-options"], headers["referrer-policy"]) == ("nosniff", "no-referrer")
        assert headers["cache-control"] == "no-store"


def test_images_inside_a_mail_are_shown(running: MailServer, browser: httpx2.Client) -> None:
    message = letter("Look", "a picture", '<img src="cid:logo@storymesh" alt=""><img src="cid:missing">')
    html = message.get_body(("html",))
    assert html is not None
    html.add_related(b"PNG", "image", "png", cid="<logo@storymesh>")
    name = put(running.folder, message)
    shown = browser.get(f"mails/{name}/html").text
    assert 'src="data:image/png;base64,UE5H"' in shown
    assert 'src="cid:missing"' in shown


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00no mail at all",
        b"Content-Type: text/html; charset=no-such\r\n\r\n<b>x</b>",
        b'Content-Type: multipart/mixed; boundary="a"\r\n\r\n--a\r\n',
        b"Subject: =?utf-8?q?=ff?=\r\nTo: <<>>;,\r\nContent-Type: ;;\r\n\r\nx",
        b"Content-Type: text/plain\r\nContent-Transfer-Encoding: base64\r\n\r\n%%%",
    ],
)
def test_a_mail_that_is_none_is_shown_as_far_as_it_can_be(
    running: MailServer, browser: httpx2.Client, content: bytes
) -> None:
    name = put(running.folder, content)
    assert browser.get("").status_code == 200
    assert browser.get(f"mails/{name}").status_code == 200
    assert browser.get(f"mails/{name}/source").content.endswith(content.decode("utf-8", "replace").encode())


def test_only_who_has_the_url_sees_anything_and_only_mails_are_there(
    running: MailServer, browser: httpx2.Client, tmp_path: Path
) -> None:
    name = put(running.folder, letter("Your code", "123456"))
    (tmp_path / "secret.txt").write_text("secret")
    root = f"http://{running.authority}"
    for url in (root, f"{root}/", f"{root}/mails/{name}", f"{root}/wrong/mails/{name}", f"{root}//{name}"):
        assert httpx2.get(url).status_code == 404
    for path in (
        "mails/secret.txt",
        "mails/..%2f..%2fetc%2fpasswd",
        "mails/.eml",
        f"mails/{name}/other",
        f"mails/{name}/",
        "mails",
    ):
        assert browser.get(path).status_code == 404
    # A page elsewhere whose name leads to loopback.
    connection = http.client.HTTPConnection(running.authority)
    connection.request("GET", urlsplit(running.url).path, headers={"Host": "rebound.example"})
    assert connection.getresponse().status == 404
    connection.close()


def test_without_a_mesh_it_is_said_in_a_sentence(layout: Layout) -> None:
    with pytest.raises(
        LocalError, match=r"no mesh has run there yet; start one with `make up`. Without one, `make mails`"
    ):
        mail_server.show(layout, port=0, browser=False, output=io.StringIO())


def test_the_mails_of_a_mesh_that_is_down_are_shown_and_that_no_others_come_is_said(tmp_path: Path) -> None:
    (tmp_path / "mail").mkdir()
    put(tmp_path / "mail", letter("Your code", "123456"))
    command = [sys.executable, "-m", "local", "mail", "--no-browser"]
    environment = os.environ | {"STORYMESH_STATE_DIR": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as shown:
        assert shown.stdout
        told = [shown.stdout.readline() for _ in range(3)]
        url = told[0].split()[-1]
        listed = httpx2.get(url).text
        shown.send_signal(signal.SIGINT)
        assert shown.wait(timeout=20) == 0
    assert "Your code" in listed
    assert told[1:] == ["No mesh is running, so no others will come: `make up` starts one.\n", "Ctrl-C ends it.\n"]


def test_a_name_that_the_sink_does_not_give_is_no_mail(tmp_path: Path) -> None:
    (tmp_path / "evil<b>.eml").write_bytes(b"")
    assert mail_pages.mails_in(tmp_path) == []
    assert mail_pages.read(tmp_path, "../x.eml") is None
