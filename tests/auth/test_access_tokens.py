"""Access tokens: their claims, and forgeries that are refused."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc import StatusCode
from storymesh.auth.v1 import account_service_pb2, key_service_pb2

from kit.identity.sealing import Seal
from kit.runtime import base64url
from services.auth import store
from services.auth.model import KeyState
from tests.auth.conftest import SIGNING_SECRET, AuthWorld, Member
from tests.identity import bearer
from tests.statuses import raises_status

ADA = "ada@example.org"


@pytest.fixture
async def member(world: AuthWorld) -> Member:
    return await world.register(ADA, username="ada")


async def signing_key(world: AuthWorld) -> tuple[str, ec.EllipticCurvePrivateKey]:
    """The service's own key, for forgeries that only their claims or headers reveal."""
    async with world.db.transaction() as tx:
        (key,) = await store.keys.all_of(tx)
    assert key.state is KeyState.ACTIVE
    assert key.sealed_private_key
    secret = Seal(SIGNING_SECRET).unseal(f"signing-key:{key.kid}", key.sealed_private_key)
    private = serialization.load_der_private_key(secret, password=None)
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    return key.kid, private


def segments(token: str) -> tuple[dict[str, Any], dict[str, Any]]:
    header, claims, _ = token.split(".")
    return json.loads(base64url.decode(header)), json.loads(base64url.decode(claims))


def encoded(part: dict[str, Any]) -> str:
    return base64url.encode(json.dumps(part).encode())


async def test_a_token_says_who_signed_in_when_and_how_and_no_more(world: AuthWorld, member: Member) -> None:
    signed_in = await world.sign_in("ada")
    header, claims = segments(signed_in.tokens.access_token)
    (key,) = (await world.keys.GetJwks(key_service_pb2.GetJwksRequest())).keys
    assert header == {"alg": "ES256", "typ": "at+jwt", "kid": key.kid}
    now = int(world.clock().timestamp())
    assert UUID(claims.pop("jti")).version == 4
    assert UUID(claims.pop("sid")).version == 7
    assert claims == {
        "epoch": 0,
        "iss": "storymesh",
        "aud": "storymesh",
        "sub": member.user.id,
        "iat": now,
        "exp": now + 600,
        "auth_time": now,
        "amr": ["pwd"],
        "role": "USER",
    }
    assert segments(member.tokens.access_token)[1]["amr"] == ["otp"]
    expires = signed_in.tokens.access_token_expire_time.ToDatetime(world.clock().tzinfo)
    assert expires == world.clock().replace(microsecond=0) + timedelta(minutes=10)


async def test_a_refresh_keeps_the_time_of_the_sign_in(world: AuthWorld, member: Member) -> None:
    before = segments(member.tokens.access_token)[1]
    world.clock.advance(minutes=5)
    after = segments((await world.refresh(member.tokens.refresh_token)).access_token)[1]
    assert after["auth_time"] == before["auth_time"]
    assert after["iat"] == before["iat"] + 300
    assert after["jti"] != before["jti"]


async def test_a_token_does_not_outlive_its_session(world: AuthWorld, member: Member) -> None:
    tokens = member.tokens
    for _ in range(3):
        world.clock.advance(days=29)
        tokens = await world.refresh(tokens.refresh_token)
    world.clock.advance(days=3, minutes=-1)
    tokens = await world.refresh(tokens.refresh_token)
    claims = segments(tokens.access_token)[1]
    assert claims["exp"] - claims["iat"] == pytest.approx(60, abs=1)


async def test_the_key_set_verifies_a_token_and_names_keys_by_their_thumbprints(
    world: AuthWorld, member: Member
) -> None:
    (key,) = (await world.keys.GetJwks(key_service_pb2.GetJwksRequest())).keys
    jwk = {field.name: value for field, value in key.ListFields()}
    assert jwk.keys() == {"kty", "crv", "x", "y", "kid", "use", "alg"}
    canonical = f'{{"crv":"P-256","kty":"EC","x":"{jwk["x"]}","y":"{jwk["y"]}"}}'
    digest = hashlib.sha256(canonical.encode()).digest()
    assert jwk["kid"] == base64url.encode(digest)
    claims = jwt.decode(
        member.tokens.access_token, jwt.PyJWK(jwk), algorithms=["ES256"], audience="storymesh", issuer="storymesh"
    )
    assert claims["sub"] == member.user.id


Forge = Callable[[dict[str, Any], dict[str, Any], str, ec.EllipticCurvePrivateKey], str]


def resigned(**changes: Any) -> Forge:
    """Signed with the right key, but with other claims; None leaves a claim out."""

    def forge(header: dict[str, Any], claims: dict[str, Any], kid: str, key: ec.EllipticCurvePrivateKey) -> str:
        changed = {name: value for name, value in {**claims, **changes}.items() if value is not None}
        return jwt.encode(changed, key, algorithm="ES256", headers=header)

    return forge


