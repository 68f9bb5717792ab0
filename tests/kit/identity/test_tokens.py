"""Access tokens, key sets and service tokens, and whoever forges them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from kit.errors import SessionRevoked, Unauthenticated, Unavailable
from kit.identity.caller import Role
from kit.identity.revocations import Revocation, RevocationKind
from kit.identity.tokens import AccessTokens, JsonWebKey, KeySet, ServiceTokens
from kit.runtime import base64url
from kit.runtime.clock import system_clock
from tests.identity import AUDIENCE, ISSUER, MESH_KEY, Issuer, nothing_revoked
from tests.waiting import until

ALICE = UUID("01890000-0000-7000-8000-00000000a11c")
SESSION = UUID("01890000-0000-7000-8000-000000005e55")


class FakeClock:
    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def advance(self, **duration: float) -> None:
        self.now += timedelta(**duration)


@dataclass
class Auth:
    """Stands where auth answers: counts the fetches of its key set, and can be away."""

    keys: list[JsonWebKey]
    fetches: int = 0
    failing: bool = False
    answering: asyncio.Event = field(default_factory=asyncio.Event)

    async def fetch(self) -> list[JsonWebKey]:
        self.fetches += 1
        await self.answering.wait()
        if self.failing:
            raise ConnectionError("auth is away")
        return self.keys


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def issuer() -> Issuer:
    return Issuer()


@pytest.fixture
async def auth(issuer: Issuer) -> Auth:
    made = Auth(await issuer.keys())
    made.answering.set()
    return made


@pytest.fixture
def keys(auth: Auth, clock: FakeClock) -> KeySet:
    return KeySet(auth.fetch, clock)


@pytest.fixture
def tokens(keys: KeySet, clock: FakeClock) -> AccessTokens:
    return AccessTokens(keys, nothing_revoked(), issuer=ISSUER, audience=AUDIENCE, clock=clock)


Sign = Callable[..., str]


@pytest.fixture
def sign(issuer: Issuer, clock: FakeClock) -> Sign:
    """Signs as auth does, with changed claims and headers; None leaves one out."""

    def signed(headers: dict[str, Any] | None = None, **changes: object) -> str:
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": str(ALICE),
            "sid": str(SESSION),
            "jti": "1",
            "iat": clock.now,
            "exp": clock.now + timedelta(minutes=10),
            "role": "USER",
            **changes,
        }
        header = {"typ": "at+jwt", "kid": issuer.kid, **(headers or {})}
        return jwt.encode(
            {name: value for name, value in claims.items() if value is not None},
            issuer.key,
            algorithm="ES256",
            headers={name: value for name, value in header.items() if value is not None},
        )

    return signed


def encoded(part: object) -> str:
    return base64url.encode(json.dumps(part).encode())


async def test_a_good_token_names_its_person_session_role_and_key(tokens: AccessTokens, sign: Sign) -> None:
    caller = await tokens.verify(sign(role="ADMIN"))
    assert (caller.user_id, caller.session_id, caller.role, caller.kid) == (ALICE, SESSION, Role.ADMIN, "test-key")


@pytest.mark.parametrize(
    ("kind", "value"),
    [(RevocationKind.SESSION, str(SESSION)), (RevocationKind.USER, str(ALICE)), (RevocationKind.KEY, "test-key")],
    ids=str,
)
async def test_a_revoked_token_is_told_so_as_long_as_it_would_be_good(
    tokens: AccessTokens, sign: Sign, clock: FakeClock, kind: RevocationKind, value: str
) -> None:
    token = sign()
    tokens.revocations.add(Revocation(kind, value, system_clock() + timedelta(days=1)))
    with pytest.raises(SessionRevoked):
        await tokens.verify(token)
    clock.advance(days=1)
    with pytest.raises(Unauthenticated) as raised:
        await tokens.verify(token)
    assert raised.type is Unauthenticated


async def test_a_token_that_was_good_before_is_revoked_all_the_same(tokens: AccessTokens, sign: Sign) -> None:
    token = sign()
    await tokens.verify(token)
    tokens.revocations.add(Revocation(RevocationKind.SESSION, str(SESSION), system_clock() + timedelta(days=1)))
    with pytest.raises(SessionRevoked):
        await tokens.verify(token)


async def test_a_token_that_was_good_before_is_refused_without_its_signature(tokens: AccessTokens, sign: Sign) -> None:
    token = sign()
    await tokens.verify(token)
    signed, _, signature = token.rpartition(".")
    for forged in (f"{signed}.", f"{signed}.{signature[:-4]}AAAA", f"{signed}.{signature}AAAA"):
        with pytest.raises(Unauthenticated):
            await tokens.verify(forged)


async def test_a_token_that_was_good_before_is_refused_when_its_key_is_gone(
    tokens: AccessTokens, sign: Sign, auth: Auth, clock: FakeClock
) -> None:
    token = sign()
    await tokens.verify(token)
    auth.keys = []
    clock.advance(minutes=6)
    with pytest.raises(Unauthenticated):
        await tokens.verify(token)


async def test_a_token_that_was_good_before_is_refused_under_another_key_of_the_same_name(
    tokens: AccessTokens, sign: Sign, auth: Auth, issuer: Issuer, clock: FakeClock
) -> None:
    token = sign()
    await tokens.verify(token)
    auth.keys = await Issuer(kid=issuer.kid).keys()
    clock.advance(minutes=6)
    with pytest.raises(Unauthenticated):
        await tokens.verify(token)


async def test_a_forged_token_of_a_revoked_session_learns_nothing_of_it(tokens: AccessTokens, sign: Sign) -> None:
    tokens.revocations.add(Revocation(RevocationKind.SESSION, str(SESSION), system_clock() + timedelta(days=1)))
    with pytest.raises(Unauthenticated) as raised:
        await tokens.verify(sign()[:-8] + "AAAAAAAA")
    assert raised.type is Unauthenticated


async def test_what_is_revoked_while_the_key_is_fetched_is_revoked(
    tokens: AccessTokens, auth: Auth, sign: Sign
) -> None:
    auth.answering.clear()
    verifying = asyncio.create_task(tokens.verify(sign()))
    await until(lambda: auth.fetches)
    tokens.revocations.add(Revocation(RevocationKind.SESSION, str(SESSION), system_clock() + timedelta(days=1)))
    auth.answering.set()
    with pytest.raises(SessionRevoked):
        await verifying


FORGERIES: dict[str, dict[str, Any]] = {
    "of another issuer": {"iss": "elsewhere"},
    "without an issuer": {"iss": None},
    "for another audience": {"aud": "elsewhere"},
    "without an audience": {"aud": None},
    "without a subject": {"sub": None},
    "whose subject is no id": {"sub": "root"},
    "without a session": {"sid": None},
    "whose session is a number": {"sid": 7},
    "without an end": {"exp": None},
    "without a beginning": {"iat": None},
    "without a name of its own": {"jti": None},
    "without a role": {"role": None},
    "with an unknown role": {"role": "ROOT"},
    "whose end is a word": {"exp": "never"},
    "whose end is endless": {"exp": float("inf")},
    "whose end is beyond all calendars": {"exp": 10**18},
    "not yet valid": {"nbf": datetime(2026, 1, 2, tzinfo=UTC)},
    "of another type": {"headers": {"typ": "JWT"}},
    "for services": {"headers": {"typ": "mesh+jwt"}},
    "without a type": {"headers": {"typ": None}},
    "with a jku header": {"headers": {"jku": "https://evil.example/jwks.json"}},
    "with a jwk header": {"headers": {"jwk": {"kty": "EC"}}},
    "with an x5u header": {"headers": {"x5u": "https://evil.example/cert"}},
    "with an x5c header": {"headers": {"x5c": ["MII"]}},
    "with an unknown critical header": {"headers": {"crit": ["evil"], "evil": 1}},
    "under an unknown key": {"headers": {"kid": "another"}},
}


@pytest.mark.parametrize("forgery", FORGERIES.values(), ids=FORGERIES)
async def test_a_forged_token_is_refused(tokens: AccessTokens, sign: Sign, forgery: dict[str, Any]) -> None:
    with pytest.raises(Unauthenticated):
        await tokens.verify(sign(**forgery))


async def test_another_key_under_a_known_name_is_refused(tokens: AccessTokens, sign: Sign, issuer: Issuer) -> None:
    issuer.key = ec.generate_private_key(ec.SECP256R1())
    with pytest.raises(Unauthenticated):
        await tokens.verify(sign())


async def test_an_unsigned_token_is_refused(tokens: AccessTokens, sign: Sign, issuer: Issuer) -> None:
    _, claims, signature = sign().split(".")
    for algorithm in ("none", "None", "nOnE"):
        header = encoded({"alg": algorithm, "typ": "at+jwt", "kid": issuer.kid})
        for forged in (f"{header}.{claims}.", f"{header}.{claims}.{signature}"):
            with pytest.raises(Unauthenticated):
                await tokens.verify(forged)


async def test_the_public_key_is_no_shared_secret(tokens: AccessTokens, sign: Sign, issuer: Issuer) -> None:
    """The classic confusion: HS256 with the public key, which everyone has, as the secret."""
    public = issuer.key.public_key()
    pem = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    _, claims, _ = sign().split(".")
    header = encoded({"alg": "HS256", "typ": "at+jwt", "kid": issuer.kid})
    for secret in (pem, pem.strip(), json.dumps((await issuer.keys())[0]).encode()):
        signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(
            f"{header}.{claims}".encode(), secret
        )
        forged = f"{header}.{claims}.{base64url.encode(signature)}"
        with pytest.raises(Unauthenticated):
            await tokens.verify(forged)


async def test_changed_claims_are_refused(tokens: AccessTokens, sign: Sign) -> None:
    header, claims, signature = sign().split(".")
    _, others, _ = sign(sub=str(uuid4())).split(".")
    assert claims != others
    with pytest.raises(Unauthenticated):
        await tokens.verify(f"{header}.{others}.{signature}")


@pytest.mark.parametrize("kid", [7, 1.5, True, ["test-key"], {"a": 1}, None], ids=repr)
async def test_a_key_id_that_is_no_text_is_refused_without_a_fetch(
    tokens: AccessTokens, sign: Sign, auth: Auth, kid: object
) -> None:
    _, claims, signature = sign().split(".")
    with pytest.raises(Unauthenticated):
        await tokens.verify(f"{encoded({'alg': 'ES256', 'typ': 'at+jwt', 'kid': kid})}.{claims}.{signature}")
    assert auth.fetches == 0


@pytest.mark.parametrize(
    "garbage",
    [
        "",
        ".",
        "..",
        "...",
        "a.b.c",
        "ü.ü.ü",
        "\x00",
        f"{encoded([])}.e30.x",
        f"{encoded('text')}.e30.x",
        f"{encoded(None)}.e30.x",
        base64url.encode(b"[" * 5000) + ".e30.x",
        base64url.encode(b'{"a":' * 5000) + ".e30.x",
        "e30." * 500,
    ],
    ids=lambda text: text[:12],
)
async def test_garbage_is_refused(tokens: AccessTokens, garbage: str) -> None:
    with pytest.raises(Unauthenticated):
        await tokens.verify(garbage)


async def test_a_token_ends_by_the_services_clock_with_some_skew(
    tokens: AccessTokens, sign: Sign, clock: FakeClock
) -> None:
    token = sign()
    clock.advance(minutes=10, seconds=29)
    await tokens.verify(token)
    clock.advance(seconds=2)
    with pytest.raises(Unauthenticated):
        await tokens.verify(token)


async def test_a_token_of_the_future_is_refused_beyond_the_skew(
    tokens: AccessTokens, sign: Sign, clock: FakeClock
) -> None:
    token = sign()
    clock.advance(seconds=-29)
    await tokens.verify(token)
    clock.advance(seconds=-2)
    with pytest.raises(Unauthenticated):
        await tokens.verify(token)


async def test_keys_are_fetched_once_for_many_tokens(tokens: AccessTokens, sign: Sign, auth: Auth) -> None:
    await asyncio.gather(*(tokens.verify(sign()) for _ in range(20)))
    assert auth.fetches == 1


async def test_a_flood_of_unknown_key_ids_costs_one_fetch_in_two_seconds(
    keys: KeySet, auth: Auth, clock: FakeClock
) -> None:
    for _ in range(3):
        assert set(await asyncio.gather(*(keys.find(f"made-up-{n}") for n in range(50)))) == {None}
        clock.advance(seconds=1)
    assert auth.fetches == 2


async def test_a_new_key_is_found_without_waiting_for_the_next_refetch(
    keys: KeySet, auth: Auth, issuer: Issuer, clock: FakeClock
) -> None:
    await keys.find(issuer.kid)
    second = Issuer(kid="second")
    auth.keys = [*auth.keys, *await second.keys()]
    clock.advance(seconds=2)
    assert await keys.find("second")


async def test_while_auth_is_away_known_keys_go_on_and_unknown_ones_cannot_be_judged(
    keys: KeySet, auth: Auth, issuer: Issuer, clock: FakeClock
) -> None:
    await keys.find(issuer.kid)
    auth.failing = True
    for _ in range(3):
        clock.advance(minutes=6)
        assert await keys.find(issuer.kid)
        with pytest.raises(Unavailable):
            await keys.find("unknown")
    auth.failing = False
    clock.advance(seconds=2)
    assert await keys.find("unknown") is None


async def test_without_ever_having_reached_auth_nothing_can_be_judged(keys: KeySet, auth: Auth, issuer: Issuer) -> None:
    auth.failing = True
    for _ in range(2):
        with pytest.raises(Unavailable):
            await keys.find(issuer.kid)
    assert auth.fetches == 1


async def test_a_withdrawn_key_is_forgotten_after_five_minutes(
    keys: KeySet, auth: Auth, issuer: Issuer, clock: FakeClock
) -> None:
    await keys.find(issuer.kid)
    auth.keys = []
    clock.advance(minutes=4, seconds=59)
    assert await keys.find(issuer.kid)
    clock.advance(seconds=2)
    assert await keys.find(issuer.kid) is None


async def test_a_call_that_is_given_up_while_it_fetches_the_keys_ends_the_fetch_for_nobody_else(
    keys: KeySet, auth: Auth, issuer: Issuer
) -> None:
    auth.answering.clear()
    impatient = asyncio.create_task(keys.find(issuer.kid))
    await until(lambda: auth.fetches == 1)
    patient = asyncio.create_task(keys.find(issuer.kid))
    impatient.cancel()
    await asyncio.wait([impatient])
    auth.answering.set()
    assert await patient
    assert await keys.find(issuer.kid)
    assert auth.fetches == 1


async def test_only_one_call_waits_while_a_known_key_is_refetched(
    keys: KeySet, auth: Auth, issuer: Issuer, clock: FakeClock
) -> None:
    await keys.find(issuer.kid)
    clock.advance(minutes=6)
    auth.answering.clear()
    refetching = asyncio.create_task(keys.find(issuer.kid))
    await until(lambda: auth.fetches == 2)
    async with asyncio.timeout(1):
        assert await keys.find(issuer.kid)
    assert not refetching.done()
    auth.answering.set()
    assert await refetching


@pytest.mark.parametrize(
    "broken", [{}, {"kid": "x"}, {"kid": "x", "kty": "EC", "crv": "P-256", "x": "!", "y": ""}], ids=repr
)
async def test_an_unusable_key_set_is_like_none(keys: KeySet, auth: Auth, broken: JsonWebKey) -> None:
    auth.keys = [broken]
    with pytest.raises(Unavailable):
        await keys.find("test-key")


@pytest.fixture
def story(clock: FakeClock) -> ServiceTokens:
    return ServiceTokens(MESH_KEY, service="story", clock=clock)


@pytest.fixture
def directory(clock: FakeClock) -> ServiceTokens:
    return ServiceTokens(MESH_KEY, service="auth", clock=clock)


def test_a_service_token_names_the_service_that_calls(story: ServiceTokens, directory: ServiceTokens) -> None:
    assert directory.verify(story.mint("auth")) == "story"


def test_a_service_token_for_another_callee_is_refused(story: ServiceTokens, directory: ServiceTokens) -> None:
    with pytest.raises(Unauthenticated):
        directory.verify(story.mint("notification"))


def test_a_service_token_ends_after_a_minute_and_the_skew(
    story: ServiceTokens, directory: ServiceTokens, clock: FakeClock
) -> None:
    token = story.mint("auth")
    clock.advance(seconds=89)
    directory.verify(token)
    clock.advance(seconds=2)
    with pytest.raises(Unauthenticated):
        directory.verify(token)


def test_a_service_token_serves_many_calls_for_half_of_its_life(
    story: ServiceTokens, directory: ServiceTokens, clock: FakeClock
) -> None:
    token = story.mint("auth")
    clock.advance(seconds=29)
    assert story.mint("auth") == token != story.mint("notification")
    assert directory.verify(token) == directory.verify(token) == "story"
    clock.advance(seconds=1)
    later = story.mint("auth")
    assert later != token
    clock.advance(seconds=-20)
    # One from the future would be refused by clocks that are right.
    assert story.mint("auth") not in (token, later)


def test_a_service_token_under_another_mesh_key_is_refused(directory: ServiceTokens, clock: FakeClock) -> None:
    with pytest.raises(Unauthenticated):
        directory.verify(ServiceTokens(b"x" * 32, service="story", clock=clock).mint("auth"))


def test_a_persons_token_is_no_service_token(directory: ServiceTokens, sign: Sign) -> None:
    with pytest.raises(Unauthenticated):
        directory.verify(sign(aud="auth"))


@pytest.mark.parametrize(
    "header", [{"alg": "none", "typ": "mesh+jwt"}, {"alg": "HS256", "typ": "at+jwt"}, []], ids=repr
)
def test_a_forged_service_token_is_refused(story: ServiceTokens, directory: ServiceTokens, header: object) -> None:
    _, claims, signature = story.mint("auth").split(".")
    with pytest.raises(Unauthenticated):
        directory.verify(f"{encoded(header)}.{claims}.{signature}")
