"""Every SQL statement of the notification service, one module per subject."""

from __future__ import annotations

from . import deliveries, erasure, mails, notifications

__all__ = ["deliveries", "erasure", "mails", "notifications"]
