"""What accounts, registrations and sessions are, and the rules that need no database."""

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
"""Returns that many unpredictable bytes; `secrets.token_bytes` outside of tests."""

DEVICE_NAME_LENGTH = 64


@dataclass(frozen=True, slots=True)
class Profile:
    """What a person says about themselves at registration."""

    email: str
    username: str | None
    first_name: str
    last_name: str
    preferences: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ProfileChange:
    """What is None stays. An empty username is none."""

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
    """What proofs are checked against."""

    user: User
    password_hash: str | None
    password_changed_at: datetime
    password_disabled_at: datetime | None
    """After too many failures in a row, until a code proves the owner."""
    proof_epoch: int
    """Grows when the password, the address or the role changes and when the password is disabled."""


@dataclass(frozen=True, slots=True)
class Registration:
    """An account that does not exist yet: the address is unproven."""

    id: UUID
    profile: Profile
    password_hash: str | None
    created_at: datetime
    expires_at: datetime
    usernames_refused: tuple[str, ...] = ()
    """In their canonical form: those that were tried at completion and belong to others."""


class Purpose(StrEnum):
    """What a one-time code is for; none works for anything else."""

    REGISTRATION = "registration"
    SIGN_IN = "sign-in"
    PASSWORD_RESET = "password-reset"
    EMAIL_CHANGE = "email-change"


@dataclass(frozen=True, slots=True)
class Challenge:
    """A code that was asked for. For an address that nobody has there is one too, without account and address."""

    id: UUID
    purpose: Purpose
    user_id: UUID | None
    email: str | None
    """Where the code went."""
    expires_at: datetime
    proof_epoch: int
    """The account's when the code was asked for."""

    def holds(self, account: Credentials) -> bool:
        """False once anything has changed at the account that a proof protects."""
        return self.user_id == account.user.id and self.proof_epoch == account.proof_epoch

    def proves(self, account: Credentials) -> bool:
        """That the code went to the address of the account as it is now: who reads a former one is nobody any more."""
        mailed = self.email is not None and canonical_email(self.email)
        return self.holds(account) and mailed == canonical_email(account.user.profile.email)


@dataclass(frozen=True, slots=True)
class EmailChangeStop:
    """What the owner of an address can bring an account back to it with."""

    id: UUID
    user_id: UUID
    email: str
    """That the account had when somebody began to move it."""
    token_digest: bytes
    created_at: datetime
    expires_at: datetime


@dataclass(frozen=True, slots=True)
class CodeAnswer:
    """What somebody gives to answer a challenge."""

    challenge_id: UUID
    digits: str


@dataclass(frozen=True, slots=True)
class OwnProof:
    """What the holder of an access token gives to prove that they are the account's owner: one of both."""

    password: str
    code: CodeAnswer | None


@dataclass(frozen=True, slots=True)
class Proven:
    """An account whose owner somebody has proven to be, as it was then."""

    account: Credentials
    challenge: Challenge | None
    """None: it was proven by the password."""


@dataclass(frozen=True, slots=True)
class Started:
    """What everybody learns of a code that was asked for, whoever the address belongs to."""

    id: UUID
    code_expires_at: datetime


class SignInMethod(StrEnum):
    """How a person proved who they are: values of the `amr` claim (RFC 8176)."""

    PASSWORD = "pwd"
    CODE = "otp"


@dataclass(frozen=True, slots=True)
class Device:
    """What a session is opened from, for its owner to recognise it by."""

    name: str
    user_agent: str
    ip: str

    @property
    def has_own_name(self) -> bool:
        """Whether it was given one. A name after the agent tells no more than the agent does."""
        return self.name != name_of_agent(self.user_agent)


def name_of_agent(user_agent: str) -> str:
    """What a device without a name is shown as. An agent without a letter, such as `-` or the edge's `?`, names nothing."""
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
    """One device's sign-in. `generation` counts its refresh tokens; only the newest is good."""

    id: UUID
    user_id: UUID
    device: Device
    methods: tuple[SignInMethod, ...]
    created_at: datetime
    last_used_at: datetime
    """The latest sign-in or refresh: written with the rotation, which is written anyway."""
    expires_at: datetime
    """Unless it is refreshed before."""
    ends_at: datetime
    generation: int
    nonce: bytes
    token_digest: bytes
    """SHA-256 of the newest refresh token."""
    rotated_at: datetime
    repeats: int
    """How often the newest token was handed out again."""
    late_generation: int = 0
    """The latest that was handed out again after the time in which a retry is expected."""
    late_repeats: int = 0
    """How many generations in a row were, up to that one."""
    refreshed_until: datetime | None = None
    """When the refreshes so far are worked off, each taking its pause (GCRA's theoretical arrival time)."""
    revoked_at: datetime | None = None
    epoch: int = 0
    """The account's when the session was opened. What ends all sessions of an account begins another one."""
    outdated: bool = False
    """Whether it ended with its epoch, and was not the one that was kept."""


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
    """What the audit log tells of."""

    REGISTRATION = "REGISTRATION"
    SIGN_IN_PASSWORD = "SIGN_IN_PASSWORD"
    SIGN_IN_CODE = "SIGN_IN_CODE"
    REFRESH = "REFRESH"
    """Only when it was refused as a reuse: an ordinary one happens every ten minutes and tells nothing."""
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
    """Who did what to whose account, from where. Never a code, a token or an address that nobody proved."""

    action: Action
    origin: Origin
    actor_id: UUID | None
    """None for somebody unproven, or an operator at the server."""
    subject_id: UUID | None
    """None when no account is concerned, or the one that was named does not exist."""
    session_id: UUID | None = None
    reason: str = ""
    """Why it was refused; empty when it was done."""


class KeyState(StrEnum):
    """The PENDING key is published and stands by; the ACTIVE one signs; RETIRED ones still verify."""

    PENDING = "PENDING"
    ACTIVE = "ACTIVE"
    RETIRED = "RETIRED"


@dataclass(frozen=True, slots=True)
class SigningKey:
    kid: str
    state: KeyState
    public_jwk: dict[str, str]
    sealed_private_key: bytes | None
    """None once it is retired: nothing is to be signed with it any more."""
    created_at: datetime
    activated_at: datetime | None = None
    due_at: datetime | None = None
    """When a pending key is to take over before the active one's time."""
    retired_at: datetime | None = None


def canonical_email(email: str) -> str:
    """The form in which addresses are compared; all spellings of one have the same."""
    return email_addresses.canonical(email)


def canonical_username(username: str) -> str:
    return username.lower()


def canonical_login(login: str) -> str:
    """An address or a username as it is looked up; only addresses have an @. Any text is allowed, most of it matches nobody."""
    # Postgres texts cannot hold NUL, and no login does.
    login = email_addresses.stripped(login).replace("\0", "\N{REPLACEMENT CHARACTER}")
    return canonical_email(login) if "@" in login else canonical_username(login)


@dataclass(frozen=True, slots=True)
class RefreshToken:
    """As a client presents it."""

    session_id: UUID
    generation: int
    secret: bytes
    digest: bytes
    """SHA-256 of the whole token."""


def digest(token: str) -> bytes:
    return hashlib.sha256(token.encode()).digest()
