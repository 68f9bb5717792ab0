"""Suppressed addresses as administrators see them: listed, found by the address, and lifted."""

from __future__ import annotations

from typing import TYPE_CHECKING
from uuid import uuid4

from grpc import StatusCode
from storymesh.notification.v1 import delivery_pb2
from storymesh.notification.v1 import delivery_service_pb2 as pb

from tests.notification.conftest import (
    MailWorld,
    story_completed,
)
from tests.notification.desk import ADMIN, Desk, shown, suppress
from tests.notification.smtp_servers import MailServer, listening
from tests.statuses import raises_status

if TYPE_CHECKING:
    pass


async def test_suppressions_are_listed_newest_first_and_found_by_the_address_in_any_spelling(
    world: MailWorld, desk: Desk
) -> None:
    ada = uuid4()
    first, second = await suppress(world, "ada@example.com", ada), await suppress(world, "bob@example.com", None)
    assert [each.id for each in await desk.suppressions()] == [str(second.id), str(first.id)]
    (mine,) = await desk.suppressions(user_id=str(ada))
    assert (mine.id, mine.code, mine.reason, mine.source, mine.event_id) == (
        str(first.id),
        "5.1.1",
        delivery_pb2.SUPPRESSION_REASON_NO_ADDRESS,
        delivery_pb2.SUPPRESSION_SOURCE_PROVIDER,
        str(first.event_id),
    )
    page = await desk.stub.ListSuppressions(pb.ListSuppressionsRequest(page_size=1), metadata=desk.auth)
    rest = await desk.stub.ListSuppressions(
        pb.ListSuppressionsRequest(page_size=1, page_token=page.next_page_token), metadata=desk.auth
    )
    assert [each.id for each in rest.suppressions] == [str(first.id)]
    for spelling in ("ada@example.com", " Ada@EXAMPLE.com\u200b"):
        found = await desk.stub.FindSuppression(pb.FindSuppressionRequest(email=spelling), metadata=desk.auth)
        assert found.suppression.id == str(first.id)
    with raises_status(StatusCode.NOT_FOUND, "SUPPRESSION_NOT_FOUND"):
        await desk.stub.FindSuppression(pb.FindSuppressionRequest(email="eve@example.com"), metadata=desk.auth)


async def test_a_lifted_suppression_lets_the_next_mail_through_and_says_who_lifted_it(
    world: MailWorld, desk: Desk
) -> None:
    user = world.accounts.add("ada@example.com")
    story, later = story_completed(user), story_completed(user)
    server = MailServer(recipient="550 5.1.1 no")
    async with listening(server):
        world.smtp_port = server.port
        await world.handle(story)
    (suppressed,) = await desk.suppressions()
    lift = pb.DeleteSuppressionRequest(suppression_id=suppressed.id)
    await desk.stub.DeleteSuppression(lift, metadata=desk.auth)
    with raises_status(StatusCode.NOT_FOUND, "SUPPRESSION_NOT_FOUND"):
        await desk.stub.DeleteSuppression(lift, metadata=desk.auth)
    async with listening(server := MailServer()):
        world.smtp_port = server.port
        await world.handle(later)
    assert len(server.mails) == 1
    notice = await desk.explain_event(story)
    assert notice.steps[-1].decision == "SUPPRESSION_LIFTED"
    assert notice.steps[-1].detail == f"by {ADMIN}"
    assert ("EMAIL", "FAILED", "RECIPIENT_REFUSED 550 5.1.1") in shown(notice) or (
        "EMAIL",
        "FAILED",
        "REFUSED 550 5.1.1",
    ) in shown(notice)
