"""The bytes of a mail: each input once, and nothing that somebody injected."""

from __future__ import annotations

import email
import email.policy
from datetime import UTC, datetime
from email.message import EmailMessage
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.notification.model import Letter, rendering
from services.notification.model.rendering import Sender, Unrenderable, render

EVENT = UUID(int=7)
SENDER = Sender("Storymesh <no-reply@mail.example>")
HTML = "<p>Hello,</p>\n"
HEADERS = [
    *("From", "To", "Subject", "Date", "Message-ID", "Auto-Submitted", "Content-Language", "X-Trace-Id"),
    *("MIME-Version", "Content-Type"),
]


def rendered(
    subject: str = "Hello",
    body: str = "Hello,\n",
    recipient: str = "ada@example.com",
    sender: Sender = SENDER,
    *,
    html: str = HTML,
    language: str = "en",
    unsubscribe_url: str = "",
) -> bytes:
    return render(
        Letter(subject, body, html, language),
        sender,
        recipient,
        event_id=EVENT,
        sent_at=datetime(2026, 1, 1, tzinfo=UTC),
        trace_id="0af765" * 5,
        unsubscribe_url=unsubscribe_url,
    )


def read(mail: bytes) -> EmailMessage:
    parse: Any = email.message_from_bytes
    message: EmailMessage = parse(mail, policy=email.policy.default)
    return message


ENCODED_HEADERS = "=?utf-8?q?x=0d=0aSubject=3a_Win=0d=0aBcc=3a_b=40evil.example=0d=0a=0d=0aOurs?="


@pytest.mark.parametrize(
    "subject",
    [
        "Your story is ready: The Lighthouse",
        "",
        f"Your story is ready: {ENCODED_HEADERS}",
        "=?utf-8?q?x?=",
        "=?utf-8?b?eA==?= and =?utf-8?q?y?=",
        "a =?utf-8?q?x",
        "?= =?",
        "Der Bär und die Fee",
        "灯台の物語 " * 20,
        "é" * 300,
        "x" * 1000,
        "two  blanks and one at the end ",
        " a blank at the beginning",
        "quotes \" and \\ and ' and <b>",
    ],
)
def test_a_subject_shows_as_it_was_put_and_adds_no_header(subject: str) -> None:
    mail = rendered(subject)
    message = read(mail)
    assert message.keys() == HEADERS
    assert message["Subject"] == subject
    assert max(map(len, mail.split(b"\r\n"))) <= 998
    assert b"Bcc:" not in mail


@pytest.mark.parametrize(
    "subject",
    [
        *("x\r\nBcc: b@evil.example", "x\nBcc: b@evil.example", "x\rBcc: b@evil.example", "x\x85y"),
        *("x\N{LINE SEPARATOR}Bcc: b@evil.example", "x\0y", "x\ud800y"),
    ],
)
def test_a_subject_of_several_lines_or_of_what_is_no_text_is_refused(subject: str) -> None:
    with pytest.raises(Unrenderable, match="Subject"):
        rendered(subject)


@pytest.mark.parametrize(
    "recipient",
    [
        f"{ENCODED_HEADERS}@example.com",
        "=?utf-8?q?x?=@example.com",
        "a@example.com, b@evil.example",
        "a@example.com,b@evil.example",
        "a@example.com;b@evil.example",
        "a@example.com\r\nBcc: b@evil.example",
        "a@example.com\n",
        "Ada <a@example.com>",
        "<a@example.com>",
        '"a b"@example.com',
        "a(comment)@example.com",
        "a b@example.com",
        "a@b@example.com",
        "\N{RIGHT-TO-LEFT OVERRIDE}a@example.com",
        "a\N{ZERO WIDTH SPACE}b@example.com",
        "a\N{FULLWIDTH COMMA}b@example.com",
        "a\N{NO-BREAK SPACE}b@example.com",
        "a\x85b@example.com",
        "a\N{LINE SEPARATOR}b@example.com",
        "a\ud800b@example.com",
        "a@b\N{LINE SEPARATOR}c.example",
        "a@-ü-.example",
        "a@[127.0.0.1]",
        "@example.com",
        "a@",
        "",
        "undisclosed:;",
    ],
)
def test_a_mail_goes_to_one_plain_address_or_not_at_all(recipient: str) -> None:
    with pytest.raises(Unrenderable) as refused:
        rendered(recipient=recipient)
    assert not recipient or recipient not in str(refused.value)


