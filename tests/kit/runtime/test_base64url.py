"""One written form of bytes, read strictly."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.runtime import base64url


@given(st.binary(max_size=80))
def test_what_is_written_reads_back_and_needs_no_escaping(raw: bytes) -> None:
    text = base64url.encode(raw)
    assert base64url.decode(text) == raw
    assert set(text) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


@pytest.mark.parametrize("text", ["-_-_", "+/+/", "+_-/"])
def test_both_alphabets_are_read_alike(text: str) -> None:
    assert base64url.decode(text) == b"\xfb\xff\xbf"


@pytest.mark.parametrize("text", ["aQ", "aQ=="])
def test_padding_may_be_left_out(text: str) -> None:
    assert base64url.decode(text) == b"i"


@pytest.mark.parametrize("text", ["a", "aaaaa", "a b", "aQ\n", "aQ===", "aQ==aQ==", "ü", "\ud800", "!!!!", "=", "=a"])
def test_anything_else_is_refused_and_not_skipped(text: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011, the error has several types below this one
        base64url.decode(text)
