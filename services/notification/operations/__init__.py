"""The notification service's operations. They open and end the transactions."""

from __future__ import annotations

from dataclasses import dataclass

from kit.data.paging import Pages
from kit.identity.signing import Signer
from kit.rpc.resources import Resources

from ..adapters.smtp import Smtp
from ..config import NotificationSettings, NotificationWorkerSettings
from .erasing import Erasing
from .mailing import Mailing
from .notifications import Notifications, Notifier


@dataclass(frozen=True)
class Operations:
    """The operations that the servicer calls."""

    notifications: Notifications


@dataclass(frozen=True)
class WorkerOperations:
    """The operations that the worker calls."""

    mailing: Mailing
    notifier: Notifier
    erasing: Erasing
    smtp: Smtp


def operations(settings: NotificationSettings, resources: Resources) -> Operations:
    return Operations(Notifications(resources.db, Pages(Signer(settings.cursor_key.get_secret_value()))))


def worker_operations(settings: NotificationWorkerSettings, resources: Resources) -> WorkerOperations:
    smtp = Smtp(
        settings.smtp_host,
        settings.smtp_port,
        username=settings.smtp_username,
        password=settings.smtp_password.get_secret_value(),
        start_tls=settings.smtp_start_tls,
        seconds=settings.smtp_seconds,
    )
    return WorkerOperations(
        Mailing(resources.db, smtp, resources.clock, sender=settings.mail_from),
        Notifier(resources.db, resources.clock),
        Erasing(resources.db),
        smtp,
    )
