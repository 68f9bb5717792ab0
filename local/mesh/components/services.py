"""The process table: every Python process of the mesh, what it needs and which secrets it may read.

Each service is one entry of `TABLE`; `components` turns the entries into processes. To add a service, add an entry here
and its ports to `local.layout.PORT_OFFSETS`.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from local.layout import Layout
from local.mesh import credentials
from local.mesh.components import mailsink, postgres, redis
from local.mesh.writers import Writer
from local.settings import REPOSITORY, LocalSettings, inherited_environment, users_settings
from local.supervision import health
from local.supervision.component import Component

MESH_KEY = "storymesh_mesh_key"
SEAL_KEY = "storymesh_seal_key"
CODE_PEPPER = "storymesh_code_pepper"
REFRESH_KEY = "storymesh_refresh_key"
SIGNING_KEY_SECRET = "storymesh_signing_key_secret"
CURSOR_KEY = "storymesh_cursor_key"

# Decided by the runner for each process; one value for all of them would be wrong.
DECIDED = {
    "STORYMESH_AUTH_TARGET",
    "STORYMESH_DATABASE_URL",
    "STORYMESH_LISTEN",
    "STORYMESH_METRICS_LISTEN",
    "STORYMESH_REDIS_URL",
    "STORYMESH_SECRETS_DIR",
    "STORYMESH_STORY_TARGET",
}
# Settings of the runner itself, which tells the story service of the writer what it has chosen.
RUNNERS_OWN = {f"STORYMESH_{name.upper()}" for name in LocalSettings.model_fields}

DEFAULT_DRAIN_SECONDS = 10.0
"""What the services allow themselves unless STORYMESH_DRAIN_SECONDS says otherwise."""
DRAIN_MARGIN_SECONDS = 5.0


@dataclass(frozen=True)
class Service:
    """One service. These keys are the only secrets it gets besides its own database and Redis addresses."""

    name: str
    keys: tuple[str, ...] = ()
    """Known to this service alone: the same name in another service is another value."""

    shared_keys: tuple[str, ...] = (MESH_KEY,)
    """The same value in every service that lists the name."""

    database: bool = True
    worker: bool = True
    serve_needs: tuple[str, ...] = ()
    worker_needs: tuple[str, ...] = ()
    private_settings: tuple[str, ...] = ()
    """Beginnings of the settings that only this service may see when the caller has set them."""

    @property
    def all_keys(self) -> tuple[str, ...]:
        return self.keys + self.shared_keys


TABLE = (
    Service("auth", keys=(CODE_PEPPER, REFRESH_KEY, SIGNING_KEY_SECRET, CURSOR_KEY), shared_keys=(MESH_KEY, SEAL_KEY)),
    Service(
        "story",
        keys=(CURSOR_KEY,),
        private_settings=("STORYMESH_OPENAI_", "STORYMESH_WRITER", "STORYMESH_MODEL_PATH", "STORYMESH_STORIES_"),
    ),
    Service(
        "notification",
        keys=(CURSOR_KEY,),
        shared_keys=(MESH_KEY, SEAL_KEY),
        worker_needs=(mailsink.NAME,),
        private_settings=("STORYMESH_SMTP_", "STORYMESH_MAIL_FROM", "STORYMESH_PUBLIC_URL"),
    ),
    Service("ratelimit", database=False, worker=False),
)

RATE_LIMIT_RULES = REPOSITORY / "services" / "ratelimit" / "rules" / "local.yaml"


# One machine has one person, and that may be a test or a benchmark.
ROOMY_QUOTAS = {
    "STORYMESH_STORIES_UNFINISHED": "1000",
    "STORYMESH_STORIES_A_DAY": "100000",
    "STORYMESH_STORIES_BACKLOG": "10000",
}


def specifics(service: Service, layout: Layout, writer: Writer) -> dict[str, str]:
    """The settings one service gets on one machine besides those every service gets."""
    match service.name:
        case "story":
            model = {"STORYMESH_MODEL_PATH": str(writer.model_path)} if writer.model_path else {}
            return {"STORYMESH_WRITER": writer.name} | ROOMY_QUOTAS | model
        case "notification":
            return {
                "STORYMESH_SMTP_HOST": "127.0.0.1",
                "STORYMESH_SMTP_PORT": str(layout.port(mailsink.NAME)),
                "STORYMESH_MAIL_FROM": "Storymesh <stories@storymesh.localhost>",
                "STORYMESH_PUBLIC_URL": layout.edge_url,
            }
        case "ratelimit":
            return {"STORYMESH_RATE_LIMIT_RULES": str(RATE_LIMIT_RULES)}
        case _:
            return {}


def serving() -> tuple[str, ...]:
    """The processes that Envoy sends requests to."""
    return tuple(service.name for service in TABLE)


def components(layout: Layout, writer: Writer) -> Iterator[Component]:
    """Every process of every service, each with an environment of its own."""
    for service in TABLE:
        yield from _Processes(service, layout, writer).components()


def share_secrets(layout: Layout) -> None:
    """Write each service's secrets. Addresses are written anew each time, because ports may have changed."""
    credentials.share(layout.secrets, {service.name: service.shared_keys for service in TABLE})
    databases, users = postgres.Databases(layout), redis.Users(layout)
    for service in TABLE:
        folder = layout.secrets / service.name
        for name in service.keys:
            credentials.read_or_create(folder / name, credentials.key)
        credentials.write(folder / "storymesh_redis_url", users.url(service.name))
        if service.database:
            credentials.write(folder / "storymesh_database_url", databases.url(service.name))