@pytest.mark.parametrize(
    ("recipient", "header"),
    [
        ("jürgen@example.com", "jürgen@example.com"),
        ("用户@example.com", "用户@example.com"),
        ("अशोक@bücher.example", "अशोक@xn--bcher-kva.example"),
        ("ada@bücher.example", "ada@xn--bcher-kva.example"),
    ],
)
def test_a_recipient_in_another_script_stands_in_the_header_as_it_is_written(recipient: str, header: str) -> None:
    mail = rendered(recipient=recipient)
    assert f"\r\nTo: {header}\r\n".encode() in mail
    assert mail.replace(header.encode(), b"").isascii()


@pytest.mark.parametrize("recipient", ["ada@example.com", "first..last@example.com", "o'hara+x=y?z@example.com"])
def test_the_recipient_is_the_address_as_it_stands(recipient: str) -> None:
    assert f"\r\nTo: {recipient}\r\n".encode() in rendered(recipient=recipient)


@pytest.mark.parametrize(
    "name",
    [
        "Storymesh",
        "Story, Mesh & Co.",
        "Ge\u00adschichten",
        "Märchen",
        "=?utf-8?q?x?=",
        "a =?utf-8?q?x?= b",
        "物語" * 5,
    ],
)
def test_the_sender_is_the_one_of_the_setting(name: str) -> None:
    sender = Sender("Storymesh <no-reply@mail.example>")
    sender.name = name
    (address,) = read(rendered(sender=sender))["From"].addresses
    assert (address.display_name, address.addr_spec) == (name, "no-reply@mail.example")


@pytest.mark.parametrize(
    "text",
    [
        *("", "Storymesh", "Storymesh <>", "Storymesh <no-reply>", "no-reply@localhost", "no-reply@127.0.0.1"),
        *("a@example.com, b@example.com", "Storymesh <a@example.com>, b@example.com", "S\r\nBcc: x <a@example.com>"),
        *("S <=?utf-8?q?x?=@example.com>", "S <a@[127.0.0.1]>"),
    ],
)
def test_a_sender_that_is_not_one_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="needs"):
        Sender(text)


def test_a_sender_of_a_domain_in_another_script_is_kept_in_ascii() -> None:
    assert Sender("Bücher <post@bücher.example>").address == "post@xn--bcher-kva.example"


BOUNDARY = f"=_{EVENT.hex}"
TEXTS = [
    "Hello,\n\nYour code is 1.\n",
    "Grüße\n",
    "é" * 2000 + "\n",
    "x" * 2000 + "\n",
    ".\n..\n",
    "From here\n",
    "=?x?=\n",
    "-- \nline with a blank at its end \n\ttab\n",
    "",
    "without an end",
    "= =3D =\n=\n",
    "Content-Type: text/html\n\n<script>\n",
    "--other\nContent-Type: text/html\n\nx\n--other--\n",
    "two\r\nlines\rthree\u2028four\x85five\n",
]


@pytest.mark.parametrize("text", TEXTS)
def test_both_parts_arrive_as_they_were_put(text: str) -> None:
    mail = rendered(body=text, html=f"<p>{text}</p>")
    assert mail.isascii()
    assert max(map(len, mail.split(b"\r\n"))) <= 998
    plain, html = read(mail).iter_parts()
    assert (plain.get_content_type(), html.get_content_type()) == ("text/plain", "text/html")
    assert plain.get_content().splitlines() == text.splitlines()
    assert html.get_content().splitlines() == f"<p>{text}</p>".splitlines()


@pytest.mark.parametrize("text", TEXTS)
def test_a_letter_without_html_is_plain_text(text: str) -> None:
    message = read(rendered(body=text, html=""))
    assert message.get_content_type() == "text/plain"
    assert message.get_content().splitlines() == text.splitlines()


@pytest.mark.parametrize("text", ["a\0b\n", "a\ud800b\n", "é" * 100 + "\0\n", "x" * 100 + "\x1b\n"])
def test_a_part_that_is_no_text_is_refused(text: str) -> None:
    for body, html in ((text, HTML), ("Hello,\n", text), (text, "")):
        with pytest.raises(Unrenderable):
            rendered(body=body, html=html)


@pytest.mark.parametrize(
    "text",
    [
        f"--{BOUNDARY}\nContent-Type: text/html\n\n<p>Win</p>\n",
        f"--{BOUNDARY}--\nWin\n",
        f"\n--{BOUNDARY}\n\nWin\n--{BOUNDARY}--\n",
    ],
)
def test_no_text_ends_its_part_or_adds_one(text: str) -> None:
    """The boundary is known to whoever knows the event's id."""
    for body, html in ((text, HTML), ("Hello,\n", text), (f"é{'x' * 80}\n{text}", HTML)):
        try:
            mail = rendered(body=body, html=html)
        except Unrenderable:
            continue
        plain, rich = read(mail).iter_parts()
        assert plain.get_content().splitlines() == body.splitlines()
        assert rich.get_content().splitlines() == html.splitlines()


