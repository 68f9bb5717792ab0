"""Forged access tokens, and genuine tokens for another purpose: the edge refuses them, and so does each service by itself."""

from __future__ import annotations

import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import jwt
import psycopg
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key

from kit.identity.sealing import Seal
from kit.runtime import base64url
from local.harness import RunningMesh
from tests.system.conftest import databases_of, key_in
from tests.system.doors import Door, GrpcDoor
from tests.system.members import Member, signed_up

EDGE = "TOKEN_INVALID"
SERVICE = "UNAUTHENTICATED"


@dataclass(frozen=True)
class Forge:
    """A genuine token and the key that signed it."""

    claims: dict[str, Any]
    kid: str
    key: ec.EllipticCurvePrivateKey

    def signed(self, *, headers: dict[str, Any] | None = None, **claims: Any) -> str:
        """Sign changed claims with the real key; None leaves a claim out."""
        merged = {name: value for name, value in {**self.claims, **claims}.items() if value is not None}
        return jwt.encode(
            merged, self.key, algorithm="ES256", headers={"typ": "at+jwt", "kid": self.kid, **(headers or {})}
        )

    def by(self, key: ec.EllipticCurvePrivateKey, **headers: Any) -> str:
        return jwt.encode(self.claims, key, algorithm="ES256", headers={"typ": "at+jwt", "kid": self.kid, **headers})

    def unsigned(self) -> str:
        return jwt.encode(self.claims, "", algorithm="none", headers={"typ": "at+jwt", "kid": self.kid})

    def hmac_with_the_public_key(self, form: Encoding) -> str:
        """Sign with HMAC under the public key: a verifier that takes the algorithm from the token would accept it."""
        public = self.key.public_key().public_bytes(form, PublicFormat.SubjectPublicKeyInfo)
        header = {"alg": "HS256", "typ": "at+jwt", "kid": self.kid}
        signed = ".".join(base64url.encode(json.dumps(part).encode()) for part in (header, self.claims))
        return f"{signed}.{base64url.encode(hmac.digest(public, signed.encode(), hashlib.sha256))}"


def _jwk(key: ec.EllipticCurvePrivateKey) -> dict[str, Any]:
    jwk: dict[str, Any] = json.loads(jwt.algorithms.ECAlgorithm.to_jwk(key.public_key()))
    return jwk


THIEF = ec.generate_private_key(ec.SECP256R1())

FORGERIES: dict[str, tuple[Callable[[Forge], str], str]] = {
    "no algorithm": (lambda forge: forge.unsigned(), EDGE),
    "the public key as a secret, PEM": (lambda forge: forge.hmac_with_the_public_key(Encoding.PEM), EDGE),
    "the public key as a secret, DER": (lambda forge: forge.hmac_with_the_public_key(Encoding.DER), EDGE),
    "another key under the same id": (lambda forge: forge.by(THIEF), EDGE),
    "another key under an id of its own": (lambda forge: forge.by(THIEF, kid="thief"), EDGE),
    "a path for an id": (lambda forge: forge.by(THIEF, kid="../../../../dev/null"), EDGE),
    "a query for an id": (lambda forge: forge.by(THIEF, kid="x' UNION SELECT 'key'--"), EDGE),
    "no id": (lambda forge: forge.by(THIEF, kid=""), EDGE),
    "a key in its own header": (lambda forge: forge.by(THIEF, jwk=_jwk(THIEF)), EDGE),
    "the address of a key set": (lambda forge: forge.by(THIEF, jku="http://127.0.0.1:1/jwks.json"), EDGE),
    "another audience": (lambda forge: forge.signed(aud="elsewhere"), EDGE),
    "another issuer": (lambda forge: forge.signed(iss="elsewhere"), EDGE),
    "no expiry": (lambda forge: forge.signed(exp=None), EDGE),
    "expired": (lambda forge: forge.signed(exp=forge.claims["iat"] - 60), "TOKEN_EXPIRED"),
    "not valid yet": (lambda forge: forge.signed(nbf=forge.claims["iat"] + 3600), EDGE),
    # The edge does not check the following claims; the services do.
    "another type": (lambda forge: forge.signed(headers={"typ": "JWT"}), SERVICE),
    "a service's type": (lambda forge: forge.signed(headers={"typ": "mesh+jwt"}), SERVICE),
    "a real signature and a foreign key": (lambda forge: forge.signed(headers={"jwk": _jwk(THIEF)}), SERVICE),
    "a real signature and a foreign key set": (
        lambda forge: forge.signed(headers={"jku": "http://127.0.0.1:1/jwks.json"}),
        SERVICE,
    ),
    "no session": (lambda forge: forge.signed(sid=None), SERVICE),
    "an unknown role": (lambda forge: forge.signed(role="ROOT"), SERVICE),
}


@pytest.fixture
async def forge(mesh: RunningMesh, member: Member) -> Forge:
    token = member.access_token
    claims = jwt.decode(token, options={"verify_signature": False})
    kid = jwt.get_unverified_header(token)["kid"]
    async with await psycopg.AsyncConnection.connect(databases_of(mesh)["auth"]) as connection:
        cursor = await connection.execute("SELECT sealed_private_key FROM signing_keys WHERE kid = %s", (kid,))
        (sealed,) = await cursor.fetchone() or (b"",)
    secret = Seal(key_in(mesh, "auth", "storymesh_signing_key_secret")).unseal(f"signing-key:{kid}", sealed)
    key = load_der_private_key(secret, password=None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    return Forge(claims, kid, key)


@pytest.fixture
async def member(mesh: RunningMesh, door: Door) -> Member:
    return await signed_up(door, mesh)


@pytest.fixture
async def services(mesh: RunningMesh) -> AsyncIterator[dict[str, Door]]:
    """Channels to the services' own ports, with a read of each."""
    async with (
        grpc.aio.insecure_channel(mesh.address("auth")) as auth,
        grpc.aio.insecure_channel(mesh.address("story")) as story,
        grpc.aio.insecure_channel(mesh.address("notification")) as notification,
    ):
        yield {
            "GetAccount": GrpcDoor(auth),
            "ListStories": GrpcDoor(story),
            "ListNotifications": GrpcDoor(notification),
        }


async def test_a_forged_token_is_refused_at_the_edge_and_by_every_service(
    door: Door, forge: Forge, services: dict[str, Door]
) -> None:
    genuine = forge.signed()
    for name, service in services.items():
        assert (await service.call(name, token=genuine)).ok
        assert (await door.call(name, token=genuine)).ok
        for what, (make, reason) in FORGERIES.items():
            token = make(forge)
            at_the_edge = await door.call(name, token=token)
            assert at_the_edge.refusal == ("UNAUTHENTICATED", reason), (what, name)
            directly = await service.call(name, token=token)
            assert directly.refusal == ("UNAUTHENTICATED", SERVICE), (what, name)


async def test_a_persons_role_is_the_one_that_auth_gave(door: Door, member: Member) -> None:
    answer = await member.call("RotateKeys")
    assert answer.refusal == ("PERMISSION_DENIED", "PERMISSION_DENIED")
    assert (await door.call("RotateKeys")).refusal == ("UNAUTHENTICATED", "TOKEN_MISSING")