@dataclass(frozen=True)
class _Processes:
    service: Service
    layout: Layout
    writer: Writer
    _environment: dict[str, str] = field(default_factory=inherited_environment)

    def components(self) -> Iterator[Component]:
        service = self.service
        serve_needs = (redis.NAME, *service.serve_needs)
        if service.database:
            migrate = f"{service.name}-migrate"
            yield self._job(migrate, "migrate", (postgres.NAME,))
            serve_needs = (migrate, *serve_needs)
        yield self._server(service.name, "serve", serve_needs)
        if service.worker:
            for name in self._workers():
                yield self._server(name, "worker", (*serve_needs, *service.worker_needs))

    def _workers(self) -> list[str]:
        if self.service.name == "story":
            return [f"story-worker-{number}" for number in range(1, self.layout.settings.story_workers + 1)]
        return [f"{self.service.name}-worker"]

    def _job(self, name: str, verb: str, needs: tuple[str, ...]) -> Component:
        return Component(
            name=name,
            command=self._command(verb),
            needs=needs,
            environment=self._settings(),
            directory=REPOSITORY,
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
            ports=self.layout.ports(name, metrics),
            probe=health.grpc_serving(address),
            drain_seconds=self._drain_seconds(),
        )

    def _command(self, verb: str) -> tuple[str, ...]:
        return (sys.executable, "-m", f"services.{self.service.name}", verb)

    def _settings(self) -> dict[str, str]:
        """What the runner decides, what this machine suggests and the caller may override, and nothing of other services."""
        decided = {
            "STORYMESH_SECRETS_DIR": str(self.layout.secrets / self.service.name),
            "STORYMESH_AUTH_TARGET": self.layout.address("auth"),
            "STORYMESH_STORY_TARGET": self.layout.address("story"),
        }
        suggested = {"STORYMESH_ENVIRONMENT": "development"} | specifics(self.service, self.layout, self.writer)
        return self._environment | suggested | self._users_settings() | decided

    def _users_settings(self) -> dict[str, str]:
        others = [other for other in TABLE if other is not self.service]
        foreign_keys = {name.upper() for other in others for name in other.all_keys} - {
            name.upper() for name in self.service.all_keys
        }
        foreign = tuple(beginning for other in others for beginning in other.private_settings)
        return {
            name: value
            for name, value in users_settings().items()
            if value and name not in DECIDED | RUNNERS_OWN | foreign_keys and not name.startswith(foreign)
        }

    def _drain_seconds(self) -> float:
        """A little more than the service allows itself."""
        try:
            return float(users_settings().get("STORYMESH_DRAIN_SECONDS", "")) + DRAIN_MARGIN_SECONDS
        except ValueError:
            return DEFAULT_DRAIN_SECONDS + DRAIN_MARGIN_SECONDS
