"""Ports for test runs that happen side by side."""

import contextlib
import fcntl
import os
import random
import socket
import tempfile
from collections.abc import Iterator
from pathlib import Path

from local.layout import PORT_OFFSETS
from local.settings import PORTS_IN_A_MESH

FIRST_BLOCK, LAST_BLOCK = 20_000, 32_000
"""Blocks of ports for tests: above the default mesh and below every system's ephemeral range."""
EDGE_OFFSET = PORTS_IN_A_MESH - 1


@contextlib.contextmanager
def reserved_ports() -> Iterator[int]:
    """A block of ports that no other test run on this machine uses meanwhile. Yields the first of them.

    A lock file claims the block, because a port that is merely free at one moment is free for every parallel run.
    """
    folder = Path(tempfile.gettempdir()) / f"storymesh-ports-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    blocks = list(range(FIRST_BLOCK, LAST_BLOCK, PORTS_IN_A_MESH))
    random.shuffle(blocks)
    for base in blocks:
        descriptor = os.open(folder / str(base), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if all(_free(base + offset) for offset in (*PORT_OFFSETS.values(), EDGE_OFFSET)):
                yield base
                return
        except BlockingIOError:
            continue
        finally:
            os.close(descriptor)
    raise RuntimeError(f"no block of {PORTS_IN_A_MESH} free ports between {FIRST_BLOCK} and {LAST_BLOCK}")


def _free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
