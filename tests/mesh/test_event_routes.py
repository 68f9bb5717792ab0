"""Events go to the inboxes that take them by the services' manifests."""

from __future__ import annotations

import pytest
from storymesh.events.v1 import auth_events_pb2, story_events_pb2

from mesh.event_routes import check_handlers, routes, routes_of
from mesh.manifest import INBOX, Manifest, ManifestError


def taker(inbox: str, event: str) -> Manifest:
    return Manifest(port=170, database=True, workers=1, kit_tables=(INBOX,), takes={inbox: (event,)})


def test_an_event_goes_to_every_inbox_that_takes_it() -> None:
    name = auth_events_pb2.UserDeleted.DESCRIPTOR.full_name
    found = {"one": taker("one", "UserDeleted"), "two": taker("two-slowly", "UserDeleted")}
    assert routes_of(found)[name] == ("one", "two-slowly")


def test_an_event_that_nobody_takes_is_known_and_goes_nowhere() -> None:
    assert routes()[auth_events_pb2.UserUpdated.DESCRIPTOR.full_name] == ()


def test_an_event_that_the_contract_does_not_have_is_refused_by_name() -> None:
    with pytest.raises(
        ManifestError, match=r"toy: takes\[toy\]: the contract has no message storymesh.events.v1.UserDelted"
    ):
        routes_of({"toy": taker("toy", "UserDelted")})


def test_handlers_that_are_not_what_the_manifest_takes_are_refused() -> None:
    requested, failed = (
        each.DESCRIPTOR.full_name for each in (story_events_pb2.StoryRequested, story_events_pb2.StoryFailed)
    )
    check_handlers("story", {requested})
    check_handlers("an inbox of no service", {failed})
    with pytest.raises(ManifestError, match=rf"takes\[story\]: there is no handler for {requested}"):
        check_handlers("story", set())
    with pytest.raises(ManifestError, match=rf"takes\[story\]: {failed} would never arrive"):
        check_handlers("story", {requested, failed})
