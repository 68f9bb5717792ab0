"""The processes of a pipeline: a story worker, a notification worker, or one call of the story API."""

from __future__ import annotations

import json
import logging
from collections.abc import Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import uvloop

from kit.data import redis as kit_redis
from kit.data.database import Database
from kit.data.paging import Pages
from kit.errors import MeshError
from kit.identity.caller import Caller, Role
from kit.identity.signing import Signer
from kit.runtime.clock import system_clock
from services.notification import __main__ as notification
from services.notification.config import NotificationWorkerSettings
from services.story import __main__ as story
from services.story.config import StoryWorkerSettings
from services.story.model import Length, Limits, Story, Wish
from services.story.operations.admission import Admission
from services.story.operations.stories import Stories
from services.story.store.progress import Progress

from .boundaries import install
from .failpoints import Action, Failpoints, Moment, Stop

LEASE_SECONDS = 0.8
_KEY = "bW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW0="
CURSOR_KEY = b"c" * 32
WISH = Wish(preferences=("rain",), theme="", prompt="", length=Length.SHORT, language="en")


@dataclass(frozen=True)
class Environment:
    """The servers of one pipeline. No other pipeline uses its databases."""

    folder: Path
    story_url: str
    notification_url: str
    redis_url: str
    smtp_port: int
    auth_target: str
    story_target: str


@dataclass(frozen=True)
class ApiCall:
    """A call of the story API. `name` is the request id of a request, and otherwise the id of the story."""

    verb: str
    owner_id: str
    name: str


@dataclass(frozen=True)
class ProcessSpec:
    """All that a process of a pipeline is told when it starts."""

    number: int
    role: str
    environment: Environment
    stops: tuple[Stop, ...]
    attempts: int
    """Attempts after which a story has failed."""
    pace_seconds: float
    call: ApiCall | None = None
    """Given to the role `api` only: it makes the call, writes the answer to a file and exits."""

    @property
    def answer(self) -> Path:
        return self.environment.folder / f"answer-{self.number}"

    @classmethod
    def read(cls, told: dict[str, Any]) -> ProcessSpec:
        environment = told["environment"] | {"folder": Path(told["environment"]["folder"])}
        stops = tuple(
            Stop(**each | {"moment": Moment(each["moment"]), "action": Action(each["action"])})
            for each in told["stops"]
        )
        call = ApiCall(**told["call"]) if told["call"] else None
        return cls(
            told["number"],
            told["role"],
            Environment(**environment),
            stops,
            told["attempts"],
            told["pace_seconds"],
            call,
        )

    def run(self) -> None:
        logging.basicConfig(
            filename=self.environment.folder / "log",
            format=f"%(relativeCreated)8d {self.role}/{self.number} %(levelname)s %(name)s: %(message)s",
            level=logging.WARNING,
        )
        install(Failpoints(self.environment.folder, self.role, self.number, self.stops))
        uvloop.run(self._work())

    def _work(self) -> Coroutine[Any, Any, None]:
        match self.role:
            case "story":
                return story.work(self._story_settings())
            case "notification":
                return notification.work(self._notification_settings())
            case _:
                assert self.call
                return _serve(self.environment, self.call, self.answer)

    def _story_settings(self) -> StoryWorkerSettings:
        return StoryWorkerSettings(
            listen="127.0.0.1:0",
            database_url=self.environment.story_url,
            database_pool=5,
            redis_url=self.environment.redis_url,
            mesh_key=_KEY,
            auth_target=self.environment.auth_target,
            lease_seconds=LEASE_SECONDS,
            writer="composer",
            composer_pace=self.pace_seconds,
            story_attempts=self.attempts,
        )

    def _notification_settings(self) -> NotificationWorkerSettings:
        return NotificationWorkerSettings(
            listen="127.0.0.1:0",
            database_url=self.environment.notification_url,
            database_pool=5,
            redis_url=self.environment.redis_url,
            mesh_key=_KEY,
            seal_key=_KEY,
            unsubscribe_key=_KEY,
            address_key=_KEY,
            auth_target=self.environment.auth_target,
            story_target=self.environment.story_target,
            lease_seconds=LEASE_SECONDS,
            smtp_port=self.environment.smtp_port,
            mail_from="Storymesh <no-reply@mail.example>",
        )


def operations(db: Database, progress: Progress) -> Stories:
    async def preferences_of(_user_id: UUID) -> tuple[str, ...]:
        return WISH.preferences

    roomy = Admission(Limits(unfinished=1000, a_day=1000, backlog=1000))
    return Stories(
        db,
        Pages(Signer(CURSOR_KEY)),
        preferences_of,
        system_clock,
        progress=progress,
        admission=roomy,
    )


def caller(user_id: UUID) -> Caller:
    return Caller(user_id=user_id, session_id=uuid4(), role=Role.USER, kid="k")


async def _serve(environment: Environment, call: ApiCall, answer: Path) -> None:
    """Makes one call of the story API below its servicer. A refusal is an answer as well."""
    db = Database(environment.story_url, pool=2)
    async with kit_redis.connect(environment.redis_url) as redis:
        stories, owner = operations(db, Progress(redis)), caller(UUID(call.owner_id))
        try:
            done = await _called(stories, owner, call)
            said = {
                "story_id": str(done.id),
                "state": done.state,
                "attempt": done.attempt,
            }
        except MeshError as refusal:
            said = {"refused": refusal.reason}
    await db.close()
    draft = answer.with_suffix(".part")
    draft.write_text(json.dumps(said))
    draft.rename(answer)


async def _called(stories: Stories, owner: Caller, call: ApiCall) -> Story:
    match call.verb:
        case "request":
            return await stories.request(owner, WISH, call.name)
        case "cancel":
            return await stories.cancel(owner, UUID(call.name))
        case "retry":
            return await stories.retry(owner, UUID(call.name))
        case _:
            raise ValueError(call.verb)