def reheaded(**changes: Any) -> Forge:
    """Signed with the right key, but with another header."""

    def forge(header: dict[str, Any], claims: dict[str, Any], kid: str, key: ec.EllipticCurvePrivateKey) -> str:
        return jwt.encode(claims, key, algorithm="ES256", headers={**header, **changes})

    return forge


def unsigned(header: dict[str, Any], claims: dict[str, Any], kid: str, key: ec.EllipticCurvePrivateKey) -> str:
    return f"{encoded({**header, 'alg': 'none'})}.{encoded(claims)}."


def unsigned_but_called_es256(
    header: dict[str, Any], claims: dict[str, Any], kid: str, key: ec.EllipticCurvePrivateKey
) -> str:
    return f"{encoded(header)}.{encoded(claims)}."


def signed_with_the_public_key(
    header: dict[str, Any], claims: dict[str, Any], kid: str, key: ec.EllipticCurvePrivateKey
) -> str:
    """HS256 with the public key as the secret, against verifiers that take the algorithm from the token."""
    public = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    body = f"{encoded({**header, 'alg': 'HS256'})}.{encoded(claims)}"
    tag = hmac.digest(public, body.encode(), hashlib.sha256)
    return f"{body}.{base64url.encode(tag)}"


def signed_with_an_own_key(
    header: dict[str, Any], claims: dict[str, Any], kid: str, key: ec.EllipticCurvePrivateKey
) -> str:
    return jwt.encode(claims, ec.generate_private_key(ec.SECP256R1()), algorithm="ES256", headers=header)


def carrying_its_own_key(
    header: dict[str, Any], claims: dict[str, Any], kid: str, key: ec.EllipticCurvePrivateKey
) -> str:
    own = ec.generate_private_key(ec.SECP256R1())
    jwk = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(own.public_key()))
    return jwt.encode(claims, own, algorithm="ES256", headers={**header, "jwk": jwk})


def altered(header: dict[str, Any], claims: dict[str, Any], kid: str, key: ec.EllipticCurvePrivateKey) -> str:
    genuine = jwt.encode(claims, key, algorithm="ES256", headers=header).split(".")
    return f"{genuine[0]}.{encoded({**claims, 'role': 'ADMIN'})}.{genuine[2]}"


@pytest.mark.parametrize(
    "forge",
    [
        pytest.param(unsigned, id="alg none"),
        pytest.param(unsigned_but_called_es256, id="no signature"),
        pytest.param(signed_with_the_public_key, id="HS256 with the public key"),
        pytest.param(signed_with_an_own_key, id="foreign key under our kid"),
        pytest.param(carrying_its_own_key, id="foreign key in the header"),
        pytest.param(altered, id="claims altered"),
        pytest.param(reheaded(typ="JWT"), id="typ JWT"),
        pytest.param(reheaded(typ=None), id="no typ"),
        pytest.param(reheaded(kid="../../dev/null"), id="kid is a path"),
        pytest.param(reheaded(kid="' OR 1=1 --"), id="kid is SQL"),
        pytest.param(reheaded(kid=""), id="kid empty"),
        pytest.param(reheaded(jku="https://attacker.example/jwks.json"), id="jku"),
        pytest.param(reheaded(x5u="https://attacker.example/cert.pem"), id="x5u"),
        pytest.param(resigned(iss="https://attacker.example"), id="another issuer"),
        pytest.param(resigned(aud="another"), id="another audience"),
        pytest.param(resigned(aud=None), id="no audience"),
        pytest.param(resigned(exp=1), id="expired"),
        pytest.param(resigned(exp=None), id="no end"),
        pytest.param(resigned(sub=None), id="no subject"),
        pytest.param(resigned(sub="ada"), id="subject is no id"),
        pytest.param(resigned(sid=None), id="no session"),
        pytest.param(resigned(jti=None), id="no id"),
        pytest.param(resigned(role=None), id="no role"),
        pytest.param(resigned(role="ROOT"), id="unknown role"),
    ],
)
async def test_a_forged_token_is_refused(world: AuthWorld, member: Member, forge: Forge) -> None:
    kid, key = await signing_key(world)
    header, claims = segments(member.tokens.access_token)
    token = forge(header, claims, kid, key)
    with raises_status(StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"):
        await world.accounts.GetAccount(account_service_pb2.GetAccountRequest(), metadata=tuple(bearer(token)))


async def test_the_forgeries_differ_from_a_good_token_only_in_what_they_forge(world: AuthWorld, member: Member) -> None:
    kid, key = await signing_key(world)
    header, claims = segments(member.tokens.access_token)
    token = resigned()(header, claims, kid, key)
    await world.accounts.GetAccount(account_service_pb2.GetAccountRequest(), metadata=tuple(bearer(token)))


async def test_a_refresh_token_is_no_access_token(world: AuthWorld, member: Member) -> None:
    with raises_status(StatusCode.UNAUTHENTICATED, "UNAUTHENTICATED"):
        await world.accounts.GetAccount(
            account_service_pb2.GetAccountRequest(), metadata=tuple(bearer(member.tokens.refresh_token))
        )
