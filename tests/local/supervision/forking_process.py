"""A supervisor that starts one module by a fork server and then waits to be killed."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path

from local.settings import REPOSITORY, inherited_environment
from local.supervision.fork_server import ForkServer, Start


async def main(folder: Path, module: str, *arguments: str) -> None:
    environment = inherited_environment()
    server = ForkServer(environment, REPOSITORY, folder / "fork-server.log")
    await server.spawn(Start(module, arguments, environment, str(REPOSITORY), str(folder / "log"), signal.SIGINT))
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), *sys.argv[2:]))
