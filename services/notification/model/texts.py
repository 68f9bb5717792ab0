"""The texts of every mail and notification. Names and titles come from people and models, and pass through `words`.

A mail to an unproven address holds none of them; otherwise anybody could have text of their choice mailed to a stranger.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from . import Kind, Letter
from .words import NAME_LENGTH, TITLE_LENGTH, plain

_CODES = {
    Kind.CODE: (
        "Your Storymesh code",
        "",
        "If you did not ask for it, ignore this mail: nothing happens without it.",
    ),
    Kind.SIGN_IN_CODE: (
        "Your Storymesh sign-in code",
        " It signs you in, or confirms a change of your account, its deletion included: give it to nobody.",
        "If you did not ask for it, ignore this mail: nobody can sign in without it.",
    ),
    Kind.PASSWORD_RESET_CODE: (
        "Reset your Storymesh password",
        " It lets you choose a new password: give it to nobody.",
        "If you did not ask for it, ignore this mail: your password is unchanged.",
    ),
    Kind.EMAIL_CHANGE_CODE: (
        "Confirm your new Storymesh address",
        " It moves your account to this address.",
        "If you did not ask for it, ignore this mail: without the code no account gets this address.",
    ),
}
_TO_UNPROVEN_ADDRESSES = frozenset({Kind.CODE, Kind.EMAIL_CHANGE_CODE})
_INTRUDER = "If it was not you, somebody else may be in your account"

_FAILURES = {
    "LANGUAGE_UNSUPPORTED": "The writer does not know the language you asked for. English always works.",
    "CONTENT_REFUSED": "The writer declined the subject. Another theme may work.",
    "WRITER_MISCONFIGURED": "The writer is not set up properly. Asking again will not help until an administrator has acted.",
}
_FAILURE = "The writer could not be reached, or did not finish. Asking again may work."


def code(kind: Kind, first_name: str, digits: str, minutes: int) -> Letter:
    subject, purpose, unasked = _CODES[kind]
    return _letter(
        subject,
        "" if kind in _TO_UNPROVEN_ADDRESSES else first_name,
        f"Your code is {digits}.{purpose}",
        f"It works once, for the next {minutes} minutes. {unasked}",
    )


def registration_repeated(first_name: str) -> Letter:
    return _letter(
        "You already have a Storymesh account",
        first_name,
        "Somebody, perhaps you, tried to register with this address, which has an account already. Nothing was changed.",
        "If it was you, sign in instead, with your password or a mailed code.",
    )


def welcome(first_name: str) -> Letter:
    return _letter(
        "Welcome to Storymesh",
        first_name,
        "Your account is ready.",
        "Ask for a story and watch it being written; a mail tells you when it is done.",
    )


def story_ready(first_name: str, title: str, url: str) -> Letter:
    title = plain(title, TITLE_LENGTH)
    return _letter(
        f"Your story is ready: {title}",
        first_name,
        f'"{title}" has been written for you.',
        f"Read it at {url}" if url else "Sign in to read it.",
    )


def digest(first_name: str, titles: Sequence[str], more: int) -> Letter:
    number = len(titles) + more
    lines = [f"- {title}" for title in titles] + ([f"and {more} more"] if more else [])
    return _letter(
        f"{number} notifications from Storymesh" if number > 1 else titles[0],
        first_name,
        "This is what has happened since the last mail of this kind:",
        "\n".join(lines),
    )


def story_failed(first_name: str, reason: str) -> Letter:
    return _letter(
        "Your story could not be written",
        first_name,
        _FAILURES.get(reason, _FAILURE),
        f"The reason's name is {reason}.",
    )


def password_changed(first_name: str, *, reset: bool) -> Letter:
    if reset:
        done = "The password of your account was reset with a mailed code. Every device is signed out."
    else:
        done = "The password of your account was changed. Every other device is signed out."
    return _letter(
        "Your Storymesh password was reset" if reset else "Your Storymesh password was changed",
        first_name,
        done,
        f"{_INTRUDER}: reset the password now, then sign out all other devices.",
    )


def password_disabled(first_name: str) -> Letter:
    return _letter(
        "Your Storymesh password is disabled",
        first_name,
        "A wrong password was tried for your account very often in a row, so the password signs nobody in any more.",
        "Sign in with a mailed code, or reset the password. Nothing else has changed, and devices that are signed in stay so.",
    )


def refresh_reused(first_name: str) -> Letter:
    return _letter(
        "A device was signed out of Storymesh",
        first_name,
        "One of your devices was signed out, because a sign-in of it was used a second time: it may have been copied.",
        "Sign in there again. If you do not know how that could happen, reset the password, then sign out all other devices.",
    )


def email_changed(first_name: str) -> Letter:
    return _letter(
        "Your Storymesh address was changed",
        first_name,
        "Your account has another address now. Mail about it goes there, and the former one signs nobody in any more.",
        f"{_INTRUDER}: on a device that is still signed in, change the password, which signs out all others, and the address.",
        "If there is none: the mail that told you of the beginning of this change says how to stop it, for some days.",
    )


def address_claimed(first_name: str) -> Letter:
    return _letter(
        "Your address stays with your Storymesh account",
        first_name,
        "Somebody, perhaps you, asked to move another account to this address, which has an account already. Nothing was changed.",
        "If it was you, sign in with this address, or choose another one for the other account.",
    )


def new_device(first_name: str, device_name: str, ip: str, signed_in_at: datetime) -> Letter:
    where = f", at the address {ip}" if ip else ""
    return _letter(
        "A new device signed in to your Storymesh account",
        first_name,
        f'"{plain(device_name, NAME_LENGTH)}" signed in on {signed_in_at:%Y-%m-%d} at {signed_in_at:%H:%M} UTC{where}.',
        f"If it was you, ignore this mail. {_INTRUDER}: reset the password, which signs out every device.",
    )


def username_changed(first_name: str) -> Letter:
    return _letter(
        "Your Storymesh username was changed",
        first_name,
        "Your account has another username now, or none any more: the former one signs nobody in. Your address still does.",
        f"{_INTRUDER}: reset the password, which signs out every device.",
    )


def email_change_begun(first_name: str, url: str, token: str, until: datetime) -> Letter:
    """Describes the API call in words, because there is no web page to link to."""
    call = f"curl {url} -H 'content-type: application/json' -d '{{\"stop_token\": \"{token}\"}}'"
    return _letter(
        "Somebody wants to move your Storymesh account to another address",
        first_name,
        "The address of your account is to be changed, as asked for from a device that is signed in to it. If it was you, ignore "
        "this mail, and give what it holds to nobody.",
        f"If it was not you, stop it. Until {until:%Y-%m-%d %H:%M} UTC that works, even when the address has been changed by then. "
        "Run this on any computer that has curl, or give it to somebody who helps you with computers and whom you trust:",
        call,
        "Your account then has this address again, every device is signed out, and the password is gone. Sign in with a mailed "
        "code, and choose another password.",
    )


def email_change_stopped(first_name: str) -> Letter:
    return _letter(
        "Your Storymesh account keeps this address",
        first_name,
        "The change of your account's address was stopped, as asked for with the mail that told you of it. Every device is signed "
        "out, and the password is gone.",
        "Sign in with a mailed code, or reset the password to choose another one.",
    )


def account_deleted(first_name: str) -> Letter:
    return _letter(
        "Your Storymesh account was deleted",
        first_name,
        "Your account and all that belonged to it was deleted, as asked for from a device that was signed in to it.",
        "It cannot be brought back. You can register with this address again. If it was not you, somebody else knew your password "
        "or reads this mailbox: change what else they open.",
    )


def _letter(subject: str, first_name: str, *paragraphs: str) -> Letter:
    name = plain(first_name, NAME_LENGTH)
    greeting = f"Hello {name}," if name else "Hello,"
    return Letter(subject, "\n\n".join((greeting, *paragraphs, "Storymesh")) + "\n")
