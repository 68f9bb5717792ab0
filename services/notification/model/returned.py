"""Reads whatever comes back about a mail: that it could not be delivered, or that its reader complains."""

from __future__ import annotations

from . import bounces, complaints, report_parts
from .bounces import Report
from .complaints import Complaint


def read(raw: bytes) -> Report | Complaint:
    """Read a report. Raises NotABounce."""
    mail = report_parts.read(raw, bounces.STATUS_TYPES | complaints.FEEDBACK_TYPES)
    return complaints.read(mail) if mail.media_type in complaints.FEEDBACK_TYPES else bounces.read(mail)
