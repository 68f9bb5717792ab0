"""A fork server: it has imported everything, so a process starts in milliseconds and a test can kill hundreds of them.

python -m tests.pipeline.forkserver_process

Reads lines `{"start": spec}`. Writes `{"process": number, "pid": pid}` when the process has started, and
`{"process": number, "status": status}`, with the status of waitpid, when it has ended. It must start no thread and no event loop,
and open no gRPC channel: none of them survives a fork.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import select
import signal
import traceback
from typing import NoReturn

from mesh.event_routes import routes
from services.story.adapters.writers import composer as _composer  # noqa: F401  # else each story worker imports it

from .processes import ProcessSpec

_PR_SET_PDEATHSIG = 1


def main() -> None:
    libc = ctypes.CDLL(None)
    routes()  # kept: each worker would import all manifests for it
    # The garbage collector of a child must not write to the objects that exist now: the kernel would copy their pages.
    gc.collect()
    gc.freeze()
    wakeup_read, wakeup_write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(wakeup_write)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    running: dict[int, int] = {}
    unread = b""
    while True:
        ready, _, _ = select.select([0, wakeup_read], [], [])
        if wakeup_read in ready:
            os.read(wakeup_read, 4096)
            _report_ended(running)
        if 0 in ready:
            chunk = os.read(0, 1 << 16)
            if not chunk:
                # The children end with this process.
                return
            *requests, unread = (unread + chunk).split(b"\n")
            for request in requests:
                spec = ProcessSpec.read(json.loads(request)["start"])
                pid = os.fork()
                if pid == 0:
                    _run_child(spec, libc)
                running[pid] = spec.number
                _write({"process": spec.number, "pid": pid})


def _run_child(spec: ProcessSpec, libc: ctypes.CDLL) -> NoReturn:
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        # Standard output carries the reports of the fork server alone.
        os.dup2(2, 1)
        spec.run()
        code = 0
    except BaseException:  # a child must never return into the parent's loop
        with (spec.environment.folder / "log").open("a") as log:
            traceback.print_exc(file=log)
    finally:
        os._exit(code)


def _report_ended(running: dict[int, int]) -> None:
    while running:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        _write({"process": running.pop(pid), "status": status})


def _write(message: dict[str, int]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
