"""Parts of the mesh die while it is used: nothing is lost, nothing is doubled, no answer is wrong."""

from __future__ import annotations

import asyncio
import signal
from typing import Any

import httpx
import psycopg
import pytest

from local.harness import RunningMesh
from tests.system.conftest import PASSWORD, Person, code_for, databases_of, mails_to, registered
from tests.system.members import new_address
from tests.system.sse import watched
from tests.waiting import until


async def test_a_story_survives_the_death_of_its_worker(mesh: RunningMesh, http: httpx.AsyncClient) -> None:
    person = await registered(mesh, http)
    story = await person.new_story(length="STORY_LENGTH_LONG")
    before = {name: mesh.pid(name) for name in ("story-worker-1", "story-worker-2")}
    async with watched(person, story["id"]) as events:
        await events.until("chunk")
        for name in before:
            mesh.kill(name)
        done = await events.until("done")
    stored = await person.story(story["id"])
    assert done["done"]["story"] == stored
    assert (stored["state"], stored["attempt"]) == ("STORY_STATE_COMPLETED", 2)
    assert events.text == stored["text"]
    for name, pid in before.items():
        await mesh.healthy(name, not_pid=pid)
    announced = await until(
        lambda: [m for m in mails_to(mesh.mail_dir, person.email) if stored["title"] in str(m["Subject"])]
    )
    assert len(announced) == 1
    told = (await person.get("/v1/notifications")).json()["notifications"]
    assert [one["type"] for one in told].count("NOTIFICATION_TYPE_STORY_READY") == 1


@pytest.mark.parametrize("server", ["redis", "postgres"])
async def test_the_mesh_recovers_by_itself_when_a_server_restarts(
    mesh: RunningMesh, http: httpx.AsyncClient, server: str
) -> None:
    person = await registered(mesh, http)
    made = [await person.new_story(length="STORY_LENGTH_MEDIUM", request_id=f"before-{n}") for n in range(3)]
    answers: list[tuple[int, dict[str, Any]]] = []
    over = asyncio.Event()

    async def use() -> None:
        number = 0
        while not over.is_set():
            number += 1
            response = await person.post("/v1/stories", length="STORY_LENGTH_SHORT", request_id=f"during-{number}")
            answers.append((response.status_code, response.json()))
            read = await person.get(f"/v1/stories/{made[0]['id']}")
            answers.append((read.status_code, read.json()))
            await asyncio.sleep(0.2)

    async with asyncio.TaskGroup() as group:
        group.create_task(use())
        await until(lambda: answers)
        pid = mesh.pid(server)
        mesh.kill(server)
        await mesh.healthy(server, not_pid=pid)

        async def well() -> bool:
            return all(status == 200 for status, _ in answers[-4:])

        seen = len(answers)
        await until(lambda: len(answers) >= seen + 4)
        await until(well, 30)
        over.set()
    assert {status for status, _ in answers} <= {200, 503}
    accepted = {body["story"]["id"] for status, body in answers if status == 200}
    for story_id in accepted | {story["id"] for story in made}:
        story = await person.finished(story_id, 60)
        assert story["state"] == "STORY_STATE_COMPLETED"
    titles = [(await person.story(story_id))["title"] for story_id in accepted | {story["id"] for story in made}]

    def mailed() -> bool:
        subjects = [str(mail["Subject"]) for mail in mails_to(mesh.mail_dir, person.email)]
        ready = [subject for subject in subjects if "ready" in subject]
        return len(ready) == len(titles)

    await until(mailed, 30)


async def test_a_client_that_loses_its_connection_resumes_without_gap_or_repeat(
    mesh: RunningMesh, http: httpx.AsyncClient
) -> None:
    person = await registered(mesh, http)
    story = await person.new_story(length="STORY_LENGTH_MEDIUM")
    token, seen = "", ""
    for _ in range(5):
        async with watched(person, story["id"], token) as events:
            assert await events.step() == "snapshot"
            assert events.text == seen
            await events.until("chunk", "done")
            token, seen = events.resume_token, events.text
    async with watched(person, story["id"], token) as events:
        await events.until("done")
    assert events.text == (await person.story(story["id"]))["text"]


async def test_an_edge_without_its_services_answers_503_in_json(mesh: RunningMesh, person: Person) -> None:
    await mesh.stop("notification")
    try:
        response = await person.get("/v1/notifications")
        assert response.status_code == 503
        assert response.json()["code"] == 14
    finally:
        await mesh.start("notification")

    async def well() -> bool:
        return (await person.get("/v1/notifications")).status_code == 200

    await until(well, 30)


async def test_a_mail_whose_relay_dies_before_it_is_published_still_comes(
    mesh: RunningMesh, http: httpx.AsyncClient
) -> None:
    email = new_address()
    pid = mesh.pid("auth-worker")
    # Standing still, it can neither publish nor end by itself.
    mesh.kill("auth-worker", signal.SIGSTOP)
    response = await http.post("/v1/registrations", json={"email": email, "password": PASSWORD})
    assert response.status_code == 200
    registration_id = response.json()["registration_id"]
    async with await psycopg.AsyncConnection.connect(databases_of(mesh)["auth"]) as connection:
        query = "SELECT published_at FROM outbox WHERE key = %s"
        assert await (await connection.execute(query, (registration_id,))).fetchall() == [(None,)]
    mesh.kill("auth-worker")
    await mesh.healthy("auth-worker", not_pid=pid)
    code = await code_for(mesh.mail_dir, email)
    response = await http.post(f"/v1/registrations/{registration_id}:complete", json={"code": code})
    assert response.status_code == 200
