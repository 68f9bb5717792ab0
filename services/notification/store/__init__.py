"""Every SQL statement of the notification service, one module per subject."""

from __future__ import annotations

from . import erasure, mails, notifications

__all__ = ["erasure", "mails", "notifications"]
