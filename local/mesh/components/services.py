"""The process table, from the manifests: every Python process of the mesh, what it needs and which secrets it may read."""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from deploy import buckets
from local.failures import LocalError
from local.layout import Layout
from local.mesh import credentials
from local.mesh.components import mailsink, postgres, redis, s3
from local.mesh.writers import LocalWriter
from local.settings import REPOSITORY, LocalSettings, inherited_environment, users_settings
from local.supervision import health
from local.supervision.component import Component
from mesh.catalog import callees, manifests
from mesh.manifest import Manifest

PREFIX = "STORYMESH_"

# Set by the runner for each process; one value for all of them would be wrong.
DECIDED = {
    PREFIX + name
    for name in (
        *("DATABASE_URL", "LISTEN", "METRICS_LISTEN", "REDIS_URL", "SECRETS_DIR"),
        *(f"{service.upper()}_TARGET" for service in manifests()),
    )
}
# Settings of the runner, which passes its choice on in the services' own writer settings.
RUNNERS_OWN = {PREFIX + name.upper() for name in LocalSettings.model_fields}

DEFAULT_DRAIN_SECONDS = 10.0
"""The services' default drain time, if STORYMESH_DRAIN_SECONDS is not set."""
DRAIN_MARGIN_SECONDS = 5.0


def serving() -> tuple[str, ...]:
    """Names of the processes that Envoy sends requests to."""
    return tuple(manifests())


def components(layout: Layout, writer: LocalWriter) -> Iterator[Component]:
    """Every process of every service, each with its own environment."""
    for name, manifest in manifests().items():
        yield from _Processes(name, manifest, layout, writer).components()


def share_secrets(layout: Layout) -> None:
    """Write each service's secrets. Addresses are rewritten at each start, because ports may have changed."""
    credentials.share(layout.secrets, {name: tuple(map(_file, each.shared_keys)) for name, each in manifests().items()})
    databases, users, store = postgres.Databases(layout), redis.Users(layout), s3.Store(layout)
    holders = buckets.holders(manifests())
    for name, manifest in manifests().items():
        folder = layout.secrets / name
        for key in manifest.keys:
            credentials.read_or_create(folder / _file(key), credentials.key)
        credentials.write(folder / _file("redis_url"), users.url(name))
        if name in holders:
            credentials.write(folder / _file(buckets.SECRET), store.secret(name))
        if manifest.database:
            credentials.write(folder / _file("database_url"), databases.url(name))


def _file(setting: str) -> str:
    return f"{PREFIX}{setting}".lower()


@dataclass(frozen=True)
class _Processes:
    service: str
    manifest: Manifest
    layout: Layout
    writer: LocalWriter
    _environment: dict[str, str] = field(default_factory=inherited_environment)

    def components(self) -> Iterator[Component]:
        needs = (redis.NAME, *self.manifest.needs)
        if self.manifest.database:
            migrate = f"{self.service}-migrate"
            yield self._job(migrate, "migrate", (postgres.NAME,))
            needs = (migrate, *needs)
        server, *workers = self.manifest.processes(self.service, self.layout.settings.workers(self.service))
        yield self._server(server, "serve", needs)
        for name in workers:
            yield self._server(name, "worker", needs)

    def _job(self, name: str, verb: str, needs: tuple[str, ...]) -> Component:
        return Component(
            name=name,
            command=self._command(verb),
            needs=needs,
            environment=self._settings(),
            directory=REPOSITORY,
            forked=True,
            once=True,
        )

    def _server(self, name: str, verb: str, needs: tuple[str, ...]) -> Component:
        address, metrics = self.layout.address(name), f"{name}-metrics"
        return Component(
            name=name,
            command=self._command(verb),
            needs=needs,
            environment=self._settings()
            | {"STORYMESH_LISTEN": address, "STORYMESH_METRICS_LISTEN": self.layout.address(metrics)},
            directory=REPOSITORY,
            forked=True,
            ports=self.layout.ports(name, metrics),
            probe=health.grpc_serving(address),
            drain_seconds=self._drain_seconds(),
        )

    def _command(self, verb: str) -> tuple[str, ...]:
        return (sys.executable, "-m", f"services.{self.service}", verb)

    def _settings(self) -> dict[str, str]:
        """The environment of a service's processes: the runner's settings, its defaults that the caller may override, the caller's.

        Settings of other services are left out.
        """
        decided = {"STORYMESH_SECRETS_DIR": str(self.layout.secrets / self.service)} | {
            f"{PREFIX}{callee.upper()}_TARGET": self.layout.address(callee) for callee in callees(self.service)
        }
        suggested = {"STORYMESH_ENVIRONMENT": "development"} | self._object_store() | self._suggested()
        return self._environment | suggested | self._users_settings() | decided

    def _object_store(self) -> dict[str, str]:
        if s3.NAME not in self.manifest.needs:
            return {}
        endpoint = s3.Store(self.layout).endpoint
        return {PREFIX + name: value for name, value in buckets.settings_of(self.service, endpoint, endpoint).items()}

    def _suggested(self) -> dict[str, str]:
        """The manifest's `local_settings` with their placeholders filled in. A setting whose value becomes empty is left unset."""
        known = {
            "edge_url": self.layout.edge_url,
            "mail_port": self.layout.port(mailsink.NAME),
            "model_path": self.writer.model_path or "",
            "writer": self.writer.name,
        }
        filled = {}
        for name, text in self.manifest.local_settings.items():
            try:
                filled[PREFIX + name] = text.format(**known)
            except (KeyError, IndexError, ValueError):
                raise LocalError(
                    f"services/{self.service}/manifest.py: local_settings: {name}={text!r} has a placeholder that is none of "
                    f"{', '.join(sorted(known))}."
                ) from None
        return {name: value for name, value in filled.items() if value}

    def _users_settings(self) -> dict[str, str]:
        others = [manifest for name, manifest in manifests().items() if name != self.service]
        foreign_keys = {key for other in others for key in other.all_keys} - set(self.manifest.all_keys)
        hidden = DECIDED | RUNNERS_OWN | {PREFIX + key.upper() for key in foreign_keys}
        foreign = tuple(PREFIX + beginning for other in others for beginning in other.private_settings)
        return {
            name: value
            for name, value in users_settings().items()
            if value and name not in hidden and not name.startswith(foreign)
        }

    def _drain_seconds(self) -> float:
        """Seconds until the runner kills a draining service: slightly more than the service's own drain time."""
        try:
            return float(users_settings().get("STORYMESH_DRAIN_SECONDS", "")) + DRAIN_MARGIN_SECONDS
        except ValueError:
            return DEFAULT_DRAIN_SECONDS + DRAIN_MARGIN_SECONDS
