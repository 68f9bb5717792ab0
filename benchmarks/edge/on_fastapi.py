"""The contender: reading and requesting a story in FastAPI, on uvicorn, SQLAlchemy with psycopg, and slowapi on Redis.

Run as `python -m benchmarks.edge.on_fastapi PORT PROCESSES`; the environment variables PEER_KEYS (the address of the key set),
PEER_DATABASE and PEER_REDIS say what it stands on. It checks what the mesh checks of a call: the access token (ES256, issuer,
audience, expiry), a limit per address, and the fields' rules. Table and query are those of the story service.
"""

# Without `from __future__ import annotations`: FastAPI reads annotations that name a function's own variables.
import json
import os
import sys
import urllib.request
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

import jwt
import uvicorn
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from pydantic import BaseModel, Field
from slowapi import Limiter, _rate_limit_exceeded_handler
from slowapi.errors import RateLimitExceeded
from slowapi.util import get_remote_address
from sqlalchemy import bindparam, func, insert, select, tuple_
from sqlalchemy.ext.asyncio import create_async_engine
from uuid_utils.compat import uuid7

from mesh.edge_protocol import TOKEN_AUDIENCE, TOKEN_ISSUER
from services.story.tables import stories

_LIMIT = "10000/second"
_POOL = 10

_ahead = stories.alias("ahead")
_queued_at = func.coalesce(stories.c.queued_at, stories.c.created_at)
_ahead_queued_at = func.coalesce(_ahead.c.queued_at, _ahead.c.created_at)
_position = (
    select(func.count())
    .where(
        stories.c.state == "QUEUED",
        _ahead.c.state == "QUEUED",
        tuple_(_ahead_queued_at, _ahead.c.id) <= tuple_(_queued_at, stories.c.id),
    )
    .scalar_subquery()
    .label("queue_position")
)
_FIND = select(stories, _position).where(stories.c.deleted_at.is_(None), stories.c.id == bindparam("story"))
_INSERT = (
    insert(stories)
    .values(
        state="QUEUED",
        title="",
        text="",
        attempt=0,
        failures=0,
        writer="",
        model="",
        prompt_tokens=0,
        completion_tokens=0,
        failure_reason="",
        dispatched_at=func.now(),
        request_digest=b"",
    )
    .returning(
        stories,
        (select(func.count()).where(_ahead.c.state == "QUEUED").scalar_subquery() + 1).label("queue_position"),
    )
)

_LINE = r"^[^\x00-\x1f\x7f-\x9f\u2028\u2029]*$"
_LANGUAGE = r"^([A-Za-z]{2,3}(-[A-Za-z0-9]{1,8})*)?$"
_Length = Literal["STORY_LENGTH_UNSPECIFIED", "STORY_LENGTH_SHORT", "STORY_LENGTH_MEDIUM", "STORY_LENGTH_LONG"]


class Wish(BaseModel):
    """The body of a request for a story."""

    preferences: list[Annotated[str, Field(max_length=20, pattern=_LINE)]] = Field(max_length=5)
    theme: str = Field(default="", max_length=100, pattern=_LINE)
    prompt: str = Field(default="", max_length=1000)
    length: _Length = "STORY_LENGTH_UNSPECIFIED"
    language: str = Field(default="en", max_length=35, pattern=_LANGUAGE)


class Story(BaseModel):
    """A story as its owner sees it."""

    id: UUID
    state: str
    title: str
    text: str
    preferences: list[str]
    theme: str
    length: str
    language: str
    attempt: int
    queue_position: int
    writer: str
    model: str
    failure_reason: str
    prompt_tokens: int
    completion_tokens: int
    create_time: datetime
    start_time: datetime | None
    complete_time: datetime | None


class Answer(BaseModel):
    """The body of both answers."""

    story: Story


def app() -> FastAPI:
    """The application of one process; uvicorn calls it."""
    keys = _keys(os.environ["PEER_KEYS"])
    engine = create_async_engine(os.environ["PEER_DATABASE"], pool_size=_POOL, max_overflow=0)
    limiter: Any = Limiter(key_func=get_remote_address, storage_uri=os.environ["PEER_REDIS"])

    async def caller(authorization: Annotated[str, Header()]) -> UUID:
        try:
            token = authorization.removeprefix("Bearer ")
            key = keys[jwt.get_unverified_header(token)["kid"]]
            claims = jwt.decode(
                token,
                key,
                algorithms=["ES256"],
                issuer=TOKEN_ISSUER,
                audience=TOKEN_AUDIENCE,
                options={"require": ["exp", "iat", "sub", "sid"]},
            )
            return UUID(claims["sub"])
        except (jwt.PyJWTError, KeyError, ValueError):
            raise HTTPException(401) from None

    async def read(request: Request, story_id: UUID, owner: Annotated[UUID, Depends(caller)]) -> Answer:
        async with engine.connect() as connection:
            row = (await connection.execute(_FIND, {"story": story_id})).mappings().one_or_none()
        if row is None or row["owner_id"] != owner:
            raise HTTPException(404)
        return _answer(row)

    async def ask(request: Request, wish: Wish, owner: Annotated[UUID, Depends(caller)]) -> Answer:
        now = datetime.now(UTC)
        values = {
            "id": uuid7(),
            "owner_id": owner,
            "preferences": wish.preferences,
            "theme": wish.theme,
            "prompt": wish.prompt,
            "length": wish.length.removeprefix("STORY_LENGTH_"),
            "language": wish.language,
            "created_at": now,
            "queued_at": now,
        }
        async with engine.begin() as connection:
            row = (await connection.execute(_INSERT, values)).mappings().one()
        return _answer(row)

    built: Any = FastAPI()
    built.state.limiter = limiter
    built.add_exception_handler(RateLimitExceeded, _rate_limit_exceeded_handler)
    built.add_api_route("/v1/stories/{story_id}", limiter.limit(_LIMIT)(read), methods=["GET"], response_model=Answer)
    built.add_api_route("/v1/stories", limiter.limit(_LIMIT)(ask), methods=["POST"], response_model=Answer)
    application: FastAPI = built
    return application


def _answer(row: Any) -> Answer:
    return Answer(
        story=Story(
            id=row["id"],
            state=f"STORY_STATE_{row['state']}",
            title=row["title"],
            text=row["text"],
            preferences=row["preferences"],
            theme=row["theme"],
            length=f"STORY_LENGTH_{row['length']}",
            language=row["language"],
            attempt=row["attempt"],
            queue_position=row["queue_position"],
            writer=row["writer"],
            model=row["model"],
            failure_reason=row["failure_reason"],
            prompt_tokens=row["prompt_tokens"],
            completion_tokens=row["completion_tokens"],
            create_time=row["created_at"],
            start_time=row["started_at"],
            complete_time=row["completed_at"],
        )
    )


def _keys(url: str) -> dict[str, jwt.PyJWK]:
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310  # an address of this machine
        return {key["kid"]: jwt.PyJWK(key, algorithm="ES256") for key in json.load(answer)["keys"]}


def main() -> None:
    port, processes = map(int, sys.argv[1:])
    uvicorn.run(
        "benchmarks.edge.on_fastapi:app",
        factory=True,
        port=port,
        workers=processes,
        loop="uvloop",
        http="httptools",
    )


if __name__ == "__main__":
    main()
