"""Commands of administrators and operators: rotate and drop signing keys, and grant the administrator's role."""

from __future__ import annotations

import asyncio
import os
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping
from datetime import timedelta
from functools import partial
from typing import Any
from uuid import UUID

import jwt
import pytest
from grpc import StatusCode
from grpc.aio import AioRpcError
from sqlalchemy import event
from sqlalchemy.engine import Engine
from sqlalchemy.util import await_only
from storymesh.auth.v1 import key_service_pb2 as pb
from storymesh.auth.v1 import session_service_pb2
from storymesh.auth.v1.user_pb2 import ROLE_ADMIN, ROLE_USER

from kit.errors import MeshError
from kit.identity.tokens import AccessTokens, KeySet
from kit.runtime import base64url
from services.auth.operations.accounts import AT_THE_SERVER
from tests.auth.conftest import SIGNING_SECRET, AuthWorld, MakeWorld, Member, session_id_of
from tests.commands import Commands
from tests.commands import commands as running_commands
from tests.identity import MESH_KEY
from tests.statuses import raises_status, reason_of
from tests.waiting import until

pytestmark = pytest.mark.slow

ADA, ADMIN = "ada@example.org", "admin@example.org"


@pytest.fixture
async def admin(world: AuthWorld) -> Member:
    return await world.make_admin(ADMIN)


async def rotate(world: AuthWorld, member: Member) -> pb.RotateKeysResponse:
    return await world.keys.RotateKeys(pb.RotateKeysRequest(), metadata=member.auth)


async def drop(world: AuthWorld, member: Member, kid: str) -> str:
    return (await world.keys.DropKey(pb.DropKeyRequest(kid=kid), metadata=member.auth)).active_kid


async def states(world: AuthWorld) -> dict[str, str]:
    """The kid of the key in each state."""
    rows = await world.scalar("SELECT jsonb_object_agg(state, kid) FROM signing_keys")
    assert isinstance(rows, dict)
    return rows


async def published(world: AuthWorld) -> list[str]:
    return [key.kid for key in (await world.keys.GetJwks(pb.GetJwksRequest())).keys]


def kid_of(access_token: str) -> str:
    return str(jwt.get_unverified_header(access_token)["kid"])


async def list_sessions(world: AuthWorld, access_token: str) -> None:
    """A call that checks nothing but the token."""
    request = session_service_pb2.ListSessionsRequest()
    await world.sessions.ListSessions(request, metadata=(("authorization", f"Bearer {access_token}"),))


async def is_refused(world: AuthWorld, access_token: str) -> bool:
    try:
        await list_sessions(world, access_token)
    except AioRpcError as error:
        # A replica that has reread the keys does not know a dropped one.
        return reason_of(error) in ("SESSION_REVOKED", "UNAUTHENTICATED")
    return False


def has_gone_on(rounds: Counter[int], number: int, least: int) -> bool:
    return rounds[number] >= least


