"""Nobody can list usernames by trying to take them."""

from __future__ import annotations

from datetime import timedelta

import pytest
from google.rpc.error_details_pb2 import RetryInfo
from grpc import StatusCode
from grpc.aio import AioRpcError
from storymesh.auth.v1 import account_service_pb2 as pb

from tests.auth.conftest import AuthWorld, MakeWorld, Member, outcomes
from tests.statuses import detail, reason_of

pytestmark = pytest.mark.slow

REFUSED = "TOO_MANY_USERNAME_CHANGES"


async def tried(world: AuthWorld, member: Member, username: str, ip: str = "198.51.100.7") -> str:
    """The reason of the refusal, empty if the name was given."""
    request = pb.UpdateAccountRequest(username=username)
    metadata = (*member.auth, ("x-storymesh-client-address", ip))
    try:
        await world.accounts.UpdateAccount(request, metadata=metadata)
    except AioRpcError as error:
        return reason_of(error)
    return ""


async def people(world: AuthWorld, count: int) -> list[Member]:
    return [await world.register(f"person{number}@example.org", username=f"person{number}") for number in range(count)]


async def test_after_a_few_tries_taken_and_free_names_are_refused_alike_for_the_hour(world: AuthWorld) -> None:
    ada, _, bob = await people(world, 3)
    answers = [await tried(world, ada, name) for name in ("person1", "PERSON1", "free1", "person2", "free2")]
    assert answers == ["USERNAME_TAKEN", "USERNAME_TAKEN", "", "USERNAME_TAKEN", ""]
    for name in ("person1", "free3"):
        assert await tried(world, ada, name) == REFUSED
    # The neighbour is not affected.
    assert await tried(world, bob, "free3") == ""
    world.clock.advance(minutes=59, seconds=59)
    ada.tokens = await world.refresh(ada.tokens.refresh_token)
    assert await tried(world, ada, "free4") == REFUSED
    world.clock.advance(seconds=1)
    assert await tried(world, ada, "free4") == ""


async def test_the_refusal_says_how_long_to_wait(world: AuthWorld) -> None:
    (ada,) = await people(world, 1)
    for number in range(5):
        await tried(world, ada, f"free{number}")
    world.clock.advance(minutes=20)
    ada.tokens = await world.refresh(ada.tokens.refresh_token)
    with pytest.raises(AioRpcError) as raised:
        await world.accounts.UpdateAccount(pb.UpdateAccountRequest(username="free9"), metadata=ada.auth)
    assert raised.value.code() is StatusCode.RESOURCE_EXHAUSTED
    advice = detail(raised.value, RetryInfo)
    assert advice
    assert abs(advice.retry_delay.ToTimedelta() - timedelta(minutes=40)) < timedelta(seconds=1)


async def test_tries_at_the_same_time_do_not_slip_through(world: AuthWorld) -> None:
    ada, *_ = await people(world, 2)

    def take(username: str) -> object:
        return world.accounts.UpdateAccount(pb.UpdateAccountRequest(username=username), metadata=ada.auth)

    reasons = await outcomes(*(take("person1") for _ in range(30)))  # type: ignore[arg-type]  # a call can be awaited
    assert reasons == {"USERNAME_TAKEN": 5, REFUSED: 25}


async def test_what_asks_for_nobody_elses_name_is_not_counted(world: AuthWorld) -> None:
    ada, *_ = await people(world, 2)
    for number in range(10):
        request = pb.UpdateAccountRequest(first_name=f"Ada {number}")
        await world.accounts.UpdateAccount(request, metadata=ada.auth)
        assert await tried(world, ada, "Person0" if number % 2 else "person0") == ""
    assert await tried(world, ada, "") == ""
    for _ in range(5):
        assert await tried(world, ada, "person1") == "USERNAME_TAKEN"
    assert await tried(world, ada, "person1") == REFUSED
    assert await tried(world, ada, "") == ""


async def test_many_accounts_of_one_network_find_out_no_more(make_world: MakeWorld) -> None:
    world = await make_world(username_tries_per_network=30)
    members = await people(world, 8)
    for member in members[:6]:
        for _ in range(5):
            assert await tried(world, member, "person7", "2001:db8:1:2::1") == "USERNAME_TAKEN"
    assert await tried(world, members[6], "person7", "2001:db8:1:2:3::4") == REFUSED
    # The refusal was no try of the account's, and another network has a window of its own.
    for _ in range(5):
        assert await tried(world, members[6], "person7", "2001:db8:1:3::1") == "USERNAME_TAKEN"


async def test_without_redis_names_are_not_tried_but_the_rest_changes(world: AuthWorld) -> None:
    ada, *_ = await people(world, 2)
    await world.redis.config_set("min-replicas-to-write", 1)  # so that it refuses to count
    try:
        assert await tried(world, ada, "person1") not in ("", "USERNAME_TAKEN")
        await world.accounts.UpdateAccount(pb.UpdateAccountRequest(first_name="Ada"), metadata=ada.auth)
    finally:
        await world.redis.config_set("min-replicas-to-write", 0)
