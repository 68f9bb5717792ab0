"""Entities of accounts, registrations and sessions, and the rules that need no database."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from kit.identity import email_addresses
from kit.identity.caller import Origin, Role
from kit.identity.display_text import visible

Randomness = Callable[[int], bytes]
"""A function that returns the given number of unpredictable bytes: `secrets.token_bytes` outside of tests."""

DEVICE_NAME_LENGTH = 64


@dataclass(frozen=True, slots=True)
class Profile:
    """The data that a person gives about themselves at registration."""

    email: str
    username: str | None
    first_name: str
    last_name: str
    preferences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProfileChange:
    """A partial update: None leaves a field unchanged, an empty username removes it."""

    username: str | None = None
    first_name: str | None = None
    last_name: str | None = None
    preferences: tuple[str, ...] | None = None

    def of(self, profile: Profile) -> Profile:
        return replace(
            profile,
            username=profile.username if self.username is None else self.username or None,
            first_name=profile.first_name if self.first_name is None else self.first_name,
            last_name=profile.last_name if self.last_name is None else self.last_name,
            preferences=profile.preferences if self.preferences is None else self.preferences,
        )


@dataclass(frozen=True, slots=True)
class User:
    id: UUID
    profile: Profile
    role: Role
    created_at: datetime
    has_password: bool

    def changed(self, profile: Profile) -> User:
        return replace(self, profile=profile)


@dataclass(frozen=True, slots=True)
class Credentials:
    """An account's state against which proofs are checked."""

    user: User
    password_hash: str | None
    password_changed_at: datetime
    password_disabled_at: datetime | None
    """Set after too many failures in a row; cleared by a code that proves the owner."""
    proof_epoch: int
    """Incremented when the password, the address or the role changes and when the password is disabled."""


@dataclass(frozen=True, slots=True)
class Registration:
    """A pending registration: its address is unproven, and no account exists yet."""

    id: UUID
    profile: Profile
    password_hash: str | None
    created_at: datetime
    expires_at: datetime
    usernames_refused: tuple[str, ...] = ()
    """Usernames, in canonical form, that were tried at completion and belong to others."""


class Purpose(StrEnum):
    """The purpose of a one-time code, which is valid for no other."""

    REGISTRATION = "registration"
    SIGN_IN = "sign-in"
    PASSWORD_RESET = "password-reset"
    EMAIL_CHANGE = "email-change"


@dataclass(frozen=True, slots=True)
class Challenge:
    """A request for a code. An address without an account has one too, with neither account nor address in it."""

    id: UUID
    purpose: Purpose
    user_id: UUID | None
    email: str | None
    """The address to which the code was mailed."""
    expires_at: datetime
    proof_epoch: int
    """The account's proof epoch when the code was requested."""

    def holds(self, account: Credentials) -> bool:
        """Whether the account is unchanged, as far as proofs protect it, since the code was requested."""
        return self.user_id == account.user.id and self.proof_epoch == account.proof_epoch

    def proves(self, account: Credentials) -> bool:
        """Whether the challenge holds and the code was mailed to the account's present address; a former address proves nothing."""
        mailed = self.email is not None and canonical_email(self.email)
        return self.holds(account) and mailed == canonical_email(account.user.profile.email)


@dataclass(frozen=True, slots=True)
class EmailChangeStop:
    """A token by which the owner of a former address moves the account back to it."""

    id: UUID
    user_id: UUID
    email: str
    """The account's address when the change began."""
    token_digest: bytes
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class CodeAnswer:
    """A person's answer to a challenge."""

    challenge_id: UUID
    digits: str


@dataclass(frozen=True, slots=True)
class OwnProof:
    """Proof by the holder of an access token that they own the account: the password or a code."""

    password: str
    code: CodeAnswer | None


@dataclass(frozen=True, slots=True)
class Proven:
    """An account and the proof that its owner has given, as the account was at that moment."""

    account: Credentials
    challenge: Challenge | None
    """None if the password was the proof."""


@dataclass(frozen=True, slots=True)
class Started:
    """The answer to a request for a code, the same for addresses with and without an account."""

    id: UUID
    code_expires_at: datetime


class SignInMethod(StrEnum):
    """How a person authenticated: values of the `amr` claim (RFC 8176)."""

    PASSWORD = "pwd"
    CODE = "otp"


@dataclass(frozen=True, slots=True)
class Device:
    """The device from which a session is opened, shown so that its owner recognises it."""

    name: str
    user_agent: str
    ip: str

    @property
    def has_own_name(self) -> bool:
        """Whether the client named the device. A name made from the user agent adds nothing to the agent."""
        return self.name != name_of_agent(self.user_agent)


def name_of_agent(user_agent: str) -> str:
    """A device name made from the user agent. An agent without a letter, such as `-` or the edge's `?`, gives none."""
    name = visible(user_agent)[:DEVICE_NAME_LENGTH].rstrip()
    return name if any(map(str.isalnum, name)) else "Unknown device"


