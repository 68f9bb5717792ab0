"""The settings of the notification service; the only place that reads its environment."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr, ValidationInfo

from kit.identity.display_text import visible
from kit.runtime.settings import DatabaseSettings, InboxSettings, Key, Keys, ProcessSettings

from .adapters.dkim_signing import read_key
from .adapters.smtp import Tls, authorities
from .model.letters import Link, languages
from .model.rendering import Sender
from .model.return_paths import ReturnPaths
from .model.webhook_urls import WebhookRules
from .model.words import NAME_LENGTH

_LABEL = r"[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
_HOST_NAME = re.compile(rf"(?=.{{1,255}}\Z)({_LABEL}\.)+(?![0-9]+\Z){_LABEL}")


def _with_address(text: str, info: ValidationInfo) -> str:
    sender = Sender(text)
    if sender.domain.endswith(".invalid") and info.data.get("environment") == "production":
        raise ValueError("has an address that no mail server takes; set one of your own domain")
    return text


def _readable(path: str) -> str:
    try:
        authorities(path)
    except OSError:  # ssl.SSLError is one.
        raise ValueError("is no file with certificates in PEM form") from None
    return path


def _not_in_production(allowed: bool, info: ValidationInfo) -> bool:
    if allowed and info.data.get("environment") == "production":
        raise ValueError("is for development: the password would cross the network unencrypted")
    return allowed


def _with_username(password: SecretStr, info: ValidationInfo) -> SecretStr:
    username = info.data.get("smtp_username")
    if username is not None and bool(username) != bool(password.get_secret_value()):
        raise ValueError("goes with STORYMESH_SMTP_USERNAME: set both or neither")
    return password


def _host_name(name: str) -> str:
    literal = name.startswith("[") and name.endswith("]")
    try:
        if literal:
            ipaddress.ip_address(name[1:-1].removeprefix("IPv6:"))
    except ValueError:
        literal = False
    if name and not literal and not _HOST_NAME.fullmatch(name):
        raise ValueError("needs a host name with a domain, as in mail.example.com, or an address as in [192.0.2.1]")
    return name


def _web_address(url: str) -> str:
    try:
        return Link(url)
    except ValueError:
        raise ValueError("needs a URL such as https://example.com") from None


def _image(url: str, info: ValidationInfo) -> str:
    if url and not _web_address(url).startswith("https://") and info.data.get("environment") == "production":
        raise ValueError("needs https, because mail programs load no image without it")
    return url


def _name(text: str) -> str:
    if not text or len(text) > NAME_LENGTH or visible(text) != text:
        raise ValueError(f"needs a name of at most {NAME_LENGTH} characters on one line")
    return text


def _color(text: str) -> str:
    if not re.fullmatch(r"#[0-9a-fA-F]{6}", text):
        raise ValueError("needs a colour such as #5b4bdb")
    return text


def _written(language: str) -> str:
    if language not in languages():
        raise ValueError(f"needs a language in which letters are written: {', '.join(languages())}")
    return language


_MailFrom = Annotated[str, AfterValidator(_with_address), Field(description="The sender of all mail.")]
_NOBODY = "Storymesh <no-reply@storymesh.invalid>"


class LetterSettings(ProcessSettings):
    """Settings of what mails say and how they look; all that previews of them need."""

    mail_from: _MailFrom = _NOBODY
    public_url: Annotated[str, AfterValidator(_web_address)] = Field(
        "http://127.0.0.1:8080", description="Where links in mails lead."
    )
    default_language: Annotated[str, AfterValidator(_written)] = Field(
        "en", description="The language of mails to people who have chosen none: `en` or `de`."
    )
    brand_name: Annotated[str, AfterValidator(_name)] = Field(
        "Storymesh", description="The name that mails are signed with and that their texts use."
    )
    brand_color: Annotated[str, AfterValidator(_color)] = Field(
        "#5b4bdb", description="The colour of buttons and marks in mails, as #rrggbb."
    )
    brand_logo_url: Annotated[str, AfterValidator(_image)] = Field(
        "",
        description="The image at the top of mails, 32 pixels high; empty: the first letter of the name in a square.",
    )
    brand_address: str = Field(
        "",
        max_length=500,
        description="What every mail ends with: who sends it, and their postal address; may have several lines.",
    )


_UnsubscribeKey = Annotated[
    Keys,
    Field(
        description="Signs the links by which mails let people unsubscribe; the same for all processes. To replace it, put the new "
        "one before the former, after a comma: without the former, the links of all mails that were sent before end."
    ),
]


def _bounce_mailbox(address: str) -> str:
    if address:
        ReturnPaths(address, b"")
    return address


def _key_file(path: str) -> str:
    if path:
        read_key(path)
    return path


class BounceSettings(DatabaseSettings):
    """Settings of both processes, by which a mail that comes back is known again."""

    address_key: Key = Field(
        description="Makes the digests under which suppressed addresses are stored, and signs envelope addresses. With another key "
        "none of the stored ones is found any more."
    )
    mail_from: _MailFrom = _NOBODY
    bounce_address: Annotated[str, AfterValidator(_bounce_mailbox)] = Field(
        "",
        description="A mailbox for mails that come back, which takes mail to `name+anything@domain` too: each mail gets an "
        "envelope address of its own there. Empty: they come back to the sender, and are known by the Message-ID that they quote.",
    )


def _not_local_in_production(local: bool, info: ValidationInfo) -> bool:
    if local and info.data.get("environment") == "production":
        raise ValueError("is for development: anybody could make the service speak to its own machine")
    return local


def _ports(text: str) -> str:
    if not all(1 <= int(port) <= 65535 for port in text.split(",")):
        raise ValueError("needs ports between 1 and 65535, separated by commas")
    return text


def _networks(text: str) -> str:
    try:
        _networks_in(text)
    except ValueError:
        raise ValueError("needs networks such as 198.51.100.0/24 or 2001:db8::/32, separated by commas") from None
    return text


def _networks_in(text: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(each.strip()) for each in text.split(",") if each.strip())


class WebhookSettings(DatabaseSettings):
    """Settings of webhooks, in both processes: one tries them out, the other sends."""

    seal_key: Key = Field(
        description="Opens the sealed one-time codes of auth, so it is the same in both services, and seals webhooks' URLs and "
        "secrets: under another key those that were registered before stand still."
    )
    webhook_ports: Annotated[str, AfterValidator(_ports)] = Field(
        "443,8443",
        pattern=r"^[0-9]{1,5}(,[0-9]{1,5})*$",
        description="The ports that webhooks may lead to, separated by commas.",
    )
    webhook_refused_networks: Annotated[str, AfterValidator(_networks)] = Field(
        "",
        description="Networks to which no webhook leads, separated by commas, besides all that are not public: such as the public "
        "addresses of your own machines.",
    )
    webhook_local: Annotated[bool, AfterValidator(_not_local_in_production)] = Field(
        False,
        description="Allow webhooks to this machine, by http and at any port, for development; refused in production.",
    )
    webhook_ca_file: Annotated[str, AfterValidator(_readable)] = Field(
        "", description="PEM file of the authorities that may certify webhooks' receivers; empty: those of the system."
    )
    webhook_connect_seconds: float = Field(
        5.0, gt=0, description="How long it may take to connect to a webhook's receiver, and as long again for TLS."
    )
    webhook_seconds: float = Field(10.0, gt=0, description="How long a webhook's message may take altogether.")

    @property
    def webhook_rules(self) -> WebhookRules:
        """Where webhooks may lead."""
        ports = frozenset(map(int, self.webhook_ports.split(",")))
        return WebhookRules(ports, self.webhook_local, _networks_in(self.webhook_refused_networks))


class NotificationSettings(WebhookSettings, BounceSettings):
    """Settings of the `serve` process."""

    bounce_webhook_key: Key | None = Field(
        None,
        description="Verifies the mail provider's calls that tell of bounces and complaints; without it all of them are refused.",
    )

    cursor_key: Key = Field(description="Signs page tokens and resume tokens; the same for all replicas.")
    heartbeat_seconds: float = Field(15.0, gt=0, description="Silence on a watch after which a heartbeat is sent.")
    watches: int = Field(5000, ge=1, description="Watches that a process serves at a time.")
    watches_per_person: int = Field(20, ge=1, description="Watches that one person may have open at a process.")
    ratelimit_target: str = Field(
        "",
        description="Address and port of the rate limiter, which bounds a person's watches over all replicas; empty: none.",
    )
    unsubscribe_key: _UnsubscribeKey
    webhooks_per_person: int = Field(5, ge=1, description="Webhooks that one person may have.")
    system_webhooks: int = Field(
        5, ge=1, description="Webhooks that administrators may register for everybody's notices."
    )


class NotificationWorkerSettings(LetterSettings, WebhookSettings, InboxSettings, BounceSettings):
    """Settings of the `worker` process."""

    mail_concurrency: int = Field(4, ge=1, description="Events, and so mails, that a worker deals with at a time.")
    story_target: str = Field("127.0.0.1:50051", description="Address and port of the story service.")
    unsubscribe_key: _UnsubscribeKey
    webhook_concurrency: int = Field(8, ge=1, description="Messages to webhooks that a worker sends at a time.")
    webhook_failing_days: float = Field(
        3.0, gt=0, description="Days of failures in a row after which a webhook is disabled."
    )
    smtp_host: str = Field("127.0.0.1", description="The mail server that takes outgoing mail.")
    smtp_port: int = Field(1025, ge=1, le=65535, description="Its port.")
    smtp_tls: Tls = Field(
        "opportunistic",
        description="`opportunistic`: encrypts by STARTTLS where the server offers it. `starttls`: sends nothing without it. "
        "`implicit`: TLS from the first byte, usually at port 465. The last two check the server's certificate; the first one does "
        "if there is a username.",
    )
    smtp_ca_file: Annotated[str, AfterValidator(_readable)] = Field(
        "", description="PEM file of the authorities that may certify the mail server; empty: those of the system."
    )
    smtp_username: str = Field("", description="For a mail server that asks for one; sent over TLS only.")
    smtp_password: Annotated[SecretStr, AfterValidator(_with_username)] = Field(
        SecretStr(""), description="The username's password."
    )
    smtp_password_in_clear: Annotated[bool, AfterValidator(_not_in_production)] = Field(
        False,
        description="Send username and password also without TLS where the mail server offers none; refused in production.",
    )
    smtp_ehlo_name: Annotated[str, AfterValidator(_host_name)] = Field(
        "",
        description="By which name the worker introduces itself to the mail server (EHLO); empty: the domain of "
        "`STORYMESH_MAIL_FROM`. Many servers take mail only from a name that the DNS knows.",
    )
    smtp_seconds: float = Field(
        60.0,
        gt=0,
        description="How long the mail server may take for each step, except for its reply to the end of a mail.",
    )
    smtp_final_reply_seconds: float = Field(
        600.0,
        gt=0,
        description="How long the mail server may take to reply to the end of a mail (RFC 5321, 4.5.3.2.6). After a shorter wait, "
        "mails that it takes slowly come twice.",
    )
    smtp_mails_per_second: float = Field(
        0.0, ge=0, description="Mails that all workers together send a second; 0: as many as they can."
    )
    smtp_domain_mails_per_second: float = Field(
        0.0,
        ge=0,
        description="Mails that all workers together send a second to one domain of recipients; 0: as many as they can.",
    )
    bounce_folder: str = Field(
        "",
        description="A maildir, or a folder of `*.eml` files, with mails that came back, and complaints. They are deleted once "
        "they are read. Empty: none.",
    )
    dkim_key_file: Annotated[str, AfterValidator(_key_file)] = Field(
        "", description="PEM file of the RSA key that signs all mail (DKIM, RFC 6376). Empty: mail is not signed."
    )
    dkim_selector: str = Field(
        "storymesh",
        pattern=r"^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$",
        description="Names the key in the DNS: its public half is the record SELECTOR._domainkey of the sender's domain.",
    )
    feedback_sender: str = Field(
        "storymesh",
        pattern=r"^[A-Za-z0-9]{5,15}$",
        description="Names us in the header Feedback-ID, by which mailbox providers group complaints.",
    )
    mails_per_hour: int = Field(
        60,
        ge=0,
        description="Mails to one person in an hour, those about security not counted. More wait. 0: any number.",
    )
    delivery_days: float = Field(
        90.0,
        ge=14,
        description="Days that deliveries, and what was decided about them, are kept for administrators.",
    )
    notification_days: float = Field(
        90.0, gt=0, description="Days that a notification inside the application is kept after it happened last."
    )
    notification_change_days: float = Field(
        7.0, gt=0, description="Days after which a watch of notifications cannot be resumed any more."
    )
