"""Operators' commands, run at the server: administrators and signing keys."""

from __future__ import annotations

import argparse

from kit.identity.caller import Role
from kit.rpc.resources import Resources
from kit.runtime.process import Argument, Command

from .config import AuthWorkerSettings
from .operations import roles, rotation
from .operations.accounts import AT_THE_SERVER

_EMAIL = Argument("email", "the account's address")


async def make_admin(settings: AuthWorkerSettings, arguments: argparse.Namespace) -> None:
    async with Resources("auth", settings) as resources:
        changed = await roles(settings, resources).set(arguments.email, Role.ADMIN)
    print(
        f"{arguments.email} {'is an administrator from the next sign-in or refresh on' if changed else 'was one before'}."
    )


async def remove_admin(settings: AuthWorkerSettings, arguments: argparse.Namespace) -> None:
    async with Resources("auth", settings) as resources:
        changed = await roles(settings, resources).set(arguments.email, Role.USER)
    print(f"{arguments.email} {'is no administrator any more and has to sign in again' if changed else 'was none'}.")


async def rotate_keys(settings: AuthWorkerSettings, arguments: argparse.Namespace) -> None:
    async with Resources("auth", settings) as resources:
        kid, activates_at = await rotation(settings, resources).rotate(None, AT_THE_SERVER)
    print(f"Key {kid} signs from {activates_at:%Y-%m-%d %H:%M:%S} UTC on.")


async def drop_key(settings: AuthWorkerSettings, arguments: argparse.Namespace) -> None:
    async with Resources("auth", settings) as resources:
        active = await rotation(settings, resources).drop(arguments.kid, None, AT_THE_SERVER)
    print(f"Key {arguments.kid} is dropped; key {active} signs.")


COMMANDS = {
    "make_admin": Command(
        "make an account an administrator; the only way to make the first one",
        AuthWorkerSettings,
        make_admin,
        (_EMAIL,),
    ),
    "remove_admin": Command(
        "take the role from an administrator and end their sessions", AuthWorkerSettings, remove_admin, (_EMAIL,)
    ),
    "rotate_keys": Command(
        "let the signing key's successor take over now, or as soon as all verifiers know it",
        AuthWorkerSettings,
        rotate_keys,
        (),
    ),
    "drop_key": Command(
        "withdraw a leaked signing key at once, with every access token that it signed",
        AuthWorkerSettings,
        drop_key,
        (Argument("kid", "the key's id, as in the key set"),),
    ),
}
