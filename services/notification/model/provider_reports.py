"""Reads the reports of a mail provider's webhook: our own form in JSON, which a line of configuration or a small function makes."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from kit.identity.email_addresses import canonical

from .bounces import NotABounce, RecipientReport, Report
from .enhanced_codes import EnhancedCode

_MOST_BOUNCES = 100
_MOST_CHARACTERS = 1000


def read(body: bytes) -> Sequence[Report]:
    """Read reports. Raises NotABounce."""
    try:
        told = json.loads(body)
    except (ValueError, RecursionError):
        raise NotABounce("it is no JSON") from None
    listed = told.get("bounces") if isinstance(told, dict) else None
    if not isinstance(listed, list) or not 0 < len(listed) <= _MOST_BOUNCES:
        raise NotABounce(f"it needs a list `bounces` of 1 to {_MOST_BOUNCES} objects")
    return [_report(each) for each in listed]


def _report(told: Any) -> Report:
    if not isinstance(told, dict):
        raise NotABounce("each of `bounces` must be an object")
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
