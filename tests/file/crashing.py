"""Forks file workers that are killed right after a step: `python -m tests.file.crashing <settings>`.

Reads lines of JSON: `{"start": label, "folder": ...}` starts a worker that dies after its first step of that label, or of nothing
if the label is empty, and writes its steps into the folder; `{}` kills it. Writes the status of each worker that has ended. Steps
are what tests/pipeline counts as such, and the calls that change the object store.
"""

from __future__ import annotations

import functools
import gc
import json
import logging
import os
import select
import signal
import sys
from pathlib import Path
from typing import Any

import aiobotocore.client
import uvloop

from mesh.event_routes import routes
from services.file.__main__ import work
from services.file.config import FileWorkerSettings
from tests.pipeline import boundaries
from tests.pipeline.failpoints import Failpoints, Moment, Stop

ROLE = "file"
_READ_ONLY = ("Head", "Get", "List")


def main() -> None:
    settings = FileWorkerSettings.model_validate(json.loads(sys.argv[1]))
    routes()  # kept: each worker would import all manifests for it
    gc.freeze()
    read, write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    child = 0
    while True:
        ready, _, _ = select.select([0, read], [], [])
        if read in ready:
            os.read(read, 4096)
            ended, status = os.waitpid(-1, os.WNOHANG) if child else (0, 0)
            if ended:
                child = 0
                print(os.waitstatus_to_exitcode(status), flush=True)
        if 0 in ready:
            line = os.read(0, 4096).decode()
            told = json.loads(line or "{}")
            if told:
                child = _start(settings, told["start"], Path(told["folder"]))
            elif child:
                os.kill(child, signal.SIGKILL)
            if not line:
                return


def _start(settings: FileWorkerSettings, label: str, folder: Path) -> int:
    if child := os.fork():
        return child
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        os.dup2(2, 1)
        logging.basicConfig(level=logging.ERROR)
        stops = [Stop(ROLE, 1, Moment.AFTER, label=label)] if label else []
        failpoints = Failpoints(folder, ROLE, 1, stops)
        boundaries.install(failpoints)
        _watch_objects(failpoints)
        uvloop.run(work(settings))
    finally:
        os._exit(1)


def _watch_objects(failpoints: Failpoints) -> None:
    client: Any = aiobotocore.client.AioBaseClient
    call = client._make_api_call

    @functools.wraps(call)
    async def watched(self: Any, operation: str, parameters: Any) -> Any:
        changes = not operation.startswith(_READ_ONLY)
        if changes:
            failpoints.begins(f"S3 {operation}")
        answer = await call(self, operation, parameters)
        if changes:
            failpoints.ends(f"S3 {operation}")
        return answer

    client._make_api_call = watched


if __name__ == "__main__":
    main()
