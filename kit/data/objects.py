"""Objects in one bucket of an S3 server, and requests by which callers upload and download them without passing through us."""

from __future__ import annotations

import asyncio
import os
from base64 import b64decode, b64encode
from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import sha256
from typing import TYPE_CHECKING, Any, Literal

import aiohttp
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore.configprovider import BOTOCORE_DEFAUT_SESSION_VARIABLES, ConstantProvider
from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError
from botocore.exceptions import ConnectionError as NotConnected
from botocore.parsers import ResponseParserError

from kit.runtime.clock import Clock, system_clock
from kit.runtime.settings import ObjectStoreSettings

from .object_errors import ObjectMissing, ObjectRefused, ObjectStoreUnavailable
from .presigning import Presigner, SignedRequest

if TYPE_CHECKING:
    from types_aiobotocore_s3 import S3Client

CHUNK_BYTES = 256 * 1024
DELETED_AT_ONCE = 1000
"""The protocol's bound for one call."""

_ASSEMBLY_SECONDS = 60.0
"""Servers answer only when all parts of a large object are put together."""

_CHECKSUM = "x-amz-checksum-sha256"
_BUSY = frozenset({"SlowDown", "RequestTimeout", "ServiceUnavailable", "InternalError", "TooManyRequests"})
_GONE = frozenset({"NoSuchKey", "NoSuchUpload"})


@dataclass(frozen=True, kw_only=True)
class ObjectStore:
    """Where a bucket is, and the key for it. Endpoints are `http://host:port` or https."""

    endpoint: str
    """As this process reaches it."""

    public_endpoint: str
    """As callers reach it; signed requests lead there."""

    region: str
    bucket: str
    access_key: str
    secret_key: str = field(repr=False)
    addressing: Literal["path", "virtual"] = "path"
    """Whether the bucket stands in the path, or in front of the host name."""

    seconds: float = 10.0
    """The longest that a call may take, its repetition included."""


def store_of(settings: ObjectStoreSettings) -> ObjectStore:
    return ObjectStore(
        endpoint=settings.s3_endpoint,
        public_endpoint=settings.s3_public_endpoint or settings.s3_endpoint,
        region=settings.s3_region,
        bucket=settings.s3_bucket,
        access_key=settings.s3_access_key,
        secret_key=settings.s3_secret_key.get_secret_value(),
        addressing=settings.s3_addressing,
        seconds=settings.s3_seconds,
    )


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    size: int
    media_type: str
    sha256: bytes | None
    """None for what was uploaded in parts, or without a checksum."""

    etag: str


@dataclass(frozen=True, slots=True)
class Part:
    """A part of an upload that has arrived."""

    number: int
    size: int
    etag: str
    sha256: bytes | None


@dataclass(frozen=True, slots=True)
class StoredObject:
    key: str
    size: int
    modified_at: datetime


@dataclass(frozen=True, slots=True)
class ObjectPage:
    """Objects in the order of their keys."""

    objects: Sequence[StoredObject]
    more: bool
    """Whether further ones follow the last of these."""


@dataclass(frozen=True, slots=True)
class OpenUpload:
    """An upload in parts that is neither completed nor aborted."""

    key: str
    upload_id: str
    started_at: datetime


