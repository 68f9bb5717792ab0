"""Notices to the owner of an account, and the names of their devices in them."""

from __future__ import annotations

from datetime import UTC

import pytest
from storymesh.auth.v1 import account_service_pb2, registration_service_pb2
from storymesh.auth.v1 import session_service_pb2 as pb
from storymesh.events.v1 import auth_events_pb2 as events

from kit.identity.caller import Origin
from kit.identity.sealing import Seal
from services.auth.operations.sign_in import device_of
from tests.auth.conftest import PASSWORD, SEAL_KEY, AuthWorld, Member

pytestmark = pytest.mark.slow

ADA = "ada@example.org"
HOME, NEIGHBOUR, ABROAD = "2001:db8:1:2::1", "2001:db8:1:2:3::4", "198.51.100.7"


async def sign_in(
    world: AuthWorld, ip: str, agent: str = "Reader/1.0", *, device_token: str = "", name: str = ""
) -> pb.CreateSessionResponse:
    request = pb.CreateSessionRequest(login=ADA, password=PASSWORD, device_token=device_token, device_name=name)
    return await world.sessions.CreateSession(request, metadata=client(ip, agent))


def client(ip: str, agent: str) -> tuple[tuple[str, str], ...]:
    return ("x-storymesh-client-address", ip), ("x-user-agent", agent)


async def new_devices(world: AuthWorld) -> list[events.DeviceMail]:
    seal = Seal(SEAL_KEY)
    kind = events.DeviceMail.DESCRIPTOR.full_name
    return [
        events.DeviceMail.FromString(seal.unseal(kind, event.sealed_device))
        for event in await world.told(events.NewDeviceSignedIn)
    ]


@pytest.fixture
async def ada(world: AuthWorld) -> Member:
    """A member, registered at home."""
    registration_id = await world.start(ADA, username="countess")
    request = registration_service_pb2.CompleteRegistrationRequest(
        registration_id=registration_id, code=await world.code(registration_id)
    )
    response = await world.registrations.CompleteRegistration(request, metadata=client(HOME, "Reader/1.0"))
    return Member(response.user, response.tokens, response.device_token)


class TestNewDevices:
    async def test_a_sign_in_from_a_new_device_is_told_with_its_name_place_and_time(
        self, world: AuthWorld, ada: Member
    ) -> None:
        await sign_in(world, ABROAD, name="somebody's tablet")
        (mail,) = await new_devices(world)
        assert (mail.device_name, mail.ip) == ("somebody's tablet", ABROAD)
        assert mail.sign_in_time.ToDatetime(UTC) == world.clock()
        (event,) = await world.told(events.NewDeviceSignedIn)
        assert event.user_id == ada.user.id
        assert b"tablet" not in event.SerializeToString()

    async def test_a_registration_is_none(self, world: AuthWorld, ada: Member) -> None:
        assert await new_devices(world) == []

    async def test_a_device_that_shows_its_token_is_known_wherever_it_is(self, world: AuthWorld, ada: Member) -> None:
        await sign_in(world, ABROAD, "Other/2.0", device_token=ada.device_token)
        challenge = await world.start_code(ADA)
        code = await world.code(challenge)
        request = pb.CompleteSessionCodeRequest(challenge_id=challenge, code=code, device_token=ada.device_token)
        response = await world.sessions.CompleteSessionCode(request, metadata=client("203.0.113.9", "Third/3.0"))
        assert response.device_token == ada.device_token
        assert await new_devices(world) == []

    async def test_a_client_without_a_token_is_known_by_its_agent_and_network(
        self, world: AuthWorld, ada: Member
    ) -> None:
        for ip in (HOME, NEIGHBOUR):
            await sign_in(world, ip)
        assert await new_devices(world) == []
        await sign_in(world, HOME, "Other/2.0")
        await sign_in(world, ABROAD)
        await sign_in(world, ABROAD)
        assert [mail.ip for mail in await new_devices(world)] == [HOME, ABROAD]

    async def test_a_client_that_gives_another_name_says_that_it_is_another_device(
        self, world: AuthWorld, ada: Member
    ) -> None:
        for name in ("", "tablet", "tablet ", "", "work"):
            await sign_in(world, HOME, name=name)
        assert [mail.device_name for mail in await new_devices(world)] == ["tablet", "work"]

    async def test_somebody_elses_device_token_makes_no_device_known(self, world: AuthWorld, ada: Member) -> None:
        bob = await world.register("bob@example.org")
        await sign_in(world, ABROAD, device_token=bob.device_token)
        assert len(await new_devices(world)) == 1

    async def test_a_sign_in_by_code_is_told_too_and_one_that_fails_is_not(self, world: AuthWorld, ada: Member) -> None:
        challenge = await world.start_code(ADA)
        request = pb.CompleteSessionCodeRequest(challenge_id=challenge, code=await world.code(challenge))
        async with world.refused_by("audit_entries"):
            with pytest.raises(Exception, match="internal"):
                await world.sessions.CompleteSessionCode(request, metadata=client(ABROAD, "Reader/1.0"))
        assert await new_devices(world) == []
        await world.sessions.CompleteSessionCode(request, metadata=client(ABROAD, "Reader/1.0"))
        assert len(await new_devices(world)) == 1


