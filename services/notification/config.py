"""The settings of the notification service; the only place that reads its environment."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr, ValidationInfo

from kit.runtime.settings import DatabaseSettings, InboxSettings, Key

from .model.rendering import Sender


def _with_address(text: str, info: ValidationInfo) -> str:
    sender = Sender(text)
    if sender.domain.endswith(".invalid") and info.data.get("environment") == "production":
        raise ValueError("has an address that no mail server takes; set one of your own domain")
    return text


class NotificationSettings(DatabaseSettings):
    """Settings of the `serve` process."""

    cursor_key: Key = Field(description="Signs page tokens; the same for all replicas.")


class NotificationWorkerSettings(InboxSettings):
    """Settings of the `worker` process."""

    mail_concurrency: int = Field(4, ge=1, description="Events, and so mails, that a worker deals with at a time.")
    seal_key: Key = Field(description="Opens the sealed one-time codes of auth; the same in both services.")
    smtp_host: str = Field("127.0.0.1", description="The mail server that takes outgoing mail.")
    smtp_port: int = Field(1025, ge=1, le=65535, description="Its port.")
    smtp_username: str = Field("", description="For a mail server that asks for one.")
    smtp_password: SecretStr = Field(SecretStr(""), description="The username's password.")
    smtp_start_tls: bool = Field(False, description="Refuse to send mail unencrypted: STARTTLS (RFC 3207) comes first.")
    smtp_seconds: float = Field(10.0, gt=0, description="How long each step of a delivery may take.")
    mail_from: Annotated[str, AfterValidator(_with_address)] = Field(
        "Storymesh <no-reply@storymesh.invalid>", description="The sender of all mail."
    )
    public_url: str = Field("http://127.0.0.1:8080", description="Where links in mails lead.")
