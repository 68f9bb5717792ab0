"""The paths of one mesh in its state directory, and the port of each component."""

import functools
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from local import folders
from local.failures import of_os_error
from local.settings import LocalSettings
from mesh.catalog import FIRST_STORE_PORT, manifests

# A Unix socket path is limited to 104 bytes on macOS and 108 on Linux, including the terminator.
LONGEST_SOCKET_PATH = 100

_SERVERS = ("envoy-admin", "postgres", "redis", "mail", "edge-internal")
_OBJECT_STORE = (
    *("s3", "s3-grpc", "s3-master", "s3-master-grpc"),
    *("s3-volume", "s3-volume-grpc", "s3-filer", "s3-filer-grpc"),
)


@functools.cache
def port_offsets() -> Mapping[str, int]:
    """Offset of each component's port, and of each process's metrics port, from STORYMESH_BASE_PORT."""
    offsets = {name: offset for offset, name in enumerate(_SERVERS)}
    offsets |= {name: offset for offset, name in enumerate(_OBJECT_STORE, FIRST_STORE_PORT)}
    for service, manifest in manifests().items():
        for port, process in enumerate(manifest.processes(service), manifest.port):
            offsets[process] = port
            offsets[f"{process}-metrics"] = port + manifest.metrics_offset
    return offsets


@dataclass(frozen=True)
class Port:
    """A port on the loopback interface, and the variable that changes it."""

    number: int
    variable: str


@dataclass(frozen=True)
class Layout:
    """Every path and port of one mesh, derived from its settings alone."""

    settings: LocalSettings

    @property
    def root(self) -> Path:
        return self.settings.state_dir

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def mail(self) -> Path:
        return self.root / "mail"

    @property
    def secrets(self) -> Path:
        return self.root / "secrets"

    @property
    def run(self) -> Path:
        """Folder of the files that describe the running mesh: its lock, its state and its rendered configurations."""
        return self.root / "run"

    @property
    def lock(self) -> Path:
        """File lock that the supervisor holds while it runs; the kernel releases it when the supervisor dies."""
        return self.run / "lock"

    @property
    def state(self) -> Path:
        return self.run / "state.json"

    @property
    def control_socket(self) -> Path:
        """The supervisor's Unix socket; in a private folder in /tmp when the state directory's path is too long for a socket.

        TMPDIR is not used: its path may be too long as well, and may differ between two shells of one user.
        """
        here = self.run / "control.sock"
        if len(os.fsencode(here)) <= LONGEST_SOCKET_PATH:
            return here
        digest = hashlib.sha256(os.fsencode(self.root)).hexdigest()[:16]
        return Path(f"/tmp/storymesh-{os.getuid()}") / f"{digest}.sock"  # noqa: S108 - see folders.own

    def log(self, component: str) -> Path:
        return self.logs / f"{component}.log"

    def port(self, component: str) -> int:
        return self.settings.base_port + port_offsets()[component]

    def ports(self, *components: str) -> tuple[Port, ...]:
        """The named components' ports, for the check that no other program listens on them."""
        return tuple(Port(self.port(component), "STORYMESH_BASE_PORT") for component in components)

    def address(self, component: str) -> str:
        return f"127.0.0.1:{self.port(component)}"

    @property
    def edge_url(self) -> str:
        return f"http://127.0.0.1:{self.settings.port}"

    def create(self) -> None:
        """Create the directories; those that hold secrets, codes or logs are accessible to their owner only.

        The root and `data` can be traversed by all: where there is no /proc, the account that runs Postgres must reach its data.
        """
        try:
            for directory in (self.root, self.data):
                directory.mkdir(mode=0o755, parents=True, exist_ok=True)
            for directory in (self.logs, self.mail, self.secrets, self.run):
                directory.mkdir(mode=0o700, exist_ok=True)
            if self.control_socket.parent != self.run:
                folders.own(self.control_socket.parent, 0o700)
            probe = self.run / "writable"
            probe.write_bytes(b"")
            probe.unlink()
        except OSError as error:
            raise of_os_error(error, self.root) from error