class RevokeReason(StrEnum):
    LOGOUT = "LOGOUT"
    REVOKED = "REVOKED"
    REFRESH_REUSED = "REFRESH_REUSED"
    PASSWORD_CHANGED = "PASSWORD_CHANGED"
    ACCOUNT_DELETED = "ACCOUNT_DELETED"
    ROLE_CHANGED = "ROLE_CHANGED"
    TOO_MANY = "TOO_MANY"
    EMAIL_CHANGE_STOPPED = "EMAIL_CHANGE_STOPPED"


@dataclass(frozen=True, slots=True)
class Session:
    """A person signed in on one device. `generation` counts its refresh tokens; only the newest is valid."""

    id: UUID
    user_id: UUID
    device: Device
    methods: tuple[SignInMethod, ...]
    created_at: datetime
    last_used_at: datetime
    """The latest sign-in or refresh. Written with the rotation, which writes the row anyway."""
    expires_at: datetime
    """Expiry unless the session is refreshed before."""
    ends_at: datetime
    generation: int
    nonce: bytes
    token_digest: bytes
    """SHA-256 of the newest refresh token."""
    rotated_at: datetime
    repeats: int
    """How often the newest token was issued again, as the answer to a retry."""
    late_generation: int = 0
    """The latest generation whose token was issued again later than retries are expected."""
    late_repeats: int = 0
    """The number of consecutive late generations that ends with `late_generation`."""
    refreshed_until: datetime | None = None
    """GCRA's theoretical arrival time of the refreshes: when those so far are worked off, one pause each."""
    revoked_at: datetime | None = None
    epoch: int = 0
    """The account's session epoch at the sign-in. Ending all sessions increments the account's."""
    outdated: bool = False
    """Whether the session ended with its epoch; false for the one session that was excepted."""


@dataclass(frozen=True, slots=True)
class Tokens:
    access_token: str
    access_expires_at: datetime
    refresh_token: str
    refresh_expires_at: datetime


@dataclass(frozen=True, slots=True)
class SignedIn:
    session_id: UUID
    user: User
    tokens: Tokens
    device_token: str


class Action(StrEnum):
    """The actions that the audit log records."""

    REGISTRATION = "REGISTRATION"
    SIGN_IN_PASSWORD = "SIGN_IN_PASSWORD"
    SIGN_IN_CODE = "SIGN_IN_CODE"
    REFRESH = "REFRESH"
    """Recorded only when a refresh was refused as a reuse; ordinary ones come every ten minutes and carry no information."""
    LOGOUT = "LOGOUT"
    SESSION_REVOKE = "SESSION_REVOKE"
    SESSIONS_REVOKE_OTHERS = "SESSIONS_REVOKE_OTHERS"
    ACCOUNT_UPDATE = "ACCOUNT_UPDATE"
    PASSWORD_CHANGE = "PASSWORD_CHANGE"
    PASSWORD_RESET = "PASSWORD_RESET"
    PASSWORD_DISABLE = "PASSWORD_DISABLE"
    EMAIL_CHANGE_START = "EMAIL_CHANGE_START"
    EMAIL_CHANGE = "EMAIL_CHANGE"
    EMAIL_CHANGE_STOP = "EMAIL_CHANGE_STOP"
    ACCOUNT_DELETE = "ACCOUNT_DELETE"
    ROLE_GRANT = "ROLE_GRANT"
    ROLE_WITHDRAW = "ROLE_WITHDRAW"
    KEY_ROTATE = "KEY_ROTATE"
    KEY_DROP = "KEY_DROP"

    @property
    def concerns_account(self) -> bool:
        return self not in (Action.KEY_ROTATE, Action.KEY_DROP)


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One audit record: who did what to which account, from where. Never holds a code, a token or an unproven address."""

    action: Action
    origin: Origin
    actor_id: UUID | None
    """None for an unauthenticated person, or an operator at the server."""
    subject_id: UUID | None
    """None when the action concerns no account, or names one that does not exist."""
    session_id: UUID | None = None
    reason: str = ""
    """The reason of the refusal; empty when the action succeeded."""


class KeyState(StrEnum):
    """The life of a key: PENDING is published and on standby, ACTIVE signs, RETIRED only verifies."""

    PENDING = "PENDING"
    ACTIVE = "ACTIVE"
    RETIRED = "RETIRED"


@dataclass(frozen=True, slots=True)
class SigningKey:
    kid: str
    state: KeyState
    public_jwk: dict[str, str]
    sealed_private_key: bytes | None
    """None once the key is retired, because it signs nothing any more."""
    created_at: datetime
    activated_at: datetime | None = None
    due_at: datetime | None = None
    """When a pending key takes over, if that is earlier than the active key's term."""
    retired_at: datetime | None = None


def canonical_email(email: str) -> str:
    """The form in which addresses are compared; all spellings of one address have the same."""
    return email_addresses.canonical(email)


def canonical_username(username: str) -> str:
    return username.lower()


def canonical_login(login: str) -> str:
    """The form in which an address or a username is looked up; only addresses have an @. Accepts any text."""
    # Postgres texts cannot hold NUL, and no login contains it.
    login = email_addresses.stripped(login).replace("\0", "\N{REPLACEMENT CHARACTER}")
    return canonical_email(login) if "@" in login else canonical_username(login)


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """A refresh token as a client presents it, parsed."""

    session_id: UUID
    generation: int
    secret: bytes
    digest: bytes
    """SHA-256 of the whole token."""


def digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
