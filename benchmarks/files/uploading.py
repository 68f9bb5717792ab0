"""Clients that upload, in a process of their own so that their processor time is not that of the servers."""

from __future__ import annotations

import hashlib
import json
import os
import time
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

MEDIA_TYPE = "application/pdf"
_HEAD = b"%PDF-1.7\n"
_SECONDS = 120


@dataclass(frozen=True)
class Server:
    """Where to upload, and as whom."""

    port: int
    token: str


def signed(server: Server, size: int, count: int) -> float:
    """Declares, uploads and completes `count` files of `size` bytes, one after the other. Returns the seconds it took."""

    def upload(connection: HTTPConnection, store: dict[str, HTTPConnection], data: bytes, number: int) -> None:
        declared = {
            "purpose": "FILE_PURPOSE_DOCUMENT",
            "name": f"file-{number}.pdf",
            "size": len(data),
            "media_type": MEDIA_TYPE,
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        created = _asked(connection, "/v1/files", declared, server.token)
        request = created["upload"]
        parts = urlsplit(request["url"])
        place = store.setdefault(parts.netloc, HTTPConnection(parts.hostname or "", parts.port, timeout=_SECONDS))
        _sent(place, "PUT", f"{parts.path}?{parts.query}", request["headers"], data)
        _asked(connection, f"/v1/files/{created['file']['id']}:complete", {}, server.token)

    return _each(server, size, count, upload)


def passed(server: Server, size: int, count: int) -> float:
    """Uploads `count` files of `size` bytes to the contender, one after the other. Returns the seconds it took."""

    def upload(connection: HTTPConnection, _: dict[str, HTTPConnection], data: bytes, number: int) -> None:
        headers = {
            "authorization": f"Bearer {server.token}",
            "content-type": MEDIA_TYPE,
            "checksum": b64encode(hashlib.sha256(data).digest()).decode(),
        }
        _sent(connection, "PUT", f"/v1/files?name=file-{number}.pdf", headers, data)

    return _each(server, size, count, upload)


def _each(
    server: Server,
    size: int,
    count: int,
    upload: Callable[[HTTPConnection, dict[str, HTTPConnection], bytes, int], None],
) -> float:
    stores: dict[str, HTTPConnection] = {}
    connection = HTTPConnection("127.0.0.1", server.port, timeout=_SECONDS)
    rest = os.urandom(size - len(_HEAD) - 16)
    began = time.perf_counter()
    for number in range(count):
        # Other bytes each time, which costs less than to make all of them anew.
        upload(connection, stores, _HEAD + os.urandom(16) + rest, number)
    took = time.perf_counter() - began
    for each in (connection, *stores.values()):
        each.close()
    return took


def _asked(connection: HTTPConnection, path: str, body: Mapping[str, object], token: str) -> dict[str, Any]:
    headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
    answer: dict[str, Any] = json.loads(_sent(connection, "POST", path, headers, json.dumps(body).encode()))
    return answer


def _sent(connection: HTTPConnection, method: str, path: str, headers: Mapping[str, str], body: bytes) -> bytes:
    others = {name: value for name, value in headers.items() if name.lower() != "content-length"}
    connection.request(method, path, body, {**others, "content-length": str(len(body))})
    answer = connection.getresponse()
    text = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{path.partition('?')[0]} was answered with {answer.status}: {text[:500]!r}")
    return text
