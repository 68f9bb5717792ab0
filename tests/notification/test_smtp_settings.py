"""What a person reads who got a setting of the mail server wrong."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

from kit.runtime import base64url
from kit.runtime.settings import load
from services.notification.config import NotificationWorkerSettings
from tests.notification.certificates import Authority

_PRODUCTION = {"ENVIRONMENT": "production", "MAIL_FROM": "Storymesh <no-reply@example.org>"}
_URLS = {
    "DATABASE_URL": "postgresql+psycopg://role:correct-horse-battery@db.example/notification",
    "REDIS_URL": "redis://mesh:correct-horse-battery@redis.example",
}

_REQUIRED = {name.upper() for name, field in NotificationWorkerSettings.model_fields.items() if field.is_required()}

Read = Callable[..., NotificationWorkerSettings]


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Read:
    def reading(**settings: str) -> NotificationWorkerSettings:
        keys = {name: base64url.encode(hashlib.sha256(name.encode()).digest()) for name in _REQUIRED - _URLS.keys()}
        for name, value in (_URLS | keys | settings).items():
            monkeypatch.setenv(f"STORYMESH_{name}", value)
        return load(NotificationWorkerSettings)

    return reading


def test_the_defaults_encrypt_where_the_server_offers_it_and_wait_ten_minutes_for_the_end_of_a_mail(read: Read) -> None:
    settings = read(**_PRODUCTION)
    assert settings.smtp_tls == "opportunistic"
    assert settings.smtp_final_reply_seconds == 600
    assert settings.smtp_password_in_clear is False


WRONG = {
    "unknown TLS": (
        {"SMTP_TLS": "yes"},
        "STORYMESH_SMTP_TLS: Input should be 'opportunistic', 'starttls' or 'implicit'",
    ),
    "the former setting": (
        {"SMTP_START_TLS": "true"},
        "STORYMESH_SMTP_START_TLS: is no setting; the nearest one is STORYMESH_SMTP_TLS",
    ),
    "no such file": (
        {"SMTP_CA_FILE": "/nowhere.pem"},
        "STORYMESH_SMTP_CA_FILE: is no file with certificates in PEM form",
    ),
    "no certificates": ({"SMTP_CA_FILE": __file__}, "STORYMESH_SMTP_CA_FILE: is no file with certificates in PEM form"),
    "no password": (
        {"SMTP_USERNAME": "mesh"},
        "STORYMESH_SMTP_PASSWORD: goes with STORYMESH_SMTP_USERNAME: set both or neither",
    ),
    "no username": (
        {"SMTP_PASSWORD": "s"},
        "STORYMESH_SMTP_PASSWORD: goes with STORYMESH_SMTP_USERNAME: set both or neither",
    ),
    "in clear": (
        {**_PRODUCTION, "SMTP_PASSWORD_IN_CLEAR": "true"},
        "STORYMESH_SMTP_PASSWORD_IN_CLEAR: is for development: the password would cross the network unencrypted",
    ),
    **{
        f"introduced as {name!r}": (
            {"SMTP_EHLO_NAME": name},
            "STORYMESH_SMTP_EHLO_NAME: needs a host name with a domain, as in mail.example.com, or an address as in [192.0.2.1]",
        )
        for name in (
            "localhost",
            "a b.example",
            "mail.example\r\nRSET",
            "192.0.2.1",
            "[nowhere]",
            "müller.example",
            "-.example",
        )
    },
    "no time": (
        {"SMTP_FINAL_REPLY_SECONDS": "0"},
        "STORYMESH_SMTP_FINAL_REPLY_SECONDS: Input should be greater than 0",
    ),
    "a negative rate": (
        {"SMTP_MAILS_PER_SECOND": "-1"},
        "STORYMESH_SMTP_MAILS_PER_SECOND: Input should be greater than or equal to 0",
    ),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_setting_ends_the_process_with_a_sentence(
    kind: str, read: Read, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, sentence = WRONG[kind]
    with pytest.raises(SystemExit) as ended:
        read(**settings)
    assert ended.value.code == 78
    assert capsys.readouterr().err.splitlines() == [sentence]


@pytest.mark.parametrize("name", ["mail.example.com", "[192.0.2.1]", "[IPv6:2001:db8::1]", "xn--bcher-kva.example"])
def test_a_name_by_which_servers_know_hosts_is_taken(name: str, read: Read) -> None:
    assert read(SMTP_EHLO_NAME=name).smtp_ehlo_name == name


def test_a_password_may_go_in_clear_in_development(read: Read) -> None:
    assert read(SMTP_USERNAME="mesh", SMTP_PASSWORD="s", SMTP_PASSWORD_IN_CLEAR="true").smtp_password_in_clear


def test_a_file_of_authorities_is_taken(read: Read, tmp_path: Path) -> None:
    path = Authority.new(tmp_path).file
    assert read(SMTP_CA_FILE=path).smtp_ca_file == path
