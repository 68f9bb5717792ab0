"""Reads the reports of a mail provider's webhook: our own form in JSON, which a line of configuration or a small function makes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from kit.identity.email_addresses import canonical

from .bounces import RecipientReport, Report
from .complaints import Complaint, feedback_type
from .enhanced_codes import EnhancedCode
from .report_parts import NotABounce

_MOST_REPORTS = 100
_MOST_CHARACTERS = 1000


def read(body: bytes) -> Sequence[Report | Complaint]:
    """Read reports. Raises NotABounce."""
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        raise NotABounce("it is no JSON") from None
    told = told if isinstance(told, dict) else {}
    bounces, complaints = told.get("bounces", []), told.get("complaints", [])
    listed = isinstance(bounces, list) and isinstance(complaints, list)
    if not listed or not 0 < len(bounces) + len(complaints) <= _MOST_REPORTS:
        raise NotABounce(f"it needs a list `bounces` or `complaints` of 1 to {_MOST_REPORTS} objects")
    if not all(isinstance(each, dict) for each in (*bounces, *complaints)):
        raise NotABounce("each of `bounces` and `complaints` must be an object")
    return [*map(_report, bounces), *map(_complaint, complaints)]


def _complaint(told: dict[str, Any]) -> Complaint:
    return Complaint(_text(told, "message_id", None), (), feedback_type(_text(told, "type", "abuse")))


def _report(told: dict[str, Any]) -> Report:
    recipient = _text(told, "recipient", "")
    code = EnhancedCode.begins(_text(told, "status", ""))
    addresses = frozenset({canonical(recipient)} if recipient else ())
    return Report(
        message_id=_text(told, "message_id", None),
        sent_to=(),
        recipients=(RecipientReport(_text(told, "action", "failed").lower(), code, addresses),),
    )


def _text(told: dict[str, Any], name: str, otherwise: str | None) -> str:
    value = told.get(name, otherwise)
    if not isinstance(value, str) or len(value) > _MOST_CHARACTERS:
        raise NotABounce(f"`{name}` must be a text of at most {_MOST_CHARACTERS} characters")
    return value