@pytest.mark.parametrize(
    ("given", "agent", "shown"),
    [
        ("", "Reader/1.0 (Ada's telephone)", "Reader/1.0 (Ada's telephone)"),
        ("", "x" * 300, "x" * 64),
        ("", "", "Unknown device"),
        ("   ", " \u200b ", "Unknown device"),
        ("", "?", "Unknown device"),
        ("", " -/? \u0301", "Unknown device"),
        ("\u3164\u115f", "Reader/1.0", "Reader/1.0"),
        ("\u0301", "Reader/1.0", "Reader/1.0"),
        ("safe \u202egpj.exe", "", "safe gpj.exe"),
        ("a\u200bb\ufeffc", "", "abc"),
        ("  Ada's \u00a0 tablet ", "", "Ada's tablet"),
        ("", "Lo\u00ef's\u2028 \u2066iPad\u2069", "Loï's iPad"),
        ("\N{WOMAN}\u200d\N{PERSONAL COMPUTER}", "", "\N{WOMAN}\u200d\N{PERSONAL COMPUTER}"),
    ],
)
def test_a_devices_name_is_cleaned_wherever_it_comes_from_and_never_empty(given: str, agent: str, shown: str) -> None:
    assert device_of(given, Origin(HOME, agent)).name == shown


class TestAccounts:
    async def test_another_username_is_told_and_nothing_else_that_changes(self, world: AuthWorld, ada: Member) -> None:
        for request in (
            account_service_pb2.UpdateAccountRequest(first_name="Ada"),
            account_service_pb2.UpdateAccountRequest(username="countess"),
        ):
            await world.accounts.UpdateAccount(request, metadata=ada.auth)
        assert await world.told(events.UsernameChanged) == []
        for username in ("lovelace", ""):
            request = account_service_pb2.UpdateAccountRequest(username=username)
            await world.accounts.UpdateAccount(request, metadata=ada.auth)
        assert [event.user_id for event in await world.told(events.UsernameChanged)] == [ada.user.id, ada.user.id]

    async def test_a_deletion_is_told_to_the_address_that_was_under_no_name_of_the_account(
        self, world: AuthWorld, ada: Member
    ) -> None:
        await world.delete_account(ada, password=PASSWORD)
        (event,) = await world.told(events.AccountDeleted)
        kind = events.AddressMail.DESCRIPTOR.full_name
        mail = events.AddressMail.FromString(Seal(SEAL_KEY).unseal(kind, event.sealed_mail))
        assert mail.email == ADA
        query = "SELECT key FROM outbox WHERE type = 'storymesh.events.v1.AccountDeleted'"
        assert await world.scalar(query) != ada.user.id
        assert ADA.encode() not in event.SerializeToString()
