"""The map of a mesh: where in the state directory things lie, and which port belongs to whom."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from local import folders
from local.failures import of_os_error
from local.settings import LocalSettings

# Unix socket paths hold 104 bytes on macOS and 108 on Linux, terminator included.
LONGEST_SOCKET_PATH = 100

_SERVED = {
    "auth": 10,
    "auth-worker": 11,
    "story": 20,
    "notification": 30,
    "notification-worker": 31,
    "ratelimit": 40,
}
_STORY_WORKERS = range(1, 17)

# Distance of each component's port from STORYMESH_BASE_PORT. A service's numbers are 5 further on, those of story workers 20.
PORT_OFFSETS = {
    "envoy-admin": 0,
    "postgres": 1,
    "redis": 2,
    "mail": 3,
    "edge-internal": 4,
    **_SERVED,
    **{f"{name}-metrics": offset + 5 for name, offset in _SERVED.items()},
    **{f"story-worker-{number}": 49 + number for number in _STORY_WORKERS},
    **{f"story-worker-{number}-metrics": 69 + number for number in _STORY_WORKERS},
}


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
        return self.settings.base_port + PORT_OFFSETS[component]

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
