"""Signing keys of access tokens: generation, publication and rotation."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta

import jwt
import pytest
from sqlalchemy import text

from kit.data.database import Database
from kit.errors import Unavailable
from kit.identity.sealing import Seal
from services.auth.operations.accounts import AT_THE_SERVER
from services.auth.operations.audit import Audit
from services.auth.operations.endings import Endings
from services.auth.operations.keys import KeyRotation, SigningKeys, thumbprint
from tests.auth.conftest import FakeClock
from tests.conftest import empty

SEAL = Seal(b"k" * 32)
PUBLISH_AHEAD = timedelta(minutes=15)


@pytest.fixture
async def db(database_of: Callable[[str], Database]) -> Database:
    db = database_of("auth")
    await empty(db)
    return db


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def rotation(db: Database, clock: FakeClock) -> KeyRotation:
    return KeyRotation(
        db,
        SEAL,
        Endings(clock, token_life=timedelta(minutes=10)),
        Audit(db, clock),
        clock,
        period=timedelta(days=30),
        publish_ahead=PUBLISH_AHEAD,
    )


def signing_keys(db: Database, clock: FakeClock, seal: Seal = SEAL) -> SigningKeys:
    return SigningKeys(db, seal, clock, publish_ahead=PUBLISH_AHEAD)


async def kids(keys: SigningKeys) -> list[str]:
    return [key["kid"] for key in await keys.load()]


async def signer(keys: SigningKeys) -> str:
    await keys.load()
    return str(jwt.get_unverified_header(keys.sign({}))["kid"])


def test_the_thumbprint_is_that_of_rfc_7638() -> None:
    """The elliptic-curve key of RFC 7517, A.1; members that are not required make no difference."""
    jwk = {
        "kty": "EC",
        "crv": "P-256",
        "x": "MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",
        "y": "4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",
    }
    assert thumbprint(jwk) == thumbprint({**jwk, "use": "enc", "kid": "1"})
    assert thumbprint(jwk) == "cn-I_WNMClehiVp51i_0VpOENW1upEerA8sEam5hn-s"


async def test_replicas_that_start_at_the_same_time_agree_on_one_first_key(db: Database, clock: FakeClock) -> None:
    replicas = [signing_keys(db, clock) for _ in range(8)]
    await asyncio.gather(*(replica.load() for replica in replicas))
    assert len({tuple(await kids(replica)) for replica in replicas}) == 1
    assert len({await signer(replica) for replica in replicas}) == 1
    assert len(await kids(replicas[0])) == 1


async def test_before_the_first_load_there_is_no_key_and_no_empty_set(db: Database, clock: FakeClock) -> None:
    keys = signing_keys(db, clock)
    with pytest.raises(Unavailable):
        await keys.check()
    with pytest.raises(Unavailable):
        keys.published()
    with pytest.raises(Unavailable):
        keys.sign({})


async def test_a_successor_stands_by_and_signs_when_the_key_is_30_days_old_and_the_former_is_kept_30_minutes(
    db: Database, clock: FakeClock, rotation: KeyRotation
) -> None:
    keys = signing_keys(db, clock)
    (first,) = await kids(keys)
    clock.advance(seconds=1)
    await rotation.advance()
    second, _ = await kids(keys)
    assert await signer(keys) == first

    clock.advance(days=30, seconds=-2)
    await rotation.advance()
    assert await signer(keys) == first

    clock.advance(seconds=1)
    await rotation.advance()
    assert await signer(keys) == second
    third, *former = await kids(keys)
    assert sorted(former) == sorted([first, second])

    clock.advance(minutes=30)
    await rotation.advance()
    assert len(await kids(keys)) == 3

    clock.advance(seconds=1)
    await rotation.advance()
    assert await kids(keys) == [third, second]


async def test_a_successor_that_was_made_only_just_signs_when_it_was_published_for_15_minutes(
    db: Database, clock: FakeClock, rotation: KeyRotation
) -> None:
    keys = signing_keys(db, clock)
    await keys.load()
    clock.advance(days=31)
    await rotation.advance()
    first = await signer(keys)
    clock.advance(minutes=15, seconds=-1)
    await rotation.advance()
    assert await signer(keys) == first
    clock.advance(seconds=1)
    await rotation.advance()
    assert await signer(keys) != first


async def test_a_rotation_on_demand_takes_effect_at_once_or_when_the_successor_is_known(
    db: Database, clock: FakeClock, rotation: KeyRotation
) -> None:
    keys = signing_keys(db, clock)
    await keys.load()
    await rotation.advance()
    clock.advance(minutes=15)
    kid, begins_at = await rotation.rotate(None, AT_THE_SERVER)
    assert (await signer(keys), begins_at) == (kid, clock())

    young, begins_at = await rotation.rotate(None, AT_THE_SERVER)
    assert (await signer(keys), begins_at) == (kid, clock() + PUBLISH_AHEAD)
    clock.advance(minutes=15)
    await rotation.advance()
    assert await signer(keys) == young


async def test_a_dropped_key_is_replaced_at_once_by_the_successor_that_is_known(
    db: Database, clock: FakeClock, rotation: KeyRotation
) -> None:
    keys = signing_keys(db, clock)
    await keys.load()
    await rotation.advance()
    leaked, published = await signer(keys), await kids(keys)
    active = await rotation.drop(leaked, None, AT_THE_SERVER)
    assert active in published
    assert await signer(keys) == active
    assert leaked not in await kids(keys)
    assert len(await kids(keys)) == 2


async def test_of_several_that_drop_keys_at_the_same_time_each_leaves_one_that_signs(
    db: Database, clock: FakeClock, rotation: KeyRotation
) -> None:
    keys = signing_keys(db, clock)
    await keys.load()
    await rotation.advance()
    outcomes = await asyncio.gather(
        *(rotation.drop(kid, None, AT_THE_SERVER) for kid in await kids(keys)), return_exceptions=True
    )
    assert all(isinstance(outcome, str) for outcome in outcomes)
    assert len(await kids(keys)) == 2
    assert await signer(keys)


async def test_a_retired_keys_private_half_is_erased(db: Database, clock: FakeClock, rotation: KeyRotation) -> None:
    keys = signing_keys(db, clock)
    await keys.load()
    clock.advance(days=30)
    await rotation.advance()
    clock.advance(minutes=15)
    await rotation.advance()
    async with db.transaction() as tx:
        rows = (await tx.execute(text("SELECT state, sealed_private_key IS NULL FROM signing_keys ORDER BY 1"))).all()
    assert [tuple(row) for row in rows] == [("ACTIVE", False), ("PENDING", False), ("RETIRED", True)]


async def test_workers_that_rotate_at_the_same_time_make_one_successor(
    db: Database, clock: FakeClock, rotation: KeyRotation
) -> None:
    keys = signing_keys(db, clock)
    await keys.load()
    for step in ({"days": 30.0}, {"minutes": 15.0}):
        clock.advance(**step)
        await asyncio.gather(*(rotation.advance() for _ in range(8)))
    async with db.transaction() as tx:
        states = (await tx.scalars(text("SELECT state FROM signing_keys ORDER BY 1"))).all()
    assert states == ["ACTIVE", "PENDING", "RETIRED"]


async def test_tokens_of_the_former_key_verify_while_they_live(
    db: Database, clock: FakeClock, rotation: KeyRotation
) -> None:
    keys = signing_keys(db, clock)
    await keys.load()
    clock.advance(days=30)
    await rotation.advance()
    clock.advance(minutes=15)
    token = keys.sign({"sub": "ada"})
    await rotation.advance()
    clock.advance(minutes=11)
    await rotation.advance()
    published = {key["kid"]: jwt.PyJWK(dict(key)) for key in await keys.load()}
    assert jwt.decode(token, published[jwt.get_unverified_header(token)["kid"]], algorithms=["ES256"])


async def test_a_key_sealed_with_another_secret_is_reported_and_signs_nothing(
    db: Database, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    await signing_keys(db, clock).load()
    keys = signing_keys(db, clock, Seal(b"K" * 32))
    await keys.refresh()
    assert "STORYMESH_SIGNING_KEY_SECRET" in caplog.text
    with pytest.raises(Unavailable):
        keys.sign({})
    # Signatures made under the former secret still verify.
    assert keys.published()
