"""The settings of the auth service; the only place that reads its environment."""

from __future__ import annotations

from pydantic import Field

from kit.runtime.settings import DatabaseSettings, Key, Keys

from .model.password_policy import PasswordRule


class AuthWorkerSettings(DatabaseSettings):
    """Settings of the `worker` process."""

    signing_key_secret: Key = Field(description="Encrypts the private signing keys in the database.")
    signing_key_days: float = Field(30.0, gt=0, description="Days after which the signing key is replaced.")
    signing_key_publish_seconds: float = Field(
        900.0,
        ge=1,
        description="How long a new key is published before it signs: longer than the edge keeps the key set.",
    )
    access_token_seconds: float = Field(600.0, gt=0, le=1200, description="Life of an access token.")
    upkeep_seconds: float = Field(60.0, gt=0, description="Time between two looks at what has ended or is due.")
    audit_days: float = Field(365.0, ge=90, description="Days that entries of the audit log are kept.")


class AuthSettings(AuthWorkerSettings):
    """Settings of the `serve` process."""

    seal_key: Key = Field(description="Encrypts codes on their way to the mail worker; the same in notification.")
    cursor_key: Key = Field(description="Signs page tokens; the same for all replicas.")
    code_pepper: Keys = Field(
        description="Keys the digests of codes, addresses and logins in Redis. To replace it, put the new one before the former, "
        "which goes a day later."
    )
    refresh_key: Keys = Field(
        description="Derives refresh and device tokens. To replace it, put the new one before the former and drop that when the "
        "sessions from before have ended."
    )
    session_idle_days: float = Field(30.0, gt=0, description="Days without a refresh after which a session ends.")
    session_absolute_days: float = Field(90.0, gt=0, description="Days after which a session ends in any case.")
    sessions_per_account: int = Field(
        100,
        ge=1,
        description="Sessions that an account has at most: when another is opened, the one unused longest ends.",
    )
    refresh_repeats: int = Field(
        10, ge=0, description="How often a spent refresh token still gets its unused successor, for a lost response."
    )
    refresh_grace_seconds: float = Field(30.0, ge=0, description="How soon such a retry is expected.")
    refresh_late_repeats: int = Field(
        3, ge=0, description="In how many generations in a row it may come later, until that counts as a reuse."
    )
    refreshes_in_a_row: int = Field(100, ge=1, description="Refreshes that one session may make at once.")
    refresh_pause_seconds: float = Field(10.0, gt=0, description="Time in which it may make one more.")
    password_rule: PasswordRule = Field(
        "length",
        description="`length`: long and not to be guessed; `classes`: 8 characters, with lower case, upper case, digit and symbol.",
    )
    password_min_length: int = Field(15, ge=8, le=64, description="Characters that a new password needs.")
    password_hash_memory_kib: int = Field(19456, ge=8, le=65536, description="Memory of one argon2id hash.")
    password_hash_passes: int = Field(2, ge=1, le=10, description="Passes of argon2id over that memory.")
    password_hash_threads: int = Field(
        0, ge=0, description="Threads that hash passwords, each one at a time; 0: one per processor."
    )
    password_hash_wait_seconds: float = Field(
        0.25, gt=0, description="How long a password waits for a thread before the call is refused."
    )
    sign_in_free_failures: int = Field(
        5, ge=1, description="Failed sign-ins in a row after which a login waits: 1 s, doubling with each failure."
    )
    sign_in_longest_wait_seconds: float = Field(900.0, ge=1, description="The longest such wait.")
    sign_in_most_failures: int = Field(
        100,
        ge=1,
        description="Failures in a row after which a password is disabled until a mailed code proves its owner.",
    )
    sign_in_window_seconds: float = Field(
        600.0,
        ge=1,
        description="The window in which failed sign-ins of unknown devices are counted by network and altogether.",
    )
    sign_in_failures_per_network: int = Field(
        300, ge=1, description="Failures in it from one address (of IPv6: one /64) until it is refused."
    )
    sign_in_failures_altogether: int = Field(
        10_000, ge=1, description="Failures in it from everywhere until unknown devices are refused."
    )
    email_change_stop_days: float = Field(
        7.0, gt=0, description="Days in which whoever reads an account's former address can bring it back there."
    )
    username_tries_an_hour: int = Field(
        5, ge=1, description="Usernames that an account may try to change to in an hour, taken or free."
    )
    username_tries_per_network: int = Field(
        100, ge=1, description="And all accounts at one address (of IPv6: one /64) together."
    )
    answer_beat_seconds: float = Field(
        0.05,
        ge=0,
        le=1,
        description="What the time to an answer that must not tell whether an account exists is rounded up to; 0: not at all.",
    )
    registration_seconds: float = Field(
        1800.0, gt=0, description="How long a registration can be completed after its latest code."
    )
    code_seconds: float = Field(600.0, gt=0, description="Life of a mailed code.")
    sign_in_code_seconds: float = Field(300.0, gt=0, description="Life of a mailed code that signs in.")
    code_attempts: int = Field(5, ge=1, description="Wrong codes after which none helps any more.")
    code_attempts_a_day: int = Field(
        50, ge=1, description="Wrong codes in 24 h for one address, of challenges from one network or known device."
    )
    code_cooldown_seconds: float = Field(
        60.0,
        ge=0,
        description="Time within which who asks again for a code at an address is mailed the same one; 0: each request brings "
        "another code, or is refused.",
    )
    code_repeat_seconds: float = Field(
        15.0, ge=0, description="Time between two mails of the same code; never longer than the one before."
    )
    codes_an_hour: int = Field(
        5, ge=1, description="Mails with codes in 1 h to one address, for one purpose and one network or known device."
    )
    codes_a_day: int = Field(
        10,
        ge=1,
        description="Mails with codes in 24 h to one address, for one purpose and one network or known device.",
    )
    codes_an_hour_altogether: int = Field(
        10,
        ge=1,
        description="Mails with codes in 1 h to one address, for one purpose and all networks; known devices apart.",
    )
    codes_a_day_altogether: int = Field(
        20,
        ge=1,
        description="Mails with codes in 24 h to one address, for one purpose and all networks; known devices apart.",
    )