class TestAccess:
    async def test_keys_are_no_matter_of_people_who_do_not_administer(self, world: AuthWorld) -> None:
        ada = await world.register(ADA)
        before = await states(world)
        for call in (rotate(world, ada), drop(world, ada, before["ACTIVE"])):
            with raises_status(StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"):
                await call
        assert await states(world) == before

    async def test_nor_of_administrators_that_were(self, world: AuthWorld, admin: Member) -> None:
        await world.withdraw_admin(ADMIN)
        await until(lambda: world.ops.revocations.count)
        with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
            await rotate(world, admin)
        with raises_status(StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"):
            await rotate(world, await world.sign_in(ADMIN))

    async def test_a_sign_in_that_overtakes_the_withdrawal_of_the_role_does_not_carry_it(
        self, world: AuthWorld, admin: Member
    ) -> None:
        """The withdrawal ends all sessions; a session that is being opened must not have the role for ten more minutes."""
        async with world.db.transaction() as tx:
            await tx.exec_driver_sql("UPDATE users SET role = 'USER'")
            signing_in = asyncio.create_task(world.sign_in(ADMIN))
            await until(world.waits_for_a_lock)
        member = await signing_in
        assert member.user.role == ROLE_USER
        with raises_status(StatusCode.PERMISSION_DENIED, "PERMISSION_DENIED"):
            await rotate(world, member)


class TestRotation:
    async def test_the_answer_names_a_published_key_and_when_it_signs(self, world: AuthWorld, admin: Member) -> None:
        await world.ops.key_rotation.advance()
        first = (await states(world))["ACTIVE"]
        response = await rotate(world, admin)
        await world.ops.keys.refresh()
        assert response.kid in await published(world)
        begins_at = response.activate_time.ToDatetime(world.clock().tzinfo)
        assert begins_at == world.clock() + timedelta(minutes=15)
        while world.clock() < begins_at:
            assert (await states(world))["ACTIVE"] == first
            world.clock.now = min(begins_at, world.clock() + (begins_at - world.clock()) / 2 + begins_at.resolution)
            await world.ops.key_rotation.advance()
        await world.ops.keys.refresh()
        assert kid_of((await world.sign_in(ADMIN)).tokens.access_token) == response.kid
        # Tokens of the former key are valid until they expire.
        assert {first, response.kid} <= set(await published(world))

    async def test_nobody_is_refused_while_keys_are_replaced_under_load(self, make_world: MakeWorld) -> None:
        """Two replicas that notice at different times, a service that caches the key set for five minutes, tokens of every age."""
        settings: dict[str, Any] = {"signing_key_days": 20 / 1440, "sign_in_failures_per_network": 10_000}
        replicas = [await make_world(**settings), await make_world(**settings)]
        clock = replicas[0].clock

        async def fetch() -> list[Mapping[str, str]]:
            keys = (await replicas[1].keys.GetJwks(pb.GetJwksRequest())).keys
            return [{field.name: value for field, value in key.ListFields()} for key in keys]

        service = AccessTokens(
            KeySet(fetch, clock), replicas[1].ops.revocations, issuer="storymesh", audience="storymesh", clock=clock
        )
        troubles: Counter[str] = Counter()
        kids: set[str] = set()
        rounds = Counter[int]()
        stopping = asyncio.Event()

        async def using(number: int) -> None:
            here, there = replicas[number % 2], replicas[(number + 1) % 2]
            tokens = (await here.register(f"person{number}@example.org")).tokens
            issued = deque([(clock(), tokens.access_token)])
            while not stopping.is_set():
                try:
                    tokens = await here.refresh(tokens.refresh_token)
                    kids.add(kid_of(tokens.access_token))
                    issued.append((clock(), tokens.access_token))
                    while clock() - issued[0][0] > timedelta(minutes=7):
                        issued.popleft()
                    for token in (issued[0][1], tokens.access_token):
                        await list_sessions(there, token)
                        await service.verify(token)
                except (AioRpcError, MeshError) as error:
                    troubles[str(error)] += 1
                rounds[number] += 1

        async with asyncio.TaskGroup() as group:
            for number in range(3):
                group.create_task(using(number))
            for minute in range(45):
                clock.advance(minutes=1)
                await replicas[0].ops.key_rotation.advance()
                if minute == 17:
                    # The first rotation finds a successor that every verifier knows, the second one a new successor.
                    for _ in range(2):
                        await replicas[0].ops.key_rotation.rotate(None, AT_THE_SERVER)
                await replicas[minute % 2].ops.keys.refresh()
                seen = rounds.copy()
                for number in range(3):
                    await until(partial(has_gone_on, rounds, number, seen[number] + 2))
            stopping.set()
        assert troubles == {}
        assert len(kids) >= 3


class TestDrop:
    async def test_what_a_dropped_key_signed_is_refused_and_a_refresh_helps_at_once(
        self, make_world: MakeWorld
    ) -> None:
        first, second = await make_world(), await make_world()
        await first.ops.key_rotation.advance()
        admin, ada = await first.make_admin(ADMIN), await first.register(ADA)
        tokens = ada.tokens
        for _ in range(5):
            # Verifiers fetch unknown keys every two seconds at most.
            first.clock.advance(seconds=2)
            leaked = kid_of(tokens.access_token)
            active = await drop(first, admin, leaked)
            assert active != leaked
            tokens = await first.refresh(tokens.refresh_token)
            for replica in (first, second):
                await until(partial(is_refused, replica, admin.tokens.access_token))
                await list_sessions(replica, tokens.access_token)
            admin.tokens.CopyFrom(await first.refresh(admin.tokens.refresh_token))
            assert leaked not in await published(first)

    async def test_the_replica_that_drops_a_key_signs_nothing_more_with_it_even_before_the_feed_comes_round(
        self, world: AuthWorld, admin: Member
    ) -> None:
        """A refresh right after would otherwise answer with a token of the dropped key, which every service refuses."""
        await world.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE query = 'LISTEN revocations'")
        active = await drop(world, admin, kid_of(admin.tokens.access_token))
        assert kid_of((await world.refresh(admin.tokens.refresh_token)).access_token) == active
        assert (await published(world)).count(active) == 1

    async def test_every_replica_signs_with_another_key_soon(self, make_world: MakeWorld) -> None:
        first, second = await make_world(), await make_world()
        admin = await first.make_admin(ADMIN)
        active = await drop(first, admin, kid_of(admin.tokens.access_token))

        async def signs_anew() -> bool:
            return kid_of((await second.sign_in(ADMIN)).tokens.access_token) == active

        await until(signs_anew)

    async def test_a_key_that_does_not_sign_is_dropped_without_a_change_of_the_one_that_does(
        self, world: AuthWorld, admin: Member
    ) -> None:
        await world.ops.key_rotation.advance()
        world.clock.advance(minutes=15)
        admin = await world.sign_in(ADMIN)
        await world.ops.key_rotation.rotate(None, AT_THE_SERVER)
        await world.ops.key_rotation.advance()
        before = await states(world)
        assert before.keys() == {"ACTIVE", "PENDING", "RETIRED"}
        for state in ("PENDING", "RETIRED"):
            assert await drop(world, admin, before[state]) == before["ACTIVE"]
        assert (await states(world))["ACTIVE"] == before["ACTIVE"]

    async def test_a_key_can_be_dropped_while_nothing_stands_by(self, world: AuthWorld, admin: Member) -> None:
        await world.execute("DELETE FROM signing_keys WHERE state <> 'ACTIVE'")
        active = await drop(world, admin, (await states(world))["ACTIVE"])
        assert (await states(world))["ACTIVE"] == active

    async def test_an_unknown_key_and_one_dropped_before_are_not_found(self, world: AuthWorld, admin: Member) -> None:
        await world.ops.key_rotation.advance()
        pending = (await states(world)).get("PENDING") or (await rotate(world, admin)).kid
        await drop(world, admin, pending)
        for kid in (pending, "A" * 43):
            with raises_status(StatusCode.NOT_FOUND, "KEY_NOT_FOUND"):
                await drop(world, admin, kid)
        with pytest.raises(AioRpcError) as raised:
            await drop(world, admin, "../" * 10)
        assert raised.value.code() is StatusCode.INVALID_ARGUMENT

    async def test_a_drop_that_cannot_be_recorded_whole_did_not_happen(self, world: AuthWorld, admin: Member) -> None:
        before = await states(world)
        for table in ("audit_entries", "revocations"):
            async with world.refused_by(table):
                with raises_status(StatusCode.INTERNAL, "INTERNAL"):
                    await drop(world, admin, before["ACTIVE"])
        assert await states(world) == before
        assert await world.account(admin)

    async def test_a_replica_that_was_reading_the_keys_meanwhile_does_not_go_back_to_a_dropped_one(
        self, world: AuthWorld, admin: Member
    ) -> None:
        """Two reads overlap: the one that began first, and saw the dropped key, ends last."""
        has_read, go_on = asyncio.Event(), asyncio.Event()

        def hold(_connection: object, _cursor: object, statement: str, *_: object) -> None:
            if "FROM signing_keys" in statement and not has_read.is_set():
                has_read.set()
                await_only(go_on.wait())

        event.listen(Engine, "after_cursor_execute", hold)
        try:
            early = asyncio.create_task(world.ops.keys.refresh())
            await has_read.wait()
            active = await world.ops.key_rotation.drop((await states(world))["ACTIVE"], None, AT_THE_SERVER)
            await until(lambda: world.ops.revocations.count)
            late = asyncio.create_task(world.ops.keys.refresh())
            # Reads may be serialized, and then this one does not end before the other.
            await asyncio.wait({late}, timeout=0.5)
            go_on.set()
            await asyncio.gather(early, late)
        finally:
            event.remove(Engine, "after_cursor_execute", hold)
        assert kid_of((await world.sign_in(ADMIN)).tokens.access_token) == active


@pytest.fixture(scope="module")
async def commands() -> AsyncIterator[Commands]:
    async with running_commands("services.auth") as running:
        yield running


class TestCommandLine:
    async def test_an_operator_makes_and_removes_an_administrator(self, commands: Commands, world: AuthWorld) -> None:
        ada = await world.register(ADA)
        sentence = f"{ADA} is an administrator from the next sign-in or refresh on.\n"
        assert await run(commands, world, "make-admin", ADA) == (0, sentence, "")
        assert await run(commands, world, "make-admin", ADA.upper()) == (0, f"{ADA.upper()} was one before.\n", "")
        assert await run(commands, world, "make-admin", f"\t{ADA}\N{NO-BREAK SPACE}") == (
            0,
            f"\t{ADA}\N{NO-BREAK SPACE} was one before.\n",
            "",
        )
        tokens = await world.refresh(ada.tokens.refresh_token)
        admin = Member((await world.account(ada)), tokens)
        assert admin.user.role == ROLE_ADMIN
        await rotate(world, admin)

        sentence = f"{ADA} is no administrator any more and has to sign in again.\n"
        assert await run(commands, world, "remove-admin", ADA) == (0, sentence, "")
        await until(lambda: is_refused(world, tokens.access_token))
        with raises_status(StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
            await world.refresh(tokens.refresh_token)
        assert await run(commands, world, "remove-admin", ADA) == (0, f"{ADA} was none.\n", "")
        assert (await world.sign_in(ADA)).user.role == ROLE_USER
        actions = [action for action, _ in await world.audited()]
        assert (actions.count("ROLE_GRANT"), actions.count("ROLE_WITHDRAW")) == (1, 1)
        row = await world.scalar(
            "SELECT row_to_json(a) FROM audit_entries a WHERE action = 'ROLE_WITHDRAW' AND subject_id = :id",
            id=UUID(ada.user.id),
        )
        assert isinstance(row, dict)
        assert (row["actor_id"], row["ip"], row["user_agent"]) == (None, "", "command line")

    @pytest.mark.parametrize("command", ["make-admin", "remove-admin"])
    async def test_an_address_without_an_account_is_told(
        self, commands: Commands, world: AuthWorld, command: str
    ) -> None:
        sentence = f"auth {command}: there is no such account\n"
        assert await run(commands, world, command, "nobody@example.org") == (1, "", sentence)
        assert await world.audited() == []

    async def test_an_operator_replaces_and_drops_keys(self, commands: Commands, world: AuthWorld) -> None:
        ada = await world.register(ADA)
        leaked = (await states(world))["ACTIVE"]
        code, out, err = await run(commands, world, "rotate-keys")
        assert (code, err) == (0, "")
        words = out.split()
        assert words[0] == "Key"
        assert words[1] in (await states(world)).values()
        code, out, _ = await run(commands, world, "drop-key", leaked)
        active = (await states(world))["ACTIVE"]
        assert (code, out) == (0, f"Key {leaked} is dropped; key {active} signs.\n")
        await until(lambda: is_refused(world, ada.tokens.access_token))
        tokens = await world.refresh(ada.tokens.refresh_token)
        assert kid_of(tokens.access_token) == active
        assert session_id_of(tokens) == ada.session_id
        await list_sessions(world, tokens.access_token)
        assert [action for action, _ in await world.audited()][1:] == ["KEY_ROTATE", "KEY_DROP"]
        assert await run(commands, world, "drop-key", leaked) == (1, "", "auth drop-key: there is no such key\n")

    async def test_a_command_without_its_argument_is_told_so(self, commands: Commands, world: AuthWorld) -> None:
        code, out, err = await run(commands, world, "drop-key")
        assert (code, out) == (2, "")
        assert "required: kid" in err


async def run(commands: Commands, world: AuthWorld, *arguments: str) -> tuple[int, str, str]:
    """Run a command at the world's database; return its exit code, standard output and standard error."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("STORYMESH_")} | {
        "STORYMESH_DATABASE_URL": world.settings.database_url.get_secret_value(),
        "STORYMESH_MESH_KEY": base64url.encode(MESH_KEY),
        "STORYMESH_SIGNING_KEY_SECRET": base64url.encode(SIGNING_SECRET),
    }
    code, out, err = await commands.run(*arguments, environment=environment)
    # Log lines, such as the warning that a key was dropped, are not the command's message.
    return code, out, "".join(line for line in err.splitlines(keepends=True) if not line.startswith("{"))
