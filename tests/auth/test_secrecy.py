"""What a thief of the database, of Redis or of the logs learns."""

from __future__ import annotations

import logging
from typing import Any
from uuid import UUID

import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError
from sqlalchemy import text
from storymesh.auth.v1 import session_service_pb2

from kit.events.relay import Relay
from kit.identity.sealing import Seal, Unsealable
from mesh.event_routes import routes
from services.auth import store
from services.auth.model.refresh_tokens import RefreshTokens
from tests.auth.conftest import PASSWORD, AuthWorld, session_id_of
from tests.statuses import raises_status

ADA = "ada@example.org"


async def database_dump(world: AuthWorld) -> str:
    dump: list[str] = []
    async with world.db.transaction() as tx:
        tables = (await tx.scalars(text("SELECT tablename FROM pg_tables WHERE schemaname = 'public'"))).all()
        for table in tables:
            dump += (await tx.scalars(text(f"SELECT t::text FROM {table} t"))).all()
    return "\n".join(dump)


async def redis_dump(redis: Any) -> bytes:
    dump: list[bytes] = []
    for key in await redis.keys("*"):
        dump.append(key)
        match await redis.type(key):
            case b"string":
                dump.append(await redis.get(key))
            case b"hash":
                dump += [part for pair in (await redis.hgetall(key)).items() for part in pair]
            case b"zset":
                dump += await redis.zrange(key, 0, -1)
            case b"stream":
                dump += [value for _, fields in await redis.xrange(key) for value in fields.values()]
            case other:
                raise AssertionError(other)
    return b"\n".join(dump)


async def test_neither_stores_nor_streams_nor_logs_show_a_secret(
    world: AuthWorld, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    registration_id = await world.start(ADA)
    code = await world.code(registration_id)
    dumps = [await redis_dump(world.redis), (await database_dump(world)).encode()]
    async with world.database_lost_on_writing("sessions"):
        with pytest.raises(AioRpcError):
            await world.complete(registration_id, code)
    member = await world.complete(registration_id, code)
    tokens = [member.tokens, (await world.sign_in(ADA)).tokens]
    tokens.append(await world.refresh(tokens[1].refresh_token))
    with raises_status(StatusCode.UNAUTHENTICATED, "REFRESH_INVALID"):
        await world.refresh(tokens[1].refresh_token + "x")
    # An unexpected error in a call that carries secrets.
    await world.execute("ALTER TABLE users RENAME TO away")
    with raises_status(StatusCode.INTERNAL, "INTERNAL"):
        await world.sign_in(ADA)
    await world.execute("ALTER TABLE away RENAME TO users")
    await Relay(world.db, world.redis, routes(), service="auth", database_url="postgresql://").publish()

    dumps += [await redis_dump(world.redis), (await database_dump(world)).encode(), caplog.text.encode()]
    signing_key = (await keys_of(world))[0]
    secrets = [PASSWORD.encode(), *(pair.access_token.encode() for pair in tokens)]
    secrets += [pair.refresh_token.encode() for pair in tokens]
    secrets += [signing_key, signing_key.hex().encode()]
    for dump in dumps:
        assert [secret for secret in secrets if secret in dump] == []
    for dump in dumps:
        # Six digits may occur by accident inside a number; as a word, or as a field of a message, they are the code.
        words = set(dump.decode(errors="replace").translate(str.maketrans("\n,:()'\"", " " * 7)).split())
        assert code not in words
        field = b"\x12\x06" + code.encode()
        assert field not in dump
        assert field.hex().encode() not in dump
    # The address is personal data, stored in the account's own row only.
    assert ADA.encode() not in dumps[0] + dumps[2]
    assert ADA not in caplog.text


async def keys_of(world: AuthWorld) -> list[bytes]:
    """The private halves of the signing keys."""
    async with world.db.transaction() as tx:
        keys = await store.keys.all_of(tx)
    return [
        Seal(world.settings.signing_key_secret.get_secret_value()).unseal(
            f"signing-key:{key.kid}", key.sealed_private_key or b""
        )
        for key in keys
    ]


async def test_a_stolen_database_makes_no_token(world: AuthWorld) -> None:
    member = await world.register(ADA)
    async with world.db.transaction() as tx:
        found = await store.sessions.find(tx, session_id_of(member.tokens))
        (key,) = await store.keys.all_of(tx)
    assert found
    session, _ = found
    thief = RefreshTokens([b"t" * 32])
    tries = [thief.new(session.id, generation, session.nonce) for generation in (1, 2)]
    tries += [session.token_digest.hex(), RefreshTokens([session.token_digest]).new(session.id, 1, session.nonce)]
    for token in tries:
        with raises_status(StatusCode.UNAUTHENTICATED, "REFRESH_INVALID"):
            await world.sessions.RefreshSession(session_service_pb2.RefreshSessionRequest(refresh_token=token))
    with pytest.raises(Unsealable):
        Seal(b"t" * 32).unseal(f"signing-key:{key.kid}", key.sealed_private_key or b"")
    # A row moved under another key id does not open either.
    with pytest.raises(Unsealable):
        Seal(world.settings.signing_key_secret.get_secret_value()).unseal(
            "signing-key:other", key.sealed_private_key or b""
        )


async def test_a_registration_id_is_not_in_what_travels_to_other_services_in_a_usable_way(world: AuthWorld) -> None:
    """The event names the challenge, but its code is sealed, so that a reader of the stream can redeem nothing."""
    registration_id = await world.start(ADA)
    code = await world.code(registration_id)
    ((_, payload),) = await world.published()
    assert UUID(registration_id)
    assert registration_id.encode() in payload
    assert code.encode() not in payload
    assert ADA.encode() not in payload
