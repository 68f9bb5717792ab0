"""Forks processes that have imported everything: a life begins in milliseconds, so that hundreds of them can be killed.

python -m tests.pipeline.zygote

Reads lines `{"begin": life}`. Answers `{"life": number, "pid": pid}`, and when it is over `{"life": number, "status": status}`.
It must not start a thread or an event loop, nor open a gRPC channel: none of them would survive the fork.
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

from .lives import Life

_PR_SET_PDEATHSIG = 1


def main() -> None:
    libc = ctypes.CDLL(None)
    # What is here now is never collected, so that the children need not copy the pages of it.
    gc.collect()
    gc.freeze()
    hears, tells = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(tells)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    living: dict[int, int] = {}
    unread = b""
    while True:
        ready, _, _ = select.select([0, hears], [], [])
        if hears in ready:
            os.read(hears, 4096)
            _bury(living)
        if 0 in ready:
            chunk = os.read(0, 1 << 16)
            if not chunk:
                # The children end with this process.
                return
            *orders, unread = (unread + chunk).split(b"\n")
            for order in orders:
                life = Life.read(json.loads(order)["begin"])
                pid = os.fork()
                if pid == 0:
                    _live(life, libc)
                living[pid] = life.number
                _say({"life": life.number, "pid": pid})


def _live(life: Life, libc: ctypes.CDLL) -> NoReturn:
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        os.dup2(os.open(os.devnull, os.O_RDWR), 0)
        # What it says is none of the answers.
        os.dup2(2, 1)
        life.live()
        code = 0
    except BaseException:  # a child must never return into the parent's loop
        with (life.place.folder / "log").open("a") as log:
            traceback.print_exc(file=log)
    finally:
        os._exit(code)


def _bury(living: dict[int, int]) -> None:
    while living:
        pid, status = os.waitpid(-1, os.WNOHANG)
        if pid == 0:
            return
        _say({"life": living.pop(pid), "status": status})


def _say(message: dict[str, int]) -> None:
    os.write(1, json.dumps(message).encode() + b"\n")


if __name__ == "__main__":
    main()
