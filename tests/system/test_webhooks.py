"""Webhooks through both doors of the edge."""

from __future__ import annotations

from uuid import uuid4

import pytest

from local.harness import RunningMesh
from tests.system.doors import Door
from tests.system.members import signed_up
from tests.system.test_keys import made_admin

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


async def test_an_owner_lists_the_messages_of_a_webhook(mesh: RunningMesh, door: Door) -> None:
    member = await signed_up(door, mesh)
    webhook_id = (await member.must("CreateWebhook", url="https://hooks.example.com/a"))["webhook"]["id"]
    # The account's own welcome may be among them.
    listed = (await member.must("ListWebhookDeliveries", webhook_id=webhook_id)).get("deliveries", [])
    assert {each["type"] for each in listed} <= {"NOTIFICATION_TYPE_WELCOME"}
    missing = {"webhook_id": webhook_id, "delivery_id": str(uuid4())}
    assert (await member.call("ResendWebhookDelivery", **missing)).refusal == ("NOT_FOUND", "DELIVERY_NOT_FOUND")


async def test_an_administrator_registers_changes_and_deletes_a_system_webhook(mesh: RunningMesh, door: Door) -> None:
    member = await signed_up(door, mesh)
    url = "https://hooks.example.com/a"
    assert (await member.call("CreateSystemWebhook", url=url)).code == "PERMISSION_DENIED"
    admin = await made_admin(mesh, member)
    made = await admin.must("CreateSystemWebhook", url=url, types=["NOTIFICATION_TYPE_STORY_READY"])
    assert made["secret"].startswith("whsec_")
    webhook_id = made["webhook"]["id"]
    changed = await admin.must("UpdateSystemWebhook", webhook_id=webhook_id, enabled=False, types={"types": []})
    assert changed["webhook"]["disable_reason"] == "BY_OWNER"
    assert webhook_id in [each["id"] for each in (await admin.must("ListSystemWebhooks"))["webhooks"]]
    assert (await admin.must("RotateSystemWebhookSecret", webhook_id=webhook_id))["secret"] != made["secret"]
    listed = (await admin.must("ListDeliveries", target=webhook_id)).get("deliveries", [])
    assert {each["target"] for each in listed} <= {webhook_id}
    await admin.must("DeleteSystemWebhook", webhook_id=webhook_id)
    assert (await admin.call("GetSystemWebhook", webhook_id=webhook_id)).reason == "WEBHOOK_NOT_FOUND"


@pytest.mark.parametrize("url", INSIDE)
async def test_no_webhook_leads_inside(mesh: RunningMesh, door: Door, url: str) -> None:
    member = await signed_up(door, mesh)
    assert (await member.call("CreateWebhook", url=url)).code == "INVALID_ARGUMENT"
