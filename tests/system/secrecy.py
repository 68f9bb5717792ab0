"""Looks for secrets wherever the mesh leaves traces: logs, spans, databases, Redis, command lines and environments."""

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

# What a log line's numbers say is no secret, and one of them may be any code.
_NUMBERS = re.compile(rb'":\s*-?\d+(\.\d+)?')


@dataclass
class Secrets:
    """By what each is called in a failure, so that a failure shows none."""

    texts: dict[str, set[bytes]] = field(default_factory=dict)
    codes: set[str] = field(default_factory=set)

    def add(self, name: str, *texts: str) -> None:
        """Found as it is, and as it would stand in JSON, in Redis' words, in a URL, in base64 or in hexadecimal digits."""
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
        """Those of a sign-in or a refresh. Their letters stand for themselves everywhere."""
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
        """What a service, or a server, was given in files: keys, and the passwords in addresses."""
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
        """`what in where`, for everything that is found."""
        # Digits that belong to a longer word, number or fraction are none of ours.
        codes = re.compile(rb"(?<![\w.\-])(" + "|".join(self.codes or {"^$"}).encode() + rb")(?![\w\-])")
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
    """How far the logs and the spans were when a test began: what others did before is not its matter."""

    log_sizes: dict[Path, int]
    exports: int

    @classmethod
    def now(cls, mesh: RunningMesh, collector: Collector) -> Self:
        return cls({file: file.stat().st_size for file in mesh.layout.logs.iterdir()}, len(collector.exports))


def logs(mesh: RunningMesh, begun: Beginning) -> Iterator[Piece]:
    for file in mesh.layout.logs.iterdir():
        yield f"the log {file.name}", _NUMBERS.sub(b'":', file.read_bytes()[begun.log_sizes.get(file, 0) :])


def spans(collector: Collector, begun: Beginning) -> Iterator[Piece]:
    """Whole exports: names, attributes, events and what else there may be."""
    for export in collector.exports[begun.exports :]:
        for resource in export.resource_spans:
            services = [each.value.string_value for each in resource.resource.attributes if each.key == "service.name"]
            for scope in resource.scope_spans:
                for span in scope.spans:
                    yield f"a span of {services[0]}, {span.name}", span.SerializeToString()


def processes(mesh: RunningMesh) -> Iterator[Piece]:
    """Those of the supervisor and of everything under it."""
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
    """Every command that anybody sends to Redis meanwhile: most of what is written there stays for an instant only."""
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
