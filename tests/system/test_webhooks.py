"""Webhooks through both doors of the edge."""

from __future__ import annotations

import pytest

from local.harness import RunningMesh
from tests.system.doors import Door
from tests.system.members import signed_up

INSIDE = ["https://127.0.0.1/", "https://localhost:8443/", "http://hooks.example.com/", "https://[::1]/"]


async def test_a_person_registers_changes_and_deletes_a_webhook(mesh: RunningMesh, door: Door) -> None:
    member = await signed_up(door, mesh)
    made = await member.must(
        "CreateWebhook", url="https://hooks.example.com/a", types=["NOTIFICATION_TYPE_STORY_READY"]
    )
    assert made["secret"].startswith("whsec_")
    webhook_id = made["webhook"]["id"]
    changed = await member.must("UpdateWebhook", webhook_id=webhook_id, enabled=False, types={"types": []})
    assert changed["webhook"]["disable_reason"] == "BY_OWNER"
    (listed,) = (await member.must("ListWebhooks"))["webhooks"]
    assert (listed["id"], listed.get("types", [])) == (webhook_id, [])
    rotated = await member.must("RotateWebhookSecret", webhook_id=webhook_id)
    assert rotated["secret"] not in (made["secret"], "")
    await member.must("DeleteWebhook", webhook_id=webhook_id)
    assert (await member.call("GetWebhook", webhook_id=webhook_id)).refusal == ("NOT_FOUND", "WEBHOOK_NOT_FOUND")


@pytest.mark.parametrize("url", INSIDE)
async def test_no_webhook_leads_inside(mesh: RunningMesh, door: Door, url: str) -> None:
    member = await signed_up(door, mesh)
    assert (await member.call("CreateWebhook", url=url)).code == "INVALID_ARGUMENT"
