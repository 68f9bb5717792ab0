"""The map of a mesh: where in the state directory things lie, and which port belongs to whom."""

import functools
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from local import folders
from local.failures import of_os_error
from local.settings import LocalSettings
from mesh.catalog import manifests

# Unix socket paths hold 104 bytes on macOS and 108 on Linux, terminator included.
LONGEST_SOCKET_PATH = 100

_SERVERS = ("envoy-admin", "postgres", "redis", "mail", "edge-internal")


@functools.cache
def port_offsets() -> Mapping[str, int]:
    """Distance of each component's port, and of each service's port for metrics, from STORYMESH_BASE_PORT."""
    offsets = {name: offset for offset, name in enumerate(_SERVERS)}
    for service, manifest in manifests().items():
        for port, process in enumerate(manifest.processes(service), manifest.port):
            offsets[process] = port
            offsets[f"{process}-metrics"] = port + manifest.metrics_offset
    return offsets


@dataclass(frozen=True)
class Port:
    """A port of this machine's loopback, and the variable that moves it."""

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
        """What describes the running mesh: its lock, its state and its rendered configurations."""
        return self.root / "run"

    @property
    def lock(self) -> Path:
        """Locked by the supervisor for as long as it lives, so that a dead one never looks alive."""
        return self.run / "lock"

    @property
    def state(self) -> Path:
        return self.run / "state.json"

    @property
    def control_socket(self) -> Path:
        """The supervisor's socket; in a folder of this user's in /tmp when the state directory lies too deep for one.

        Not where TMPDIR points, which may be deep as well and differ between the shells of one person.
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
        """The named components' ports, for the check that nobody else holds them."""
        return tuple(Port(self.port(component), "STORYMESH_BASE_PORT") for component in components)

    def address(self, component: str) -> str:
        return f"127.0.0.1:{self.port(component)}"

    @property
    def edge_url(self) -> str:
        return f"http://127.0.0.1:{self.settings.port}"

    def create(self) -> None:
        """Make the directories; only their owner may look into those that hold secrets, codes or logs.

        The root and `data` stay open to traverse: where there is no /proc, the account that runs Postgres must get there.
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
