"""Sealed secrets open only whole, under their key and for their purpose."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kit.identity.sealing import Seal, Unsealable

SEAL = Seal(b"k" * 32)


@given(st.binary())
def test_what_is_sealed_can_be_unsealed_and_does_not_show(secret: bytes) -> None:
    sealed = SEAL.seal("mail", secret)
    assert SEAL.unseal("mail", sealed) == secret
    assert len(secret) < 4 or secret not in sealed


def test_equal_secrets_look_different() -> None:
    assert SEAL.seal("mail", b"123456") != SEAL.seal("mail", b"123456")


@given(st.integers(min_value=0), st.integers(min_value=1, max_value=255))
def test_sealed_bytes_with_any_byte_changed_do_not_open(position: int, change: int) -> None:
    sealed = bytearray(SEAL.seal("mail", b"123456"))
    sealed[position % len(sealed)] ^= change
    with pytest.raises(Unsealable):
        SEAL.unseal("mail", bytes(sealed))


@given(st.binary(max_size=64))
def test_bytes_that_were_never_sealed_do_not_open(sealed: bytes) -> None:
    with pytest.raises(Unsealable):
        SEAL.unseal("mail", sealed)
    with pytest.raises(Unsealable):
        SEAL.unseal("mail", b"\x01" + sealed)


def test_a_secret_does_not_open_for_another_purpose() -> None:
    with pytest.raises(Unsealable):
        SEAL.unseal("export", SEAL.seal("mail", b"123456"))


def test_a_secret_does_not_open_under_another_key() -> None:
    with pytest.raises(Unsealable) as raised:
        Seal(b"x" * 32).unseal("mail", SEAL.seal("mail", b"123456"))
    assert raised.value.__cause__ is None
