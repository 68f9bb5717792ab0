"""The settings of the auth service; the only place that reads its environment."""

from __future__ import annotations

from pydantic import Field

from services.kit.settings import DatabaseSettings, Key


class AuthWorkerSettings(DatabaseSettings):
    """What `worker` is told."""

    signing_key_secret: Key = Field(description="Encrypts the private signing keys in the database.")
    signing_key_days: float = Field(30.0, gt=0, description="Days after which the signing key is replaced.")


class AuthSettings(AuthWorkerSettings):
    """What `serve` is told."""

    seal_key: Key = Field(description="Encrypts codes on their way to the mail worker; the same in notification.")
    code_pepper: Key = Field(
        description="Keys the digests of codes, addresses and logins in Redis; a new one voids open codes."
    )
    refresh_key: Key = Field(
        description="Derives refresh tokens; a new one voids only retries of refreshes that are just being made."
    )
    access_token_seconds: float = Field(600.0, gt=0, le=1200, description="Life of an access token.")
    session_idle_days: float = Field(30.0, gt=0, description="Days without a refresh after which a session ends.")
    session_absolute_days: float = Field(90.0, gt=0, description="Days after which a session ends in any case.")
    refresh_grace_seconds: float = Field(
        30.0, ge=0, description="How long a spent refresh token still gets its successor, for a lost response."
    )
    refresh_repeats: int = Field(10, ge=0, description="How often, within that time.")
    password_min_length: int = Field(15, ge=8, le=64, description="Characters that a new password needs.")
    password_hash_memory_kib: int = Field(19456, ge=8, le=65536, description="Memory of one argon2id hash.")
    password_hash_passes: int = Field(2, ge=1, le=10, description="Passes of argon2id over that memory.")
    password_hash_threads: int = Field(0, ge=0, description="Passwords hashed at a time; 0: one per processor.")
    password_hash_wait_seconds: float = Field(
        0.25, gt=0, description="How long a password waits for a processor before the call is refused."
    )
    sign_in_free_failures: int = Field(
        5, ge=1, description="Failed sign-ins in a row after which a login waits: 1 s, doubling with each failure."
    )
    sign_in_longest_wait_seconds: float = Field(900.0, ge=1, description="The longest such wait.")
    registration_seconds: float = Field(
        1800.0, gt=0, description="How long a registration can be completed after its latest code."
    )
    live_registrations: int = Field(3, ge=1, description="Registrations that an address may have at a time.")
    code_seconds: float = Field(600.0, gt=0, description="Life of a mailed code.")
    code_attempts: int = Field(5, ge=1, description="Wrong codes after which a registration is void.")
    code_attempts_a_day: int = Field(50, ge=1, description="Wrong codes in 24 h for one address.")
    code_cooldown_seconds: float = Field(60.0, ge=0, description="Time between two codes for one address.")
    codes_an_hour: int = Field(5, ge=1, description="Codes in 1 h for one address.")
    codes_a_day: int = Field(10, ge=1, description="Codes in 24 h for one address.")
