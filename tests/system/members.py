"""People with accounts who call through either door."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from local.harness import RunningMesh
from tests.system.conftest import PASSWORD, code_for
from tests.system.doors import Answer, Door
from tests.waiting import until

WRONG_PASSWORD = "not the password of anybody here"


@dataclass
class Member:
    """One signed-in device of a person with an account."""

    door: Door
    mesh: RunningMesh
    email: str
    user: dict[str, Any]
    tokens: dict[str, Any]
    device_token: str
    password: str = PASSWORD

    @property
    def access_token(self) -> str:
        return str(self.tokens["access_token"])

    @property
    def refresh_token(self) -> str:
        return str(self.tokens["refresh_token"])

    async def call(self, name: str, /, **request: Any) -> Answer:
        return await self.door.call(name, token=self.access_token, **request)

    async def must(self, name: str, /, **request: Any) -> dict[str, Any]:
        """Make a call that must succeed; return its body."""
        return body_of(await self.call(name, **request))

    async def on_another_device(self) -> Member:
        answer = await self.door.call("CreateSession", login=self.email, password=self.password)
        return member_of(self.door, self.mesh, self.email, body_of(answer), self.password)


def body_of(answer: Answer) -> dict[str, Any]:
    assert answer.ok, answer
    return answer.body


def member_of(door: Door, mesh: RunningMesh, email: str, body: dict[str, Any], password: str = PASSWORD) -> Member:
    return Member(door, mesh, email, body["user"], body["tokens"], body["device_token"], password)


def new_address() -> str:
    return f"reader-{uuid4().hex[:12]}@example.com"


async def begun(door: Door, email: str, **details: Any) -> str:
    """Begin a registration; return its id."""
    answer = await door.call("CreateRegistration", **{"email": email, "password": PASSWORD, **details})
    return str(body_of(answer)["registration_id"])


async def signed_up(door: Door, mesh: RunningMesh, email: str = "", **details: Any) -> Member:
    email = email or new_address()
    registration_id = await begun(door, email, **details)
    code = await code_for(mesh.mail_dir, email)
    answer = await door.call("CompleteRegistration", registration_id=registration_id, code=code)
    return member_of(door, mesh, email, body_of(answer), details.get("password", PASSWORD))


def wrong(code: str, by: int = 1) -> str:
    """Return another code of the same length."""
    return f"{(int(code) + by) % 10 ** len(code):0{len(code)}}"


async def at_once(number: int, call: Callable[[int], Awaitable[Answer]]) -> list[Answer]:
    """Make that many calls concurrently; return their answers."""
    return list(await asyncio.gather(*(call(index) for index in range(number))))


async def ends(call: Callable[[], Awaitable[Answer]], refusal: tuple[str, str], seconds: float = 2.0) -> None:
    """Wait until the call is refused with this reason, at most for the time that a revocation may take."""

    async def refused() -> bool:
        return (await call()).refusal == refusal

    await until(refused, seconds)
