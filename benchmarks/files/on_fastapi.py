"""The contender: a FastAPI service that streams an upload through itself into the same SeaweedFS, and writes down what came.

Run as `python -m benchmarks.files.on_fastapi PORT`; the environment variables PEER_KEYS (the address of the key set),
PEER_DATABASE, PEER_PROFILES, PEER_REDIS and PEER_STORE (endpoint, bucket, access key and secret, in JSON) say what it stands on.
It checks the access token and a limit per address, as the mesh does, and passes the bytes on by aiobotocore: up to 8 MiB at once,
for the store to compare with the client's checksum, larger ones in parts as they come, compared with nothing. It also reads
profiles, by the social service's statement.
"""

# Without `from __future__ import annotations`: FastAPI reads annotations that name a function's own variables.
import json
import os
import sys
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

import jwt
import uvicorn
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from pydantic import BaseModel
from slowapi import Limiter, _rate_limit_exceeded_handler
from slowapi.errors import RateLimitExceeded
from slowapi.util import get_remote_address
from sqlalchemy import bindparam, text
from sqlalchemy.ext.asyncio import create_async_engine
from uuid_utils.compat import uuid7

from mesh.edge_protocol import TOKEN_AUDIENCE, TOKEN_ISSUER
from services.social.model import Sight
from services.social.store.visibility import SEEN
from services.social.tables import profiles

_LIMIT = "10000/second"
_POOL = 10
_PART_BYTES = 8 << 20
_CREATE = (
    "CREATE TABLE IF NOT EXISTS peer_files (id uuid PRIMARY KEY, owner_id uuid NOT NULL, name text NOT NULL, size bigint NOT NULL,"
    " media_type text NOT NULL, sha256 text NOT NULL, created_at timestamptz NOT NULL DEFAULT now())"
)
_INSERT = text("INSERT INTO peer_files VALUES (:id, :owner, :name, :size, :media_type, :sha256)")


_SEEN = SEEN.where(profiles.c.user_id == bindparam("user"))


class Profile(BaseModel):
    """A profile as the caller sees it."""

    user_id: UUID
    handle: str
    display_name: str
    bio: str
    private: bool
    create_time: datetime | None
    blocking: bool
    muting: bool


def app() -> FastAPI:
    """The application; uvicorn calls it."""
    keys = _keys(os.environ["PEER_KEYS"])
    engine = create_async_engine(os.environ["PEER_DATABASE"], pool_size=_POOL, max_overflow=0)
    people = create_async_engine(os.environ["PEER_PROFILES"], pool_size=_POOL, max_overflow=0)
    limiter: Any = Limiter(key_func=get_remote_address, storage_uri=os.environ["PEER_REDIS"])
    place = json.loads(os.environ["PEER_STORE"])
    bucket = place["bucket"]
    stores: list[Any] = []

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with engine.begin() as connection:
            await connection.execute(text(_CREATE))
        async with AioSession().create_client(
            "s3",
            endpoint_url=place["endpoint"],
            region_name=place["region"],
            aws_access_key_id=place["access_key"],
            aws_secret_access_key=place["secret_key"],
            config=AioConfig(s3={"addressing_style": "path"}, request_checksum_calculation="when_required"),
        ) as client:
            stores.append(client)
            yield

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

    async def upload(  # noqa: PLR0917  # FastAPI gives them by name
        request: Request,
        owner: Annotated[UUID, Depends(caller)],
        content_length: Annotated[str, Header()],
        content_type: Annotated[str, Header()],
        checksum: Annotated[str, Header()],
        name: str,
    ) -> dict[str, str]:
        file_id = uuid7()
        store, place = stores[0], {"Bucket": bucket, "Key": f"peer/{file_id}"}
        if int(content_length) <= _PART_BYTES:
            await store.put_object(
                **place, Body=await request.body(), ContentType=content_type, ChecksumSHA256=checksum, IfNoneMatch="*"
            )
        else:
            await _in_parts(store, place, content_type, request.stream())
        values = {"id": file_id, "owner": owner, "name": name, "size": int(content_length)}
        async with engine.begin() as connection:
            await connection.execute(_INSERT, values | {"media_type": content_type, "sha256": checksum})
        return {"id": str(file_id)}

    async def profile(request: Request, user_id: UUID, viewer: Annotated[UUID, Depends(caller)]) -> Profile:
        async with people.connect() as connection:
            row = (await connection.execute(_SEEN, {"viewer": viewer, "user": user_id})).mappings().one_or_none()
        if row is None:
            raise HTTPException(404)
        whole = row["sight"] == Sight.WHOLE.value
        return Profile(
            user_id=user_id,
            handle=row["handle"],
            display_name=row["display_name"],
            bio=row["bio"] if whole else "",
            private=row["private"],
            create_time=row["created_at"] if whole else None,
            blocking=row["blocking"],
            muting=row["muting"],
        )

    built: Any = FastAPI(lifespan=lifespan)
    built.state.limiter = limiter
    built.add_exception_handler(RateLimitExceeded, _rate_limit_exceeded_handler)
    built.add_api_route("/v1/users/{user_id}", limiter.limit(_LIMIT)(profile), methods=["GET"], response_model=Profile)
    built.add_api_route("/v1/files", limiter.limit(_LIMIT)(upload), methods=["PUT"])
    application: FastAPI = built
    return application


async def _in_parts(store: Any, place: Any, content_type: str, chunks: AsyncIterator[bytes]) -> None:
    """As boto3's transfers do it: parts of 8 MiB, of which one is held in memory."""
    upload = await store.create_multipart_upload(**place, ContentType=content_type)
    place = {**place, "UploadId": upload["UploadId"]}
    sent: list[dict[str, Any]] = []
    part = bytearray()

    async def send() -> None:
        number = len(sent) + 1
        answer = await store.upload_part(**place, PartNumber=number, Body=bytes(part))
        sent.append({"PartNumber": number, "ETag": answer["ETag"]})
        part.clear()

    async for chunk in chunks:
        part += chunk
        if len(part) >= _PART_BYTES:
            await send()
    if part:
        await send()
    await store.complete_multipart_upload(**place, MultipartUpload={"Parts": sent})


def _keys(url: str) -> dict[str, jwt.PyJWK]:
    with urllib.request.urlopen(url, timeout=10) as answer:  # noqa: S310  # an address of this machine
        return {key["kid"]: jwt.PyJWK(key, algorithm="ES256") for key in json.load(answer)["keys"]}


if __name__ == "__main__":
    uvicorn.run("benchmarks.files.on_fastapi:app", factory=True, port=int(sys.argv[1]), loop="uvloop", http="httptools")
