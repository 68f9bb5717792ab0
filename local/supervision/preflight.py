"""Checks before anything starts; each failure is one sentence that says what to do."""

import errno
import shutil
import socket
from collections.abc import Callable, Iterable
from pathlib import Path

import psutil

from local.failures import LocalError
from local.layout import Port
from local.supervision.component import Component

FreeBytes = Callable[[Path], int]


def free_bytes(path: Path) -> int:
    """Free bytes on the disk that holds `path`, as far as this user may use them."""
    return shutil.disk_usage(path).free


def check_space(root: Path, megabytes: int, reader: FreeBytes = free_bytes) -> None:
    """Refuse a nearly full disk, because a database that runs out of space while it works is worse than one that never starts."""
    free = reader(root) // 1_000_000
    if free < megabytes:
        raise LocalError(
            f"The disk that holds {root} has {free} MB free and the mesh wants {megabytes} MB: free some space, "
            "move the mesh with STORYMESH_STATE_DIR, or lower STORYMESH_MIN_FREE_MEGABYTES."
        )


def check_ports(components: Iterable[Component]) -> None:
    """Refuse a port that another program listens on; the error names the component, the program and what to do."""
    for component in components:
        for port in component.ports:
            check_port(component.name, port)


def check_port(name: str, port: Port) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        # Connections of an earlier mesh in TIME_WAIT do not prevent a server from binding, so they must not fail this check.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port.number))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise LocalError(
                    f"Port {port.number}, which {name} wants, is taken by {_owner(port.number)}: "
                    f"stop that one, or choose another port with {port.variable}."
                ) from None
            raise LocalError(
                f"Port {port.number}, which {name} wants, cannot be used ({error.strerror}): "
                f"choose another port with {port.variable}."
            ) from None


def _owner(port: int) -> str:
    """The process that listens on the port, as `pid 12 (python3 app.py)`, as far as this user may know."""
    try:
        connections = psutil.net_connections(kind="tcp")
    except psutil.AccessDenied:
        return "another process"
    for connection in connections:
        if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,) and connection.pid:
            try:
                command = " ".join(psutil.Process(connection.pid).cmdline())
            except psutil.Error:
                return f"pid {connection.pid}"
            return f"pid {connection.pid} ({command[:80]})"
    return "another process"
