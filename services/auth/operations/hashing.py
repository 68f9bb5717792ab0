"""Hashes passwords in a process of its own, one after the other; `hash_processes` starts it.

It shares no interpreter lock with the event loop, so that it can have the lowest priority: a thread put off while it held the lock
would hold every call up. It knows argon2 and nothing of the mesh, to be small and quick to start. What it reads and answers goes
over standard input and output, each part after its length; it ends when they are closed, and so with whoever started it.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import struct
import sys
from collections.abc import Sequence

from argon2 import PasswordHasher, Type
from argon2.exceptions import Argon2Error, InvalidHashError

_NICENESS = 10

LENGTH = struct.Struct(">I")
RIGHT, WRONG = b"right", b"wrong"


def hasher_of(memory_kib: int, passes: int) -> PasswordHasher:
    return PasswordHasher(
        time_cost=passes, memory_cost=memory_kib, parallelism=1, hash_len=32, salt_len=16, type=Type.ID
    )


def framed(message: bytes) -> bytes:
    return LENGTH.pack(len(message)) + message


def job_of(password: str, stored: str = "") -> bytes:
    """To be hashed, or verified against the stored hash. No hash contains NUL, a password may."""
    return stored.encode() + b"\0" + password.encode()


def main(arguments: Sequence[str]) -> None:
    _prepare()
    memory_kib, passes = map(int, arguments)
    hasher = hasher_of(memory_kib, passes)
    jobs = sys.stdin.buffer
    while len(header := jobs.read(LENGTH.size)) == LENGTH.size:
        (length,) = LENGTH.unpack(header)
        job = jobs.read(length)
        if len(job) < length:
            return
        stored, _, password = job.partition(b"\0")
        answer = framed(_answer(hasher, stored, password))
        try:
            os.write(sys.stdout.fileno(), answer)
        except BrokenPipeError:
            return


def _answer(hasher: PasswordHasher, stored: bytes, password: bytes) -> bytes:
    if not stored:
        return hasher.hash(password).encode()
    try:
        hasher.verify(stored, password)
    except (Argon2Error, InvalidHashError):
        return WRONG
    return RIGHT


def _prepare() -> None:
    # These also come to whole groups of processes; this one is needed until the drain is over, and ends with its parent.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    _step_back()


def _step_back() -> None:
    """Takes what the event loop leaves, so that a flood of sign-ins does not hold other calls up.

    SCHED_IDLE gives way at once, a nice process only after its slice. It does not prefer other services: each container, and on one
    machine each session (autogroup), gets its share of the processors first.
    """
    if sys.platform == "linux":
        # Not every sandbox has it.
        with contextlib.suppress(OSError):
            os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
            return
    os.nice(_NICENESS)


if __name__ == "__main__":
    main(sys.argv[1:])
