"""The main job, from sign-up to the mail that announces the story: over JSON, and over native gRPC on the same port."""

from __future__ import annotations

from email.message import Message
from uuid import uuid4

import grpc
import httpx2
from storymesh.auth.v1 import account_service_pb2 as account
from storymesh.auth.v1 import registration_service_pb2 as registration
from storymesh.auth.v1 import session_service_pb2 as session
from storymesh.auth.v1.account_service_pb2_grpc import AccountServiceStub
from storymesh.auth.v1.registration_service_pb2_grpc import RegistrationServiceStub
from storymesh.auth.v1.session_service_pb2_grpc import SessionServiceStub
from storymesh.notification.v1 import notification_service_pb2 as notification
from storymesh.notification.v1.notification_pb2 import NOTIFICATION_TYPE_STORY_READY, NOTIFICATION_TYPE_WELCOME
from storymesh.notification.v1.notification_service_pb2_grpc import NotificationServiceStub
from storymesh.story.v1 import story_pb2
from storymesh.story.v1 import story_service_pb2 as story
from storymesh.story.v1.story_service_pb2_grpc import StoryServiceStub

from local.harness import RunningMesh
from tests.identity import bearer
from tests.statuses import raises_status
from tests.system.conftest import PASSWORD, code_for, mails_to, registered
from tests.system.sse import watched
from tests.waiting import until

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


async def announcement(mesh: RunningMesh, address: str, title: str) -> Message:
    def found() -> Message | None:
        mails = mails_to(mesh.mail_dir, address)
        return next((mail for mail in mails if title in str(mail["Subject"])), None)

    mail = await until(found)
    assert mail is not None
    return mail


async def test_the_whole_journey_over_json(mesh: RunningMesh, http: httpx2.AsyncClient) -> None:
    person = await registered(mesh, http, first_name="Ada", preferences=["lighthouses"])
    assert (await person.get("/v1/account")).json()["user"] == person.user
    assert person.user["role"] == "ROLE_USER"

    wish = {"preferences": ["foxes"], "theme": "a lost key", "length": "STORY_LENGTH_SHORT", "request_id": str(uuid4())}
    headers = {**person.auth, "traceparent": f"00-{TRACE_ID}-b7ad6b7169203331-01"}
    created = (await http.post("/v1/stories", json=wish, headers=headers)).json()["story"]
    assert created["state"] == "STORY_STATE_QUEUED"
    assert (await person.post("/v1/stories", **wish)).json()["story"]["id"] == created["id"]

    async with watched(person, created["id"]) as events:
        done = await events.until("done")
    assert events.kinds[0] == "snapshot"
    assert "chunk" in events.kinds
    stored = await person.story(created["id"])
    assert done["done"]["story"] == stored
    assert events.text == stored["text"] != ""
    assert (stored["state"], stored["writer"], stored["attempt"]) == ("STORY_STATE_COMPLETED", "composer", 1)
    assert 100 <= len(stored["text"].split()) <= 200

    mail = await announcement(mesh, person.email, stored["title"])
    assert mail["X-Trace-Id"] == TRACE_ID
    listed = (await person.get("/v1/stories")).json()
    assert [one["id"] for one in listed["stories"]] == [created["id"]]
    assert listed["next_page_token"] == ""
    told = (await person.get("/v1/notifications")).json()["notifications"]
    assert [one["type"] for one in told] == ["NOTIFICATION_TYPE_STORY_READY", "NOTIFICATION_TYPE_WELCOME"]

    fresh = await http.post("/v1/sessions:refresh", json={"refresh_token": person.tokens["refresh_token"]})
    person.tokens = fresh.json()["tokens"]
    signed_in = await http.post("/v1/sessions", json={"login": person.email, "password": PASSWORD})
    assert signed_in.json()["user"] == person.user
    assert (await person.post("/v1/sessions:logout")).status_code == 200
    spent = await http.post("/v1/sessions:refresh", json={"refresh_token": person.tokens["refresh_token"]})
    assert spent.status_code == 401


async def test_the_whole_journey_over_native_grpc(mesh: RunningMesh) -> None:
    email = f"reader-{uuid4().hex[:12]}@example.com"
    async with grpc.aio.insecure_channel(mesh.edge_address) as channel:
        registrations = RegistrationServiceStub(channel)
        begun = await registrations.CreateRegistration(
            registration.CreateRegistrationRequest(email=email, password=PASSWORD, preferences=["lighthouses"])
        )
        code = await code_for(mesh.mail_dir, email)
        signed_up = await registrations.CompleteRegistration(
            registration.CompleteRegistrationRequest(registration_id=begun.registration_id, code=code)
        )
        auth = bearer(signed_up.tokens.access_token)
        read = await AccountServiceStub(channel).GetAccount(account.GetAccountRequest(), metadata=auth)
        assert read.user == signed_up.user

        stories = StoryServiceStub(channel)
        created = await stories.CreateStory(story.CreateStoryRequest(), metadata=auth)
        assert list(created.story.preferences) == ["lighthouses"]
        text, kinds = "", []
        async for message in stories.WatchStory(story.WatchStoryRequest(story_id=created.story.id), metadata=auth):
            kinds.append(message.WhichOneof("event"))
            text = message.snapshot.text if kinds[-1] == "snapshot" else text + message.chunk.text
        assert (kinds[0], kinds[-1]) == ("snapshot", "done")
        stored = (await stories.GetStory(story.GetStoryRequest(story_id=created.story.id), metadata=auth)).story
        assert stored.state == story_pb2.STORY_STATE_COMPLETED
        assert text == stored.text
        listed = await stories.ListStories(story.ListStoriesRequest(), metadata=auth)
        assert [one.id for one in listed.stories] == [stored.id]

        await announcement(mesh, email, stored.title)
        told = await NotificationServiceStub(channel).ListNotifications(
            notification.ListNotificationsRequest(), metadata=auth
        )
        assert [one.type for one in told.notifications] == [NOTIFICATION_TYPE_STORY_READY, NOTIFICATION_TYPE_WELCOME]

        sessions = SessionServiceStub(channel)
        fresh = await sessions.RefreshSession(
            session.RefreshSessionRequest(refresh_token=signed_up.tokens.refresh_token)
        )
        await sessions.Logout(session.LogoutRequest(), metadata=bearer(fresh.tokens.access_token))
        with raises_status(grpc.StatusCode.UNAUTHENTICATED, "SESSION_REVOKED"):
            await sessions.RefreshSession(session.RefreshSessionRequest(refresh_token=fresh.tokens.refresh_token))
