"""Reserves ports for test runs in parallel."""

import contextlib
import random
import socket
from collections.abc import Iterator

from local.layout import port_offsets
from mesh.catalog import PORTS_IN_A_MESH

FIRST_BLOCK, LAST_BLOCK = 20_000, 32_000
"""Range of the blocks of ports for tests: above the default mesh and below every system's ephemeral range."""
EDGE_OFFSET = PORTS_IN_A_MESH - 1
CLAIM_OFFSET = PORTS_IN_A_MESH - 2


@contextlib.contextmanager
def reserved_ports() -> Iterator[int]:
    """Reserve a block of ports against other test runs on this machine. Yields the first port.

    The reservation is a socket bound to one port of the block that no component uses: checking that ports are free would give all
    parallel runs the same ones. The kernel enforces it between users too, and ends it with this process.
    """
    blocks = list(range(FIRST_BLOCK, LAST_BLOCK, PORTS_IN_A_MESH))
    random.shuffle(blocks)
    for base in blocks:
        with socket.socket() as claim:
            try:
                claim.bind(("127.0.0.1", base + CLAIM_OFFSET))
            except OSError:
                continue
            if all(_free(base + offset) for offset in (*port_offsets().values(), EDGE_OFFSET)):
                yield base
                return
    raise RuntimeError(f"no block of {PORTS_IN_A_MESH} free ports between {FIRST_BLOCK} and {LAST_BLOCK}")


def _free(port: int) -> bool:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
