"""The link in the mail about a finished story: it opens for its reader, who is signed in nowhere, until it is taken back."""

from __future__ import annotations

import re
from email.message import Message
from html import unescape
from typing import Any

import httpx2
from redis.asyncio import Redis

from local.harness import RunningMesh
from tests.system.collector import Collector
from tests.system.conftest import PASSWORD, Person, mails_to, registered
from tests.system.remains import kept
from tests.system.secrecy import Beginning, Secrets, logs, spans
from tests.waiting import until


async def mailed_link(mesh: RunningMesh, address: str, title: str) -> str:
    """The link to a page in the mail about the story, as its reader would open it."""

    def found() -> Message | None:
        return next((mail for mail in mails_to(mesh.mail_dir, address) if title in str(mail["Subject"])), None)

    mail = await until(found)
    assert mail is not None
    parts = [part.get_payload(decode=True) for part in mail.walk() if part.get_content_maintype() == "text"]
    links = {
        link
        for part in parts
        if isinstance(part, bytes)
        for link in re.findall(r"http://[^\s\"<>]+/s/[\w-]+", part.decode())
    }
    (link,) = links
    return str(link)


async def finished_story(person: Person) -> dict[str, Any]:
    created = await person.new_story(length="STORY_LENGTH_SHORT")
    return await person.finished(created["id"])


async def test_a_mails_link_shows_the_story_until_it_is_taken_back(
    mesh: RunningMesh, http: httpx2.AsyncClient, collector: Collector, mesh_redis: Redis
) -> None:
    begun = Beginning.now(mesh, collector)
    person = await registered(mesh, http)
    story = await finished_story(person)
    link = await mailed_link(mesh, person.email, story["title"])
    assert link.startswith(f"{mesh.edge_url}/s/")

    async with httpx2.AsyncClient() as anybody:
        page = await anybody.get(link)
        assert page.status_code == 200
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.headers["cache-control"] == "private, no-store"
        assert "noindex" in page.headers["x-robots-tag"]
        assert page.headers["referrer-policy"] == "no-referrer"
        shown = unescape(re.sub(r"<[^>]+>", "", page.text))
        assert story["title"] in shown
        assert all(paragraph in shown for paragraph in story["text"].split("\n\n"))
        assert person.email not in page.text

        (listed,) = (await person.get("/v1/storyLinks")).json()["links"]
        assert (listed["story_id"], mesh.edge_url + listed["path"]) == (story["id"], link)
        again = (await person.post(f"/v1/stories/{story['id']}/link")).json()["link"]
        assert again["path"] == listed["path"]

        revoked = await http.delete(f"/v1/stories/{story['id']}/link", headers=person.auth)
        assert revoked.status_code == 200
        gone = await anybody.get(link)
        assert gone.status_code == 404
        assert "<h1>This link does not work</h1>" in gone.text
        assert (await person.get("/v1/storyLinks")).json()["links"] == []

        renewed = (await person.post(f"/v1/stories/{story['id']}/link")).json()["link"]
        assert (await anybody.get(mesh.edge_url + renewed["path"])).status_code == 200
        assert (await anybody.get(link)).status_code == 404
        await http.delete(f"/v1/stories/{story['id']}", headers=person.auth)
        assert (await anybody.get(mesh.edge_url + renewed["path"])).status_code == 404

    secrets = Secrets()
    secrets.add("token", *(path.rpartition("/")[2] for path in (link, renewed["path"])))
    await until(lambda: any(b"/s/... 404" in piece for _, piece in logs(mesh, begun)), 20)
    pieces = [*await kept(mesh, mesh_redis), *logs(mesh, begun), *spans(collector, begun)]
    assert secrets.found_in(pieces) == set()


async def test_the_link_of_a_deleted_account_shows_nothing(mesh: RunningMesh, http: httpx2.AsyncClient) -> None:
    person = await registered(mesh, http)
    story = await finished_story(person)
    link = await mailed_link(mesh, person.email, story["title"])
    deleted = await person.post("/v1/account:delete", password=PASSWORD)
    assert deleted.status_code == 200, deleted.text

    async def gone() -> bool:
        async with httpx2.AsyncClient() as anybody:
            return (await anybody.get(link)).status_code == 404

    await until(gone)
