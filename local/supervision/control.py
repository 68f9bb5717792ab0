"""Orders to a running supervisor: stop, start or restart one component, or change the writer.

The protocol is one JSON line each way over a Unix socket.
"""

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from local.failures import LocalError

Verb = Literal["stop", "start", "restart", "write-with"]

ANSWER_SECONDS = 90.0


@dataclass(frozen=True)
class Order:
    verb: Verb
    name: str
    """The name of the component or the writer."""


@contextlib.asynccontextmanager
async def served(path: Path, obey: Callable[[Order], Awaitable[None]]) -> AsyncIterator[None]:
    """Take orders at the socket `path`, in a directory that only its owner may enter. A LocalError is sent back as the answer."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        failure = ""
        try:
            await obey(Order(**json.loads(await reader.readline())))
        except LocalError as error:
            failure = str(error)
        except (ValueError, TypeError) as error:
            failure = f"The order cannot be read: {error}."
        writer.write(json.dumps({"failure": failure}).encode() + b"\n")
        with contextlib.suppress(ConnectionError):
            await writer.drain()
        writer.close()

    _remove(path)
    server = await asyncio.start_unix_server(answer, path)
    try:
        yield
    finally:
        server.close()
        _remove(path)


def _remove(path: Path) -> None:
    path.unlink(missing_ok=True)


def send(path: Path, order: Order) -> None:
    """Give an order and wait until it is carried out. Raises LocalError with the sentence that the supervisor answers."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
        connection.settimeout(ANSWER_SECONDS)
        try:
            connection.connect(str(path))
            connection.sendall(json.dumps(asdict(order)).encode() + b"\n")
            line = connection.makefile().readline()
        except OSError as error:
            raise LocalError(
                f"The mesh takes no orders ({error.strerror or error}): it is down or still starting; "
                "see `python -m local status`."
            ) from None
    if not line:
        raise LocalError("The mesh went down before it carried out the order.")
    if failure := json.loads(line)["failure"]:
        raise LocalError(failure)
