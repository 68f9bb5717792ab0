"""Signatures of webhook calls: only the key's own, of this body, id and time."""

from __future__ import annotations

import base64
from datetime import UTC, datetime, timedelta

import pytest

from services.notification.model.webhook_signatures import TOLERANCE, is_signed, signature

KEY, BODY = b"k" * 32, b'{"bounces": []}'
NOW = datetime(2026, 11, 30, tzinfo=UTC)
TIME = str(int(NOW.timestamp()))
GOOD = signature(KEY, "msg_1", TIME, BODY)


def test_the_specifications_own_example_is_signed_as_it_says() -> None:
    key = base64.b64decode("MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    made = signature(key, "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", b'{"test": 2432232314}')
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


@pytest.mark.parametrize("offset", [timedelta(0), TOLERANCE, -TOLERANCE])
def test_a_signed_call_of_now_is_taken_beside_others_keys_signatures(offset: timedelta) -> None:
    for signatures in (GOOD, f"v1,AAAA {GOOD}", f"v1a,AAAA {GOOD} v1,!!", f"{GOOD} {GOOD}"):
        assert is_signed(KEY, "msg_1", TIME, signatures, body=BODY, now=NOW + offset)


@pytest.mark.parametrize(
    ("call_id", "timestamp", "signatures", "body", "late"),
    [
        ("msg_2", TIME, GOOD, BODY, 0),
        ("", TIME, signature(KEY, "", TIME, BODY), BODY, 0),
        ("msg_1", str(int(TIME) + 1), GOOD, BODY, 0),
        ("msg_1", TIME, GOOD, BODY + b" ", 0),
        ("msg_1", TIME, GOOD, BODY, 301),
        ("msg_1", TIME, GOOD, BODY, -301),
        ("msg_1", TIME, signature(b"o" * 32, "msg_1", TIME, BODY), BODY, 0),
        ("msg_1", TIME, GOOD.replace("v1,", "v2,"), BODY, 0),
        ("msg_1", TIME, GOOD[:-4], BODY, 0),
        ("msg_1", TIME, GOOD.removeprefix("v1,"), BODY, 0),
        ("msg_1", TIME, "", BODY, 0),
        ("msg_1", TIME, "v1,", BODY, 0),
        ("msg_1", "", signature(KEY, "msg_1", "", BODY), BODY, 0),
        ("msg_1", f"-{TIME}", signature(KEY, "msg_1", f"-{TIME}", BODY), BODY, 0),
        ("msg_1", "٣", signature(KEY, "msg_1", "٣", BODY), BODY, 0),
        ("msg_1", TIME, " ".join(["v1,AAAA"] * 100 + [GOOD]), BODY, 0),
    ],
)
def test_any_other_call_is_refused(call_id: str, timestamp: str, signatures: str, body: bytes, late: int) -> None:
    assert not is_signed(KEY, call_id, timestamp, signatures, body=body, now=NOW + timedelta(seconds=late))
