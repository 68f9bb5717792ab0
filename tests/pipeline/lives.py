"""What one process of each role does, from its beginning to its end."""

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
from .failpoints import Deed, Failpoints, Moment, Stop

LEASE_SECONDS = 0.8
_KEY = "bW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW1tbW0="
CURSOR_KEY = b"c" * 32
WISH = Wish(preferences=("rain",), theme="", prompt="", length=Length.SHORT, language="en")


@dataclass(frozen=True)
class Place:
    """Where a life works: servers of which it shares databases with nobody outside its world."""

    folder: Path
    story_url: str
    notification_url: str
    redis_url: str
    smtp_port: int
    auth_target: str


@dataclass(frozen=True)
class Order:
    """What somebody asks the desk for. A request is named by its id, everything else by the story's."""

    verb: str
    owner_id: str
    name: str


@dataclass(frozen=True)
class Life:
    """One process."""

    number: int
    role: str
    place: Place
    stops: tuple[Stop, ...]
    attempts: int
    """Failed attempts after which a story is given up."""
    pace_seconds: float
    order: Order | None = None
    """Of a desk: it takes one order, answers in a file and ends."""

    @property
    def answer(self) -> Path:
        return self.place.folder / f"answer-{self.number}"

    @classmethod
    def read(cls, told: dict[str, Any]) -> Life:
        place = told["place"] | {"folder": Path(told["place"]["folder"])}
        stops = tuple(
            Stop(**each | {"moment": Moment(each["moment"]), "deed": Deed(each["deed"])}) for each in told["stops"]
        )
        order = Order(**told["order"]) if told["order"] else None
        return cls(
            told["number"],
            told["role"],
            Place(**place),
            stops,
            told["attempts"],
            told["pace_seconds"],
            order,
        )

    def live(self) -> None:
        logging.basicConfig(
            filename=self.place.folder / "log",
            format=f"%(relativeCreated)8d {self.role}/{self.number} %(levelname)s %(name)s: %(message)s",
            level=logging.WARNING,
        )
        install(Failpoints(self.place.folder, self.role, self.number, self.stops))
        uvloop.run(self._work())

    def _work(self) -> Coroutine[Any, Any, None]:
        match self.role:
            case "story":
                return story.work(self._story_settings())
            case "notification":
                return notification.work(self._notification_settings())
            case _:
                assert self.order
                return _serve(self.place, self.order, self.answer)

    def _story_settings(self) -> StoryWorkerSettings:
        return StoryWorkerSettings(
            listen="127.0.0.1:0",
            database_url=self.place.story_url,
            database_pool=5,
            redis_url=self.place.redis_url,
            mesh_key=_KEY,
            auth_target=self.place.auth_target,
            lease_seconds=LEASE_SECONDS,
            writer="composer",
            composer_pace=self.pace_seconds,
            story_attempts=self.attempts,
        )

    def _notification_settings(self) -> NotificationWorkerSettings:
        return NotificationWorkerSettings(
            listen="127.0.0.1:0",
            database_url=self.place.notification_url,
            database_pool=5,
            redis_url=self.place.redis_url,
            mesh_key=_KEY,
            seal_key=_KEY,
            auth_target=self.place.auth_target,
            lease_seconds=LEASE_SECONDS,
            smtp_port=self.place.smtp_port,
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


async def _serve(place: Place, order: Order, answer: Path) -> None:
    """One call of the story API, without the connection that it came by. A refusal is an answer, too."""
    db = Database(place.story_url, pool=2)
    async with kit_redis.connect(place.redis_url) as redis:
        stories, owner = operations(db, Progress(redis)), caller(UUID(order.owner_id))
        try:
            done = await _obeyed(stories, owner, order)
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


async def _obeyed(stories: Stories, owner: Caller, order: Order) -> Story:
    match order.verb:
        case "request":
            return await stories.request(owner, WISH, order.name)
        case "cancel":
            return await stories.cancel(owner, UUID(order.name))
        case "retry":
            return await stories.retry(owner, UUID(order.name))
        case _:
            raise ValueError(order.verb)