class Objects:
    """One long-lived client of a bucket. It reads no environment and no file of Amazon's tools.

    Calls raise ObjectStoreUnavailable within the store's `seconds`. Signing asks the store nothing.
    """

    def __init__(self, store: ObjectStore, *, clock: Clock = system_clock) -> None:
        self._store = store
        self._clock = clock
        self._presigner = Presigner(
            store.public_endpoint,
            store.bucket,
            region=store.region,
            access_key=store.access_key,
            secret_key=store.secret_key,
            virtual=store.addressing == "virtual",
        )
        self._closing = AsyncExitStack()
        self._opening = asyncio.Lock()
        self._opened: S3Client | None = None

    async def close(self) -> None:
        await self._closing.aclose()

    async def check(self) -> None:
        """Whether the store answers and has the bucket. Raises ObjectStoreUnavailable."""
        async with self._calling() as client:
            await client.head_bucket(Bucket=self._store.bucket)

    # ---- Requests for others.

    def presign_put(
        self, key: str, *, size: int, media_type: str, sha256: bytes, valid_for: timedelta
    ) -> SignedRequest:
        """An upload of exactly the bytes with this size and digest, of this type, and only while there is no such object."""
        headers = {
            "Content-Length": str(size),
            "Content-Type": media_type,
            "If-None-Match": "*",
            _CHECKSUM: _base64(sha256),
        }
        return self._presigner.sign("PUT", key, at=self._clock(), valid_for=valid_for, headers=headers)

    def presign_get(self, key: str, *, valid_for: timedelta, media_type: str, disposition: str) -> SignedRequest:
        """A download whose answer carries this Content-Type and Content-Disposition. Ranges may be asked for."""
        query = {"response-content-type": media_type, "response-content-disposition": disposition}
        return self._presigner.sign("GET", key, at=self._clock(), valid_for=valid_for, query=query)

    def presign_part(
        self, key: str, upload_id: str, number: int, *, size: int, sha256: bytes, valid_for: timedelta
    ) -> SignedRequest:
        """An upload of one part, numbered from 1, with exactly these bytes. It may be repeated."""
        headers = {"Content-Length": str(size), _CHECKSUM: _base64(sha256)}
        query = {"partNumber": str(number), "uploadId": upload_id}
        return self._presigner.sign("PUT", key, at=self._clock(), valid_for=valid_for, headers=headers, query=query)

    # ---- Uploads in parts.

    async def start_parts(self, key: str, *, media_type: str) -> str:
        """The id of a new upload. The object is not visible before `complete_parts`."""
        async with self._calling() as client:
            begun = await client.create_multipart_upload(
                Bucket=self._store.bucket, Key=key, ContentType=media_type, ChecksumAlgorithm="SHA256"
            )
        return begun["UploadId"]

    async def list_parts(self, key: str, upload_id: str) -> list[Part]:
        """The parts that have arrived, by number. Raises ObjectMissing if the upload was completed or aborted.

        Their digests are None where the server does not tell them, as SeaweedFS.
        """
        # By number: SeaweedFS lists a part that was sent again twice.
        parts: dict[int, Part] = {}
        more, marker = True, 0
        while more:
            async with self._calling(key) as client:
                page = await client.list_parts(
                    Bucket=self._store.bucket, Key=key, UploadId=upload_id, PartNumberMarker=marker
                )
            found = page.get("Parts", [])
            for each in found:
                marker = each["PartNumber"]
                parts[marker] = Part(marker, each["Size"], each["ETag"], _digest(each.get("ChecksumSHA256")))
            more = page.get("IsTruncated", False) and bool(found)
        return list(parts.values())

    async def complete_parts(self, key: str, upload_id: str, parts: Iterable[Part]) -> None:
        """Make the object of these parts: those of `list_parts`, each with the digest that was signed for it.

        Raises ObjectMissing if the upload was completed or aborted, and ObjectRefused for parts that are too small or other ones.
        """
        listed: list[Any] = [
            {"PartNumber": part.number, "ETag": part.etag, "ChecksumSHA256": _base64(part.sha256 or b"")}
            for part in parts
        ]
        async with self._calling(key, seconds=_ASSEMBLY_SECONDS) as client:
            await client.complete_multipart_upload(
                Bucket=self._store.bucket, Key=key, UploadId=upload_id, MultipartUpload={"Parts": listed}
            )

    async def abort_parts(self, key: str, upload_id: str) -> None:
        """Drop an upload and its parts. Nothing happens if it was completed or aborted."""
        try:
            async with self._calling(key) as client:
                await client.abort_multipart_upload(Bucket=self._store.bucket, Key=key, UploadId=upload_id)
        except ObjectMissing:
            pass

    async def list_uploads(self, prefix: str) -> AsyncGenerator[OpenUpload, None]:
        """The open uploads of keys that begin with `prefix`."""
        markers: dict[str, Any] = {}
        while True:
            async with self._calling() as client:
                page = await client.list_multipart_uploads(Bucket=self._store.bucket, Prefix=prefix, **markers)
            found = page.get("Uploads", [])
            for each in found:
                yield OpenUpload(each["Key"], each["UploadId"], each["Initiated"])
            if not (page.get("IsTruncated") and found):
                return
            markers = {"KeyMarker": found[-1]["Key"], "UploadIdMarker": found[-1]["UploadId"]}

    # ---- Objects.

    async def head(self, key: str) -> ObjectInfo | None:
        """What is known of an object; None if there is none."""
        try:
            async with self._calling(key) as client:
                found = await client.head_object(Bucket=self._store.bucket, Key=key, ChecksumMode="ENABLED")
        except ObjectMissing:
            # This answer has no body that says what is missing. A lost bucket must not look like lost objects.
            await self.check()
            return None
        whole = found.get("ChecksumType", "FULL_OBJECT") == "FULL_OBJECT"
        return ObjectInfo(
            size=found["ContentLength"],
            media_type=found.get("ContentType", ""),
            sha256=_digest(found.get("ChecksumSHA256")) if whole else None,
            etag=found["ETag"],
        )

    async def read(self, key: str, *, first: int, last: int) -> bytes:
        """The bytes from `first` to `last`, both included, or as many of them as there are. Raises ObjectMissing."""
        try:
            async with self._calling(key) as client:
                found = await client.get_object(Bucket=self._store.bucket, Key=key, Range=f"bytes={first}-{last}")
                async with found["Body"] as body:
                    return await body.read()
        except ObjectRefused as refusal:
            if refusal.code == "InvalidRange":
                return b""
            raise

    async def stream(self, key: str) -> AsyncGenerator[bytes, None]:
        """The object in chunks, each within the store's `seconds`. Raises ObjectMissing. To be closed if it is left early."""
        async with self._calling(key) as client:
            found = await client.get_object(Bucket=self._store.bucket, Key=key)
        async with found["Body"] as body:
            while True:
                async with self._calling(key):
                    chunk = await body.read(CHUNK_BYTES)
                if not chunk:
                    return
                yield chunk

    async def put(self, key: str, data: bytes, *, media_type: str) -> None:
        """Write a whole object, in place of an older one. Readers see the old or the new one."""
        async with self._calling(key) as client:
            await client.put_object(
                Bucket=self._store.bucket,
                Key=key,
                Body=data,
                ContentType=media_type,
                ChecksumSHA256=_base64(sha256(data).digest()),
            )

    async def delete(self, keys: Iterable[str]) -> None:
        """Delete objects. One that does not exist is no error. If this raises, some may be deleted."""
        waiting = list(keys)
        for begin in range(0, len(waiting), DELETED_AT_ONCE):
            objects: list[Any] = [{"Key": key} for key in waiting[begin : begin + DELETED_AT_ONCE]]
            async with self._calling() as client:
                done = await client.delete_objects(
                    Bucket=self._store.bucket, Delete={"Objects": objects, "Quiet": True}
                )
            for fault in done.get("Errors", []):
                code = fault.get("Code", "")
                if code not in _GONE:
                    raise ObjectStoreUnavailable(code) if code in _BUSY else ObjectRefused(code)

    async def list(self, prefix: str, *, after: str = "", most: int = 1000) -> ObjectPage:
        """Up to `most`, at most 1,000, objects whose keys begin with `prefix` and come after `after`."""
        async with self._calling() as client:
            page = await client.list_objects_v2(
                Bucket=self._store.bucket, Prefix=prefix, StartAfter=after, MaxKeys=most
            )
        found = [StoredObject(each["Key"], each["Size"], each["LastModified"]) for each in page.get("Contents", [])]
        return ObjectPage(found, more=page.get("IsTruncated", False))

    @asynccontextmanager
    async def _calling(self, key: str = "", *, seconds: float | None = None) -> AsyncIterator[S3Client]:
        """Bound a call by a time and type its errors."""
        try:
            async with asyncio.timeout(max(seconds or 0, self._store.seconds)):
                yield await self._client()
        except ClientError as error:
            raise _typed(error, key) from error
        except (
            *(NotConnected, HTTPClientError, IncompleteReadError, ResponseParserError),
            *(aiohttp.ClientError, TimeoutError, OSError),
        ) as error:
            raise ObjectStoreUnavailable(f"the object store does not answer ({type(error).__name__})") from error

    async def _client(self) -> S3Client:
        async with self._opening:
            if self._opened:
                return self._opened
            opened: S3Client = await self._closing.enter_async_context(_connect(self._store))
            self._opened = opened
            return opened


