"""The auth service's operations. They open and end the transactions, and build the messages of the events that they add."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from kit.data.paging import Pages
from kit.identity.revocations import Revocations
from kit.identity.sealing import Seal
from kit.identity.signing import Signer
from kit.rpc.resources import Resources

from ..config import AuthSettings, AuthWorkerSettings
from ..model import Purpose
from ..model.device_tokens import DeviceTokens
from ..model.password_policy import PasswordPolicy
from ..model.refresh_rules import RefreshRules
from ..model.refresh_tokens import RefreshTokens
from .access_tokens import AccessTokenIssuer
from .accounts import Accounts, Roles
from .audit import Audit
from .codes import CodeLimits, Codes
from .email_changes import EmailChanges
from .email_stops import EmailStops
from .endings import Endings
from .keys import KeyRotation, SigningKeys
from .password_changes import PasswordChanges
from .passwords import Passwords
from .proofs import CodeProofs, OwnerProofs, PasswordProofs
from .registrations import Registrations
from .response_padding import ResponsePadding
from .revocations import RevocationFeed
from .sealed_mails import SealedMails
from .sessions import Sessions
from .sign_in import CodeSignIn, PasswordSignIn
from .throttle import SignInThrottle, ThrottleLimits
from .username_tries import UsernameTries

REGISTRATION_DIGITS = 6
DIGITS = 8


@dataclass(frozen=True)
class Operations:
    """The operations that the servicers call."""

    registrations: Registrations
    sessions: Sessions
    password_sign_in: PasswordSignIn
    code_sign_in: CodeSignIn
    accounts: Accounts
    password_changes: PasswordChanges
    email_changes: EmailChanges
    email_stops: EmailStops
    keys: SigningKeys
    key_rotation: KeyRotation
    revocations: Revocations
    feed: RevocationFeed
    padding: ResponsePadding
    passwords: Passwords
    """Entered as a context manager before the first call."""


def operations(settings: AuthSettings, resources: Resources) -> Operations:
    db, redis, clock, random = resources.db, resources.redis, resources.clock, resources.random
    audit = Audit(db, clock)
    endings = Endings(clock, token_life=timedelta(seconds=settings.access_token_seconds))
    refresh_keys = settings.refresh_key.get_secret_value()
    device_tokens = DeviceTokens(refresh_keys, random)
    mails = SealedMails(Seal(settings.seal_key.get_secret_value()))
    passwords = Passwords(
        memory_kib=settings.password_hash_memory_kib,
        passes=settings.password_hash_passes,
        threads=settings.password_hash_threads,
        wait_seconds=settings.password_hash_wait_seconds,
    )
    policy = PasswordPolicy(settings.password_min_length, settings.password_rule)
    signing_keys = SigningKeys(
        db,
        Seal(settings.signing_key_secret.get_secret_value()),
        clock,
        publish_ahead=timedelta(seconds=settings.signing_key_publish_seconds),
    )
    sessions = Sessions(
        db,
        access_tokens=AccessTokenIssuer(
            signing_keys,
            clock,
            random,
            issuer=settings.token_issuer,
            audience=settings.token_audience,
            life=timedelta(seconds=settings.access_token_seconds),
        ),
        refresh_tokens=RefreshTokens(refresh_keys),
        device_tokens=device_tokens,
        rules=RefreshRules(
            idle=timedelta(days=settings.session_idle_days),
            absolute=timedelta(days=settings.session_absolute_days),
            grace=timedelta(seconds=settings.refresh_grace_seconds),
            repeats=settings.refresh_repeats,
            late_repeats=settings.refresh_late_repeats,
            in_a_row=settings.refreshes_in_a_row,
            pause=timedelta(seconds=settings.refresh_pause_seconds),
        ),
        most=settings.sessions_per_account,
        endings=endings,
        mails=mails,
        audit=audit,
        pages=Pages(Signer(settings.cursor_key.get_secret_value())),
        clock=clock,
        random=random,
    )
    password_proofs = PasswordProofs(
        db,
        passwords=passwords,
        throttle=throttle(settings, resources),
        audit=audit,
        clock=clock,
        most_failures=settings.sign_in_most_failures,
    )
    codes = {purpose: codes_of(purpose, settings, resources) for purpose in Purpose}
    code_proofs = CodeProofs(db, codes=codes, device_tokens=device_tokens, mails=mails, clock=clock, random=random)
    owner_proofs = OwnerProofs(db, endings, passwords=password_proofs, codes=code_proofs)
    email_stops = EmailStops(
        db,
        mails=mails,
        endings=endings,
        audit=audit,
        clock=clock,
        random=random,
        life=timedelta(days=settings.email_change_stop_days),
    )
    return Operations(
        registrations=Registrations(
            db,
            codes=codes[Purpose.REGISTRATION],
            passwords=passwords,
            policy=policy,
            sessions=sessions,
            mails=mails,
            audit=audit,
            clock=clock,
            random=random,
            life=timedelta(seconds=settings.registration_seconds),
        ),
        sessions=sessions,
        password_sign_in=PasswordSignIn(
            db, sessions=sessions, proofs=password_proofs, passwords=passwords, device_tokens=device_tokens, audit=audit
        ),
        code_sign_in=CodeSignIn(
            db, sessions=sessions, code_proofs=code_proofs, password_proofs=password_proofs, audit=audit
        ),
        accounts=Accounts(
            db,
            endings=endings,
            owner_proofs=owner_proofs,
            username_tries=UsernameTries(
                redis,
                clock,
                per_account=settings.username_tries_an_hour,
                per_network=settings.username_tries_per_network,
                peppers=settings.code_pepper.get_secret_value(),
            ),
            mails=mails,
            audit=audit,
        ),
        password_changes=PasswordChanges(
            db,
            policy=policy,
            passwords=passwords,
            owner_proofs=owner_proofs,
            password_proofs=password_proofs,
            code_proofs=code_proofs,
            endings=endings,
            audit=audit,
            clock=clock,
        ),
        email_stops=email_stops,
        email_changes=EmailChanges(
            db,
            owner_proofs=owner_proofs,
            code_proofs=code_proofs,
            mails=mails,
            stops=email_stops,
            endings=endings,
            audit=audit,
        ),
        keys=signing_keys,
        key_rotation=rotation(settings, resources),
        revocations=resources.revocations,
        feed=RevocationFeed(
            # A database pool of its own, so that a flood of calls does not delay the feed.
            resources.database(pool=1),
            resources.revocations,
            signing_keys,
            clock,
            database_url=resources.database_url,
        ),
        padding=ResponsePadding(settings.answer_beat_seconds),
        passwords=passwords,
    )


def codes_of(purpose: Purpose, settings: AuthSettings, resources: Resources) -> Codes:
    registering = purpose is Purpose.REGISTRATION
    seconds = settings.sign_in_code_seconds if purpose is Purpose.SIGN_IN else settings.code_seconds
    limits = CodeLimits(
        life=timedelta(seconds=seconds),
        # Only a registration can be mailed another code, so only its challenge outlives its first code.
        challenge_life=timedelta(seconds=settings.registration_seconds if registering else seconds),
        attempts=settings.code_attempts,
        attempts_a_day=settings.code_attempts_a_day,
        cooldown=timedelta(seconds=settings.code_cooldown_seconds),
        repeat=timedelta(seconds=min(settings.code_repeat_seconds, settings.code_cooldown_seconds)),
        an_hour=settings.codes_an_hour,
        a_day=settings.codes_a_day,
        an_hour_altogether=settings.codes_an_hour_altogether,
        a_day_altogether=settings.codes_a_day_altogether,
    )
    digits = REGISTRATION_DIGITS if registering else DIGITS
    peppers = settings.code_pepper.get_secret_value()
    return Codes(
        resources.redis, purpose, limits, peppers=peppers, digits=digits, clock=resources.clock, random=resources.random
    )


def throttle(settings: AuthSettings, resources: Resources) -> SignInThrottle:
    limits = ThrottleLimits(
        free_failures=settings.sign_in_free_failures,
        longest_wait=timedelta(seconds=settings.sign_in_longest_wait_seconds),
        window=timedelta(seconds=settings.sign_in_window_seconds),
        per_network=settings.sign_in_failures_per_network,
        altogether=settings.sign_in_failures_altogether,
    )
    return SignInThrottle(resources.redis, resources.clock, limits, peppers=settings.code_pepper.get_secret_value())


def rotation(settings: AuthWorkerSettings, resources: Resources) -> KeyRotation:
    db, clock = resources.db, resources.clock
    return KeyRotation(
        db,
        Seal(settings.signing_key_secret.get_secret_value()),
        Endings(clock, token_life=timedelta(seconds=settings.access_token_seconds)),
        Audit(db, clock),
        clock,
        period=timedelta(days=settings.signing_key_days),
        publish_ahead=timedelta(seconds=settings.signing_key_publish_seconds),
    )


def roles(settings: AuthWorkerSettings, resources: Resources) -> Roles:
    endings = Endings(resources.clock, token_life=timedelta(seconds=settings.access_token_seconds))
    return Roles(resources.db, endings, Audit(resources.db, resources.clock))
