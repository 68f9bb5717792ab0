"""Searches logs, spans, databases, Redis, command lines and environments of the mesh for secrets."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, quote_plus, urlsplit

import psutil
from redis.asyncio import Redis

from kit.runtime import base64url
from kit.runtime.development_secrets import KEY_MARK
from local.harness import RunningMesh
from local.supervision.state import MeshRecord
from tests.system.collector import Collector
from tests.system.remains import Piece

# Numeric fields of log lines are not searched, because by chance one may equal a code.
_NUMBERS = re.compile(rb'":\s*-?\d+(\.\d+)?')


@dataclass
class Secrets:
    """Secrets by name. A failed test shows names only."""

    texts: dict[str, set[bytes]] = field(default_factory=dict)
    codes: set[str] = field(default_factory=set)

    def add(self, name: str, *texts: str) -> None:
        """Add a secret, to be found as it is and as escaped in JSON, by Redis, in a URL, in base64 and in hexadecimal."""
        forms = self.texts.setdefault(name, set())
        for text in texts:
            spellings = {
                text,
                json.dumps(text)[1:-1],
                repr(text.encode())[2:-1],
                quote(text, safe=""),
                quote_plus(text),
            }
            forms |= {each.encode() for each in spellings} | _encoded(text.encode())

    def add_tokens(self, body: dict[str, Any]) -> None:
        """Add the tokens of a sign-in or refresh. Their characters need no escaping anywhere."""
        header, claims, signature = str(body["tokens"]["access_token"]).split(".")
        for name, text in (
            ("an access token", f"{header}.{claims}"),
            ("an access token's signature", signature),
            ("a refresh token", body["tokens"]["refresh_token"]),
            ("a device token", body.get("device_token")),
        ):
            if text:
                self.texts.setdefault(name, set()).add(str(text).encode())

    def add_folder(self, folder: Path) -> None:
        """Add the secrets in a folder of files for a service or server: keys, and passwords in URLs."""
        for file in sorted(folder.rglob("*")):
            if not file.is_file():
                continue
            name, written = f"{file.parent.name}/{file.name}", file.read_text().strip()
            if "://" in written:
                self.add(name, str(urlsplit(written).password))
            elif written.startswith(KEY_MARK):
                key = base64url.decode(written.removeprefix(KEY_MARK))
                self.add(name, written)
                self.texts[name] |= {key} | _encoded(key)
            else:
                self.add(name, written)

    def found_in(self, pieces: Iterable[Piece]) -> set[str]:
        """Return "NAME in PLACE" for each secret found."""
        # Digits within a longer word, number or fraction are no code.
        codes = re.compile(rb"(?<![\w.\-])(" + "|".join(self.codes or {"(?!)"}).encode() + rb")(?![\w\-])")
        found = set()
        for place, piece in pieces:
            found |= {
                f"{name} in {place}" for name, forms in self.texts.items() if any(each in piece for each in forms)
            }
            if codes.search(piece):
                found.add(f"a code in {place}")
        return found


def _encoded(raw: bytes) -> set[bytes]:
    encodings = (base64.b64encode(raw), base64.urlsafe_b64encode(raw))
    return {raw.hex().encode(), *encodings, *(each.rstrip(b"=") for each in encodings)}


@dataclass(frozen=True)
class Beginning:
    """The lengths of logs and spans when a test begins, so that it searches only what comes later."""

    log_sizes: dict[Path, int]
    exports: int

    @classmethod
    def now(cls, mesh: RunningMesh, collector: Collector) -> Self:
        return cls({file: file.stat().st_size for file in mesh.layout.logs.iterdir()}, len(collector.exports))


def logs(mesh: RunningMesh, begun: Beginning) -> Iterator[Piece]:
    for file in mesh.layout.logs.iterdir():
        yield f"the log {file.name}", _NUMBERS.sub(b'":', file.read_bytes()[begun.log_sizes.get(file, 0) :])


def spans(collector: Collector, begun: Beginning) -> Iterator[Piece]:
    """Yield the spans exported since the beginning, whole: names, attributes, events and all other fields."""
    for export in collector.exports[begun.exports :]:
        for resource in export.resource_spans:
            services = [each.value.string_value for each in resource.resource.attributes if each.key == "service.name"]
            for scope in resource.scope_spans:
                for span in scope.spans:
                    yield f"a span of {services[0]}, {span.name}", span.SerializeToString()


def processes(mesh: RunningMesh) -> Iterator[Piece]:
    """Return the command lines and environments of the supervisor and its descendants."""
    record = MeshRecord.read(mesh.layout.state)
    assert record is not None
    supervisor = psutil.Process(record.supervisor.pid)
    for process in (supervisor, *supervisor.children(recursive=True)):
        try:
            name, folder = process.name(), Path(f"/proc/{process.pid}")
            yield f"the command line of {name}", "\n".join(process.cmdline()).encode()
            yield f"the environment of {name}", (folder / "environ").read_bytes()
        except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
            continue


@asynccontextmanager
async def overheard(redis: Redis) -> AsyncIterator[list[Piece]]:
    """Record every command that Redis receives during the block, because most values stay there only briefly."""
    heard: list[Piece] = []
    async with redis.monitor() as monitor:

        async def listen() -> None:
            while True:
                line = await monitor.connection.read_response(disconnect_on_error=False)
                heard.append(("a command to Redis", line if isinstance(line, bytes) else str(line).encode()))

        listening = asyncio.create_task(listen())
        try:
            yield heard
        finally:
            listening.cancel()
            await asyncio.wait([listening])