@given(*[st.text(alphabet=st.sampled_from("a=-_\n\r .é\0<>\u2028"), max_size=90) for _ in range(2)])
def test_whatever_the_texts_the_mail_has_these_two_parts_or_is_refused(body: str, html: str) -> None:
    try:
        mail = rendered(body=body, html=f"<p>{html}")
    except Unrenderable:
        return
    message = read(mail)
    plain, rich = message.iter_parts()
    assert message.keys() == HEADERS
    assert plain.get_content().splitlines() == body.splitlines()
    assert rich.get_content().splitlines() == f"<p>{html}".splitlines()


def test_a_mail_that_can_be_unsubscribed_from_offers_it_in_one_click() -> None:
    url = "https://stories.example/v1/unsubscribe?token=abc_-.~&x=1"
    message = read(rendered(unsubscribe_url=url))
    assert message["List-Unsubscribe"] == f"<{url}>"
    assert message["List-Unsubscribe-Post"] == "List-Unsubscribe=One-Click"
    assert "List-Unsubscribe" not in read(rendered())


@pytest.mark.parametrize(
    "url",
    [
        *("mailto:x@example.com", "/unsubscribe", "https://", "javascript:x", "https://a.example/x y"),
        *("https://a.example/>,<mailto:x@evil.example", "https://a.example/\r\nBcc: b@evil.example"),
        *("https://a.example/ä", "https://a.example/" + "x" * 1000, "https://a.example/a,b"),
    ],
)
def test_an_address_to_unsubscribe_that_adds_something_to_its_header_is_refused(url: str) -> None:
    with pytest.raises(Unrenderable):
        rendered(unsubscribe_url=url)


@pytest.mark.parametrize("language", ["en\r\nBcc: b@evil.example", "e", "en us", "=?utf-8?q?x?="])
def test_a_language_is_a_tag_or_refused(language: str) -> None:
    with pytest.raises(Unrenderable):
        rendered(language=language)


@given(st.text(max_size=80), st.text(alphabet=st.sampled_from('a@.=?,<> \r\n"\\é'), max_size=20))
def test_whatever_is_put_in_the_mail_holds_that_or_is_refused(subject: str, mailbox: str) -> None:
    try:
        mail = rendered(subject, recipient=f"{mailbox}@example.com")
    except Unrenderable:
        return
    head = mail.partition(b"\r\n\r\n")[0]
    assert [line.partition(b":")[0].decode() for line in head.split(b"\r\n") if line[:1] not in b" \t"] == HEADERS
    assert read(mail)["To"] == f"{mailbox}@example.com"


@pytest.mark.parametrize(
    ("header", "written"),
    [
        ("Subject", "Hello\r\nBcc: b@evil.example"),
        ("Subject", "Hello\r\n\r\nanother body"),
        ("Subject", "=?utf-8?q?Win?="),
        ("From", "x@mail.example\r\nSubject: Win"),
    ],
)
def test_a_fault_of_the_encoding_itself_is_noticed_in_the_bytes(
    monkeypatch: pytest.MonkeyPatch, header: str, written: str
) -> None:
    """Covers faults of the library or of later changes here, because the check reads the bytes themselves."""
    honest = rendering._encoded
    sender = Sender("Märchen <no-reply@mail.example>")
    monkeypatch.setattr(rendering, "_encoded", lambda name, text: written if name == header else honest(name, text))
    with pytest.raises(Unrenderable):
        rendered(sender=sender)


@pytest.mark.parametrize(
    ("written", "instead"),
    [
        ("Content-Type: text/plain", "X-More: 1\r\nContent-Type: text/plain"),
        ("Content-Type: text/plain", "Content-Type: text/html"),
        ('charset="utf-8"', 'charset="latin-1"'),
        ("7bit", "base64"),
        ("Hello,", "Hallo,"),
        ("<p>Hello,</p>\r\n", f"<p>Hello,</p>\r\n--{BOUNDARY}\r\nContent-Type: text/plain\r\n\r\nWin\r\n"),
        ("<p>Hello,</p>\r\n", f"<p>Hello,</p>\r\n--{BOUNDARY}--\r\nWin\r\n"),
    ],
)
def test_a_fault_of_a_part_is_noticed_in_the_bytes(monkeypatch: pytest.MonkeyPatch, written: str, instead: str) -> None:
    honest = rendering._part
    monkeypatch.setattr(rendering, "_part", lambda kind, text: honest(kind, text).replace(written, instead))
    with pytest.raises(Unrenderable):
        rendered()
