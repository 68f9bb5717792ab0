"""The whole mesh, as `make up` starts it, behind a real Envoy."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from dataclasses import dataclass
from email import message_from_bytes
from email.message import Message
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import pytest
import yaml

from local.harness import RunningMesh, running_mesh
from services import ratelimit
from tests.waiting import until

PASSWORD = "correct horse battery staple"  # the tests' own
GENERATION_BURST = 150
LOCAL_RULES = Path(ratelimit.__file__).parent / "rules" / "local.yaml"


@pytest.fixture(scope="session")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[RunningMesh]:
    """With short leases, a composer slow enough to be killed in the middle of a story, and one limit that a test can reach."""
    rules = yaml.safe_load(LOCAL_RULES.read_text())
    (limited,) = [rule for rule in rules["rules"] if rule["name"] == "generation-per-user"]
    limited.update(rate="1/min", burst=GENERATION_BURST)
    rules_file = tmp_path_factory.mktemp("rules") / "rules.yaml"
    rules_file.write_text(yaml.safe_dump(rules))
    environment = {
        "STORYMESH_LEASE_SECONDS": "3",
        "STORYMESH_COMPOSER_PACE": "0.02",
        "STORYMESH_RATE_LIMIT_RULES": str(rules_file),
    }
    async with running_mesh(tmp_path_factory.mktemp("mesh"), writer="composer", environment=environment) as running:
        yield running


@pytest.fixture
async def http(mesh: RunningMesh) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=mesh.edge_url, timeout=20) as client:
        yield client


@dataclass
class Person:
    """Somebody who has signed up."""

    http: httpx.AsyncClient
    email: str
    user: dict[str, Any]
    tokens: dict[str, Any]

    @property
    def auth(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.tokens['access_token']}"}

    async def post(self, path: str, **body: Any) -> httpx.Response:
        return await self.http.post(path, json=body, headers=self.auth)

    async def get(self, path: str, **query: Any) -> httpx.Response:
        return await self.http.get(path, params=query or None, headers=self.auth)

    async def new_story(self, **wish: Any) -> dict[str, Any]:
        response = await self.post("/v1/stories", **wish)
        assert response.status_code == 200, response.text
        story: dict[str, Any] = response.json()["story"]
        return story

    async def story(self, story_id: str) -> dict[str, Any]:
        response = await self.get(f"/v1/stories/{story_id}")
        assert response.status_code == 200, response.text
        story: dict[str, Any] = response.json()["story"]
        return story

    async def finished(self, story_id: str, seconds: float = 40) -> dict[str, Any]:
        """Waits for the story's final state, through answers that say 503 meanwhile."""

        async def final() -> dict[str, Any] | None:
            response = await self.get(f"/v1/stories/{story_id}")
            story = response.json().get("story", {})
            return story if story.get("state") in ("STORY_STATE_COMPLETED", "STORY_STATE_FAILED") else None

        story: dict[str, Any] = await until(final, seconds)  # type: ignore[arg-type]  # None is waited for
        return story


def mails_to(folder: Path, address: str) -> list[Message]:
    """Oldest first."""
    mails = [message_from_bytes(path.read_bytes()) for path in sorted(folder.glob("*.eml"))]
    return [mail for mail in mails if mail["To"] == address]


async def code_for(folder: Path, address: str) -> str:
    """The newest code that was mailed to the address."""

    def newest() -> str:
        for mail in reversed(mails_to(folder, address)):
            found = re.search(r"\b(\d{6})\b", str(mail.get_payload()))
            if found:
                return found[1]
        return ""

    return await until(newest)


async def registered(mesh: RunningMesh, http: httpx.AsyncClient, **details: Any) -> Person:
    """A new person with an account, made through the edge."""
    email = f"reader-{uuid4().hex[:12]}@example.com"
    response = await http.post("/v1/registrations", json={"email": email, "password": PASSWORD, **details})
    assert response.status_code == 200, response.text
    registration = response.json()["registration_id"]
    code = await code_for(mesh.mail_dir, email)
    response = await http.post(f"/v1/registrations/{registration}:complete", json={"code": code})
    assert response.status_code == 200, response.text
    return Person(http, email, response.json()["user"], response.json()["tokens"])


@pytest.fixture
async def person(mesh: RunningMesh, http: httpx.AsyncClient) -> Person:
    return await registered(mesh, http)
