"""Every SQL statement of the notification service, a module for each subject."""

from __future__ import annotations

from . import erasure, mails, notifications

__all__ = ["erasure", "mails", "notifications"]
