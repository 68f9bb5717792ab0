"""Reports of returned mails are read as far as their form goes, and never longer than their length allows."""

from __future__ import annotations

from time import process_time
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.notification.model import returned as reports
from services.notification.model.bounces import BounceKind, Report
from services.notification.model.report_parts import NotABounce
from services.notification.model.return_paths import ReturnPaths
from tests.notification.returned_mail import MESSAGE_ID, report


def read(raw: bytes) -> Report:
    """The report of a returned mail."""
    found = reports.read(raw)
    assert isinstance(found, Report)
    return found


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((f"5.1.{detail}", BounceKind.NO_ADDRESS) for detail in (1, 2, 3, 6, 10)),
        *((f"5.2.{detail}", BounceKind.MAILBOX) for detail in (0, 1, 2, 3, 4)),
        *((f"5.1.{detail}", BounceKind.OURS) for detail in (0, 4, 5, 7, 8, 9)),
        *((f"5.{subject}.1", BounceKind.OURS) for subject in (3, 4, 5, 6, 7)),
        *((f"4.{subject}.1", BounceKind.SOFT) for subject in (1, 2, 3, 4, 5, 6, 7)),
        ("5.0.0", BounceKind.SOFT),
        ("", BounceKind.SOFT),
        ("5.1.1 (bad destination mailbox address)", BounceKind.NO_ADDRESS),
        ("5.1.100", BounceKind.OURS),
        ("5.1.11", BounceKind.OURS),
        ("15.1.1", BounceKind.SOFT),
        ("5.1.1.1", BounceKind.SOFT),
    ],
)
def test_the_enhanced_code_says_whose_fault_a_bounce_is(status: str, kind: BounceKind) -> None:
    (recipient,) = read(report(status=status)).recipients
    assert recipient.kind is kind


@pytest.mark.parametrize(
    ("status", "diagnostic", "kind"),
    [
        ("5.0.0", "550 5.1.1 <ada@example.com>: no such user", BounceKind.NO_ADDRESS),
        ("5.0.0", "550-5.2.1 The account is disabled", BounceKind.MAILBOX),
        ("5.0.0", "550 blocked, see 10.5.1.1", BounceKind.SOFT),
        ("5.0.0", "450 4.2.2 over quota", BounceKind.SOFT),
        ("4.0.0", "550 5.1.1 no such user", BounceKind.SOFT),
        ("5.7.1", "550 5.1.1 no such user", BounceKind.OURS),
        ("", "550 5.1.1 no such user", BounceKind.NO_ADDRESS),
    ],
)
def test_the_servers_own_words_count_where_the_status_says_nothing(
    status: str, diagnostic: str, kind: BounceKind
) -> None:
    (recipient,) = read(report(status=status, diagnostic=diagnostic)).recipients
    assert recipient.kind is kind


@pytest.mark.parametrize("action", ["delayed", "delivered", "relayed", "expanded", "", "x-failed", "fail"])
def test_a_report_that_is_no_final_failure_is_none(action: str) -> None:
    (recipient,) = read(report(action=action)).recipients
    assert recipient.kind is None


@pytest.mark.parametrize("action", ["failed", "Failed", "FAILED (permanent)", " failed"])
def test_a_failure_is_read_in_every_spelling(action: str) -> None:
    (recipient,) = read(report(action=action)).recipients
    assert recipient.kind is BounceKind.NO_ADDRESS


@pytest.mark.parametrize("returned_type", ["message/rfc822", "text/rfc822-headers", "Message/RFC822", "message/global"])
def test_the_returned_mail_is_named_by_its_message_id_whole_or_by_its_headers(returned_type: str) -> None:
    assert read(report(returned_type=returned_type)).message_id == MESSAGE_ID


@pytest.mark.parametrize(
    "returned",
    [
        None,
        "Subject: none\r\n",
        f"Message-ID: {MESSAGE_ID}\r\nMessage-ID: <other@mail.example>\r\n",
        f"Subject: x\r\n\r\nMessage-ID: {MESSAGE_ID}\r\n",
    ],
    ids=["none", "without", "two", "in the body"],
)
def test_a_returned_mail_without_one_message_id_names_no_mail(returned: str | None) -> None:
    assert read(report(returned=returned)).message_id == ""


def test_lines_may_end_in_any_way_and_a_report_may_be_cut() -> None:
    whole = report()
    for text in (whole.replace(b"\r\n", b"\n"), whole.replace(b"\r\n", b"\r"), whole[: whole.index(b"Hello Ada")]):
        assert read(text) == read(whole)


def test_a_report_inside_another_multipart_and_a_status_in_base64_are_read() -> None:
    inner = report()
    outer = (
        b'Content-Type: multipart/mixed; boundary="out"\r\n\r\n--out\r\n'
        + inner
        + b"\r\n--out\r\n\r\nfooter\r\n--out--\r\n"
    )
    assert read(outer).recipients == read(inner).recipients
    encoded = (
        b'Content-Type: multipart/report; boundary="b"\n\n--b\nContent-Type: message/global-delivery-status\n'
        b"Content-Transfer-Encoding: base64\n\n"
        b"UmVwb3J0aW5nLU1UQTogZG5zOyBteA0KDQpBY3Rpb246IGZhaWxlZA0KU3RhdHVzOiA1LjEuMQ0K\n--b--\n"
    )
    (recipient,) = read(encoded).recipients
    assert recipient.kind is BounceKind.NO_ADDRESS


