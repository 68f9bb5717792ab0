"""Signed tokens open only where they were made for."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.identity.signing import Signer
from kit.runtime import base64url

SIGNER = Signer(b"k" * 32)


@given(st.text(), st.text())
def test_a_token_opens_for_its_scope_and_is_fit_for_a_url(scope: str, text: str) -> None:
    token = SIGNER.sign(scope, text)
    assert SIGNER.open(scope, token) == text
    assert set(token) <= set("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_")


@given(st.text(), st.text(), st.text())
def test_a_token_opens_for_no_other_scope(scope: str, other: str, text: str) -> None:
    if scope != other:
        assert SIGNER.open(other, SIGNER.sign(scope, text)) is None


def test_scope_and_text_cannot_be_shifted_against_each_other() -> None:
    assert SIGNER.open("ab", SIGNER.sign("a", "bc")) is None
    tag, body = base64url.decode(SIGNER.sign("a", "bc"))[:16], b"c"
    assert SIGNER.open("ab", base64url.encode(tag + body)) is None


@given(st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_a_token_with_any_byte_changed_is_refused(position: int, change: int) -> None:
    raw = bytearray(base64url.decode(SIGNER.sign("scope", "0123456789ab")))
    raw[position % len(raw)] ^= change
    assert SIGNER.open("scope", base64url.encode(bytes(raw))) is None


def test_a_token_under_another_key_is_refused() -> None:
    assert Signer(b"x" * 32).open("scope", SIGNER.sign("scope", "text")) is None


@pytest.mark.parametrize("token", ["", "a", "=", "ü", "\ud800", "!!!!", "A" * 21, "A" * 600, " " * 8])
def test_garbage_is_refused(token: str) -> None:
    assert SIGNER.open("scope", token) is None


@given(st.text())
def test_no_text_that_was_not_signed_opens(token: str) -> None:
    assert SIGNER.open("scope", token) is None


@given(st.text(), st.uuids())
def test_a_token_of_an_id_is_short_and_opens_for_its_scope_alone(scope: str, identifier: UUID) -> None:
    token = SIGNER.sign_id(scope, identifier)
    assert len(token) == 43
    assert SIGNER.open_id(scope, token) == identifier
    assert SIGNER.open_id(scope + "x", token) is None
    assert Signer(b"x" * 32).open_id(scope, token) is None


@given(st.uuids(), st.integers(min_value=0, max_value=31), st.integers(min_value=1, max_value=255))
def test_a_token_of_an_id_with_any_byte_changed_is_refused(identifier: UUID, position: int, change: int) -> None:
    raw = bytearray(base64url.decode(SIGNER.sign_id("scope", identifier)))
    raw[position] ^= change
    assert SIGNER.open_id("scope", base64url.encode(bytes(raw))) is None


def test_only_one_spelling_of_a_token_of_an_id_opens() -> None:
    token = SIGNER.sign_id("scope", UUID(int=7))
    others = {token[:-1] + last for last in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"} - {
        token
    }
    same_bytes = {other for other in others if base64url.decode(other) == base64url.decode(token)}
    assert same_bytes
    assert [other for other in (*others, token + "=") if SIGNER.open_id("scope", other) is not None] == []


@given(st.text())
def test_no_text_that_was_not_signed_opens_as_an_id(token: str) -> None:
    assert SIGNER.open_id("scope", token) is None
    assert SIGNER.open_id("scope", SIGNER.sign("scope", token)) is None