def _connect(store: ObjectStore) -> Any:
    session = AioSession()
    # Botocore would take what it finds in the environment and in the home folder of whoever runs the process.
    settings = session.get_component("config_store")
    for name, (_, _, default, _) in BOTOCORE_DEFAUT_SESSION_VARIABLES.items():
        settings.set_config_provider(name, ConstantProvider(default))
    for name in ("config_file", "credentials_file"):
        settings.set_config_provider(name, ConstantProvider(os.devnull))
    return session.create_client(
        "s3",
        region_name=store.region,
        endpoint_url=store.endpoint,
        aws_access_key_id=store.access_key,
        aws_secret_access_key=store.secret_key,
        config=AioConfig(
            signature_version="s3v4",
            s3={"addressing_style": store.addressing},
            connect_timeout=min(2.0, store.seconds),
            read_timeout=store.seconds,
            # The second attempt is for a connection that the server closed while nobody used it.
            retries={"mode": "standard", "total_max_attempts": 2},
            max_pool_connections=50,
            proxies={},
            # Checksums where we say so: not every server knows those that botocore would add.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def _typed(error: ClientError, key: str) -> Exception:
    code = error.response.get("Error", {}).get("Code", "")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
    if code in _GONE or (status == 404 and key and code != "NoSuchBucket"):
        return ObjectMissing(key)
    if status >= 500 or status in (403, 404, 429) or code in _BUSY:
        return ObjectStoreUnavailable(f"the object store answers {status} {code}")
    return ObjectRefused(code)


def _base64(digest: bytes) -> str:
    return b64encode(digest).decode()


def _digest(checksum: str | None) -> bytes | None:
    """The digest of a checksum; None for that of several parts, which ends in their number."""
    return b64decode(checksum) if checksum and "-" not in checksum else None