def test_addresses_are_told_in_canonical_form_and_the_original_beside_the_final() -> None:
    (recipient,) = read(report(final="Ada@EXAMPLE.com")).recipients
    assert recipient.addresses == {"ada@example.com"}


NO_REPORTS = {
    "nothing": b"",
    "a mail": b"Subject: hello\r\n\r\nHello, I am on holiday.\r\n",
    "no boundary": b"Content-Type: multipart/report\r\n\r\n--\r\n",
    "no status": b'Content-Type: multipart/report; boundary="b"\r\n\r\n--b\r\n\r\nhello\r\n--b--\r\n',
    "no recipient": b'Content-Type: multipart/report; boundary="b"\n\n--b\nContent-Type: message/delivery-status\n\nX: y\n--b--',
    "headers without end": b"a: b\n" * 100_000,
    "one long header": b"Content-Type: multipart/report; " + b'a="' * 300_000,
    "nested": b"".join(
        b"Content-Type: multipart/mixed; boundary=b%d\n\n--b%d\n" % (depth, depth) for depth in range(20_000)
    ),
    "many parts": b"Content-Type: multipart/mixed; boundary=b\n\n" + b"--b\n\n\n" * 150_000,
    "blanks": b"Content-Type: multipart/mixed; boundary=b\n\n--b" + b" " * 1_000_000 + b"x",
    "parameters": b"Content-Type: multipart/mixed" + b";" * 60_000 + b"boundary=b\n\n--b\n",
    "encoded boundary": b"Content-Type: multipart/mixed; boundary*=nonsense'x'%ff\n\n--b\n",
    "null bytes": b"\0" * 1_000_000,
}


@pytest.mark.parametrize("name", NO_REPORTS)
def test_what_is_no_report_is_refused_in_a_moment(name: str) -> None:
    begun = process_time()
    with pytest.raises(NotABounce):
        read(NO_REPORTS[name])
    # The worst form takes a tenth of it; nested or repeated reading would take minutes.
    assert process_time() - begun < 5


HOSTILE = {
    "many groups": b"Action: failed\nStatus: 5.1.1\n\n" * 30_000,
    "many fields": b"Action: failed\nStatus: 5.1.1\n" * 30_000,
    "a long address": b"Action: failed\nStatus: 5.1.1\nFinal-Recipient: rfc822; " + b"a@" * 400_000,
    "a long diagnosis": b"Action: failed\nDiagnostic-Code: smtp; " + b"5.1." * 200_000,
    "folded for ever": b"Action: failed\n" + b" \n" * 400_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_status_costs_no_more_than_its_length(name: str) -> None:
    begun = process_time()
    head = b'Content-Type: multipart/report; boundary="b"\n\n--b\nContent-Type: message/delivery-status\n\n'
    found = read(head + HOSTILE[name] + b"\n--b--\n")
    assert len(found.recipients) <= 50
    assert process_time() - begun < 5


@given(st.binary(max_size=2000), st.integers(0, 1200), st.integers(0, 1200))
def test_any_bytes_in_any_place_are_read_or_refused(noise: bytes, begin: int, end: int) -> None:
    whole = report()
    for raw in (noise, whole[:begin] + noise + whole[end:]):
        try:
            read(raw)
        except NotABounce:
            continue


PATHS = ReturnPaths("bounces@mail.example", b"k" * 32)


def test_an_envelope_address_names_its_mail_whatever_its_case_and_no_other_is_believed() -> None:
    event_id = uuid4()
    address = PATHS.of(event_id)
    assert len(address.partition("@")[0]) <= 64
    assert PATHS.event_of(address) == PATHS.event_of(address.upper()) == event_id
    token = address.partition("+")[2].partition("@")[0]
    flipped = ("a" if token[0] != "a" else "b") + token[1:]
    for other in (
        f"bounces+{flipped}@mail.example",
        f"bounces+{token[:-1]}@mail.example",
        f"bounces+{token}@other.example",
        f"others+{token}@mail.example",
        "bounces@mail.example",
        "bounces+@mail.example",
        f"bounces+{'!' * 39}@mail.example",
        "",
    ):
        assert PATHS.event_of(other) is None
    assert ReturnPaths("bounces@mail.example", b"o" * 32).event_of(address) is None


@pytest.mark.parametrize("mailbox", ["", "bounces", "b" * 30 + "@mail.example", "b@@mail.example"])
def test_a_mailbox_that_cannot_be_an_envelope_address_is_refused(mailbox: str) -> None:
    with pytest.raises(ValueError, match="must"):
        ReturnPaths(mailbox, b"k" * 32)
