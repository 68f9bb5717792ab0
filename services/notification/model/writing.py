"""The letter of each kind of notice, from the facts of its event."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any, cast

from . import Kind, Letter, texts

Facts = Mapping[str, Any]
"""The fields of an event and of the message sealed in it, by name; enum values by name, times in UTC."""


def write(kind: Kind, facts: Facts, *, public_url: str, now: datetime) -> Letter:
    """The letter to the person whom `first_name` names; without one it greets nobody by name."""
    return _WRITERS[kind](facts, public_url.rstrip("/"), now)


def _code(kind: Kind) -> Callable[[Facts, str, datetime], Letter]:
    def write_code(facts: Facts, _url: str, now: datetime) -> Letter:
        left = cast("datetime", facts["expire_time"]) - now
        return texts.code(kind, _name(facts), facts["code"], math.ceil(left.total_seconds() / 60))

    return write_code


def _name(facts: Facts) -> str:
    return str(facts.get("first_name", ""))


def _plain(text: Callable[[str], Letter]) -> Callable[[Facts, str, datetime], Letter]:
    return lambda facts, _url, _now: text(_name(facts))


_WRITERS: Mapping[Kind, Callable[[Facts, str, datetime], Letter]] = {
    Kind.CODE: _code(Kind.CODE),
    Kind.SIGN_IN_CODE: _code(Kind.SIGN_IN_CODE),
    Kind.PASSWORD_RESET_CODE: _code(Kind.PASSWORD_RESET_CODE),
    Kind.EMAIL_CHANGE_CODE: _code(Kind.EMAIL_CHANGE_CODE),
    Kind.REGISTRATION_REPEATED: _plain(texts.registration_repeated),
    Kind.WELCOME: _plain(texts.welcome),
    Kind.SESSION_REVOKED: _plain(texts.refresh_reused),
    Kind.PASSWORD_CHANGED: lambda facts, _url, _now: texts.password_changed(_name(facts), reset=facts["reset"]),
    Kind.PASSWORD_DISABLED: _plain(texts.password_disabled),
    Kind.EMAIL_CHANGED: _plain(texts.email_changed),
    Kind.EMAIL_CHANGE_BEGUN: lambda facts, url, _now: texts.email_change_begun(
        _name(facts), f"{url}/v1/account:stopEmailChange", facts["stop_token"], facts["stop_expire_time"]
    ),
    Kind.EMAIL_CHANGE_STOPPED: _plain(texts.email_change_stopped),
    Kind.ADDRESS_CLAIMED: _plain(texts.address_claimed),
    Kind.NEW_DEVICE: lambda facts, _url, _now: texts.new_device(
        _name(facts), facts["device_name"], facts["ip"], facts["sign_in_time"]
    ),
    Kind.USERNAME_CHANGED: _plain(texts.username_changed),
    Kind.ACCOUNT_DELETED: _plain(texts.account_deleted),
    Kind.DIGEST: lambda facts, url, now: texts.digest(
        _name(facts),
        [write(kind, each, public_url=url, now=now).subject for kind, each in facts["notices"]],
        facts["more"],
    ),
    Kind.STORY_READY: lambda facts, url, _now: texts.story_ready(
        _name(facts), facts["title"], facts.get("page_url", "")
    ),
    Kind.STORY_FAILED: lambda facts, _url, _now: texts.story_failed(_name(facts), facts["reason"]),
}
