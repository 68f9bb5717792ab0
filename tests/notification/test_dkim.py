"""Signatures of mails, verified as receivers do, and files that hold no usable key."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import dkim
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from services.notification.adapters.dkim_signing import DkimSigner, UnusableKey, read_key

MAIL = (
    b"From: Storymesh <no-reply@mail.example>\r\nTo: ada@example.com\r\nSubject: Your code\r\n"
    b"Message-ID: <1@mail.example>\r\nFeedback-ID: CODE:::storymesh\r\n\r\nYour code is 123456.\r\n"
)
KEY = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def pem(key: rsa.RSAPrivateKey, form: PrivateFormat = PrivateFormat.PKCS8) -> bytes:
    return key.private_bytes(Encoding.PEM, form, NoEncryption())


def record(key: rsa.RSAPrivateKey) -> bytes:
    public = key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return b"v=DKIM1; k=rsa; p=" + base64.b64encode(public)


def dns(name: bytes, timeout: float = 5) -> bytes:
    return record(KEY) if name == b"mesh._domainkey.mail.example." else b""


@pytest.mark.parametrize("form", [PrivateFormat.PKCS8, PrivateFormat.TraditionalOpenSSL])
async def test_a_receiver_verifies_a_signed_mail_and_notices_every_change(form: PrivateFormat, tmp_path: Path) -> None:
    path = tmp_path / "dkim.pem"
    path.write_bytes(pem(KEY, form))
    signed = await DkimSigner("mail.example", "mesh", read_key(str(path))).signed(MAIL)
    assert signed.endswith(MAIL)
    assert signed.startswith(b"DKIM-Signature: ")
    assert dkim.verify(signed, dnsfunc=dns)
    for changed in (
        signed.replace(b"123456", b"654321"),
        signed.replace(b"Subject: Your code", b"Subject: Win"),
        signed.replace(b"To: ada@", b"To: bob@"),
        signed.replace(b"CODE:::", b"WELCOME:::"),
        signed.replace(b"Message-ID:", b"List-Unsubscribe: <https://evil.example>\r\nMessage-ID:"),
        signed.replace(b"From: ", b"From: Mallory <mallory@evil.example>\r\nFrom: "),
    ):
        assert changed != signed
        assert not dkim.verify(changed, dnsfunc=dns)


NO_KEYS: dict[str, tuple[Callable[[], bytes], str]] = {
    "nothing": (lambda: b"", "no private key"),
    "a public key": (
        lambda: KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo),
        "no private key",
    ),
    "a curve": (
        lambda: ec.generate_private_key(ec.SECP256R1()).private_bytes(
            Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()
        ),
        "no RSA key",
    ),
    "ed25519": (
        lambda: ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()),
        "no RSA key",
    ),
    "with a password": (
        lambda: KEY.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret")),
        "no private key",
    ),
}


@pytest.mark.parametrize("name", NO_KEYS)
def test_a_file_without_a_usable_key_is_refused_in_words(name: str, tmp_path: Path) -> None:
    content, words = NO_KEYS[name]
    path = tmp_path / "dkim.pem"
    path.write_bytes(content())
    with pytest.raises(UnusableKey, match=words):
        read_key(str(path))


def test_a_missing_file_is_refused_in_words(tmp_path: Path) -> None:
    with pytest.raises(UnusableKey, match="is no file"):
        read_key(str(tmp_path / "none.pem"))
