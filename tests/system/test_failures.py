"""Failures of parts of the mesh under load: nothing is lost or doubled, and no answer is wrong."""

from __future__ import annotations

import signal

import httpx2
import psycopg

from local.harness import RunningMesh
from tests.system.conftest import PASSWORD, Person, code_for, databases_of
from tests.system.members import new_address
from tests.waiting import until


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
    mesh: RunningMesh, http: httpx2.AsyncClient
) -> None:
    email = new_address()
    pid = mesh.pid("auth-worker")
    # Stopped by SIGSTOP, it can neither publish nor exit.
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
