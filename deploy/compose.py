"""Renders docker-compose.yml from the manifests.

Every container runs without capabilities and new privileges, with a read-only root, as a numeric user and with a memory limit.
Ports are published on the loopback interface only; STORYMESH_PUBLISH_ADDRESS changes that for the edge.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import yaml

from deploy import buckets
from deploy.keys import S3, secrets_of
from deploy.process_settings import SETTINGS
from mesh.catalog import callees, manifests
from mesh.manifest import OBJECT_STORE, Manifest

Config = dict[str, Any]

HEADER = """\
# The mesh in containers, with Jaeger for traces (http://127.0.0.1:16686) and Mailpit for mail (http://127.0.0.1:8025).
#
#   docker compose up --build
#
# Compose 2.26 or newer: each service mounts only its own folder of the secrets' volume.
# Made by `make deploy` from the manifests; the reasons are in deploy/compose.py. Edit those.
"""

POSTGRES, REDIS = "postgres:18.6", "redis:8.2"
MAILPIT, JAEGER = "axllent/mailpit:v1.27", "jaegertracing/jaeger:2.10.0"

OUR_USER = "10001:10001"
"""The user of the mesh's own image, as in the Dockerfile."""
STORES_USER = "999:999"
"""The user that the images of Postgres and Redis create. Starting as this user needs no capability to switch to it."""
VOLUMES_OWNER = "0:0"
"""Root, who owns a new volume. Without capabilities, root can write only its own files."""
NOBODY = "65534:65534"

_SCRATCH = ("/tmp",)  # noqa: S108 - each container has its own

SERVER_PORT, METRICS_PORT, STATISTICS_PORT = 50051, 9464, 9902
S3_PORT = S3.rpartition(":")[2]
SERVERS = {"mail": "mailpit", OBJECT_STORE: OBJECT_STORE}
"""Containers of the servers in a manifest's `needs`."""

DONE, HEALTHY, STARTED = "service_completed_successfully", "service_healthy", "service_started"


def rendered() -> str:
    """The text of docker-compose.yml."""
    return HEADER + yaml.dump(document(), Dumper=_NoAliases, sort_keys=False, default_flow_style=None, width=120)


def document() -> Config:
    """The compose project. Raises ValueError when a manifest needs a server that has no container."""
    objects = bool(buckets.holders(manifests()))
    containers = {**_steps(objects=objects), **_servers()}
    if objects:
        containers[OBJECT_STORE] = _object_store()
    for name, manifest in manifests().items():
        containers |= _service(name, manifest)
    volumes = ("postgres", "redis", *(["objects"] if objects else []), "secrets")
    return {
        "name": "storymesh",
        "services": {**containers, "envoy": _envoy()},
        "volumes": {name: {} for name in volumes},
    }


def _steps(*, objects: bool) -> Config:
    """The jobs that run to completion before the services, at every start, because a service may have been added."""
    return {
        "keys": {
            **_our_step(["python", "-m", "deploy", "keys", "/secrets"], {}),
            "user": VOLUMES_OWNER,
            "volumes": ["secrets:/secrets"],
        },
        "stores": {
            **_our_step(
                [
                    *("python", "-m", "deploy", "stores", "/secrets"),
                    *(["--origins", "${STORYMESH_S3_ORIGINS:-}"] if objects else []),
                ],
                {"keys": DONE, "postgres": HEALTHY, "redis": HEALTHY, **({OBJECT_STORE: HEALTHY} if objects else {})},
            ),
            "volumes": ["secrets:/secrets:ro"],
        },
    }


def _servers() -> Config:
    return {
        "postgres": {
            **_confined(POSTGRES, STORES_USER, memory="1G", tmpfs=[*_SCRATCH, "/var/run/postgresql"]),
            "restart": "unless-stopped",
            # Leaves time for the checkpoint at shutdown.
            "stop_grace_period": "60s",
            "environment": {"POSTGRES_PASSWORD_FILE": "/secrets/password"},
            "volumes": ["postgres:/var/lib/postgresql", _secrets("postgres")],
            "healthcheck": _check(["CMD", "pg_isready", "-h", "127.0.0.1", "-U", "postgres"]),
            "depends_on": _after({"keys": DONE}),
        },
        "redis": {
            **_confined(REDIS, STORES_USER, memory="1G"),
            "restart": "unless-stopped",
            "stop_grace_period": "60s",
            # A full Redis refuses writes instead of evicting codes and events. Rewriting its log needs the rest of the memory.
            "command": [
                *("redis-server", "--appendonly", "yes", "--maxmemory", "512mb", "--maxmemory-policy", "noeviction"),
                *("--aclfile", "/secrets/users.acl"),
            ],
            "volumes": ["redis:/data", _secrets("redis")],
            # NOAUTH also shows that the server is up; the check has no password.
            "healthcheck": _check(["CMD-SHELL", "redis-cli ping | grep -Eq 'PONG|NOAUTH'"]),
            "depends_on": _after({"keys": DONE}),
        },
        "mailpit": {
            **_confined(MAILPIT, NOBODY, memory="256M"),
            "restart": "unless-stopped",
            "ports": ["127.0.0.1:8025:8025"],
        },
        "jaeger": {
            **_confined(JAEGER, OUR_USER, memory="1G"),
            "restart": "unless-stopped",
            "ports": ["127.0.0.1:16686:16686"],
        },
    }


def _object_store() -> Config:
    """SeaweedFS from the mesh's own image, whose lock names it: the program that the local runner starts, too."""
    options = {
        "dir": "/objects",
        "ip": "127.0.0.1",
        "ip.bind": "127.0.0.1",
        "filer": "true",
        "s3": "true",
        "s3.ip.bind": "0.0.0.0",  # noqa: S104 - a container's
        "s3.port": S3_PORT,
        "s3.config": f"/secrets/{buckets.KEYS}",
        **buckets.OPTIONS,
    }
    ready = f"from urllib.request import urlopen; urlopen('http://127.0.0.1:{S3_PORT}/healthz', timeout=2)"
    return {
        **_our_server(
            ["weed", "-logtostderr=true", "server", *(f"-{name}={value}" for name, value in options.items())],
            {"keys": DONE},
        ),
        # Asked to end, it waits 17 s for streams of its own; what it has acknowledged, a kill does not take away.
        "stop_signal": "SIGKILL",
        "environment": {"GOMEMLIMIT": "512MiB", "HOME": "/secrets"},
        "working_dir": "/secrets",
        "volumes": ["objects:/objects", _secrets(OBJECT_STORE)],
        "healthcheck": _check(["CMD", "python", "-c", ready]),
        "ports": [f"${{STORYMESH_PUBLISH_ADDRESS:-127.0.0.1}}:${{STORYMESH_S3_PORT:-{S3_PORT}}}:{S3_PORT}"],
    }


def _service(name: str, manifest: Manifest) -> Config:
    """The containers of one service: its migrations, its server and its workers."""
    environment = {
        # Production refuses development secrets; the step `keys` makes real ones.
        "STORYMESH_ENVIRONMENT": "production",
        "STORYMESH_SECRETS_DIR": "/secrets",
        "STORYMESH_LISTEN": f"0.0.0.0:{SERVER_PORT}",
        "STORYMESH_METRICS_LISTEN": f"0.0.0.0:{METRICS_PORT}",
        **_overridable({"OTLP_ENDPOINT": "http://jaeger:4317"}),
        **{f"STORYMESH_{callee.upper()}_TARGET": f"{callee}:{SERVER_PORT}" for callee in callees(name)},
        **_overridable(_bucket(name, manifest) | dict(manifest.container_settings)),
    }
    if unknown := [each for each in manifest.needs if each not in SERVERS]:
        raise ValueError(f"{name}: needs: there is no container {', '.join(unknown)}; there are {', '.join(SERVERS)}")
    before = {"stores": DONE, **{SERVERS[each]: STARTED for each in manifest.needs if each != OBJECT_STORE}}
    own = {"volumes": [_secrets(name)], "environment": _passed(name, manifest) | environment}
    containers: Config = {}
    if manifest.database:
        migrate = {**_our_step(["python", "-m", f"services.{name}", "migrate"], {"stores": DONE}), **own}
        containers[f"{name}-migrate"] = migrate
        before = {f"{name}-migrate": DONE} | before
    containers[name] = {**_our_server(["python", "-m", f"services.{name}", "serve"], before), **own}
    if manifest.workers:
        worker = {**_our_server(["python", "-m", f"services.{name}", "worker"], before), **own}
        passed = _passed(f"{name}-worker", manifest)
        worker["environment"] = passed | environment | _overridable(manifest.worker_container_settings)
        worker["deploy"] = {"replicas": manifest.workers, **worker["deploy"]}
        containers[f"{name}-worker"] = worker
    return containers


def _bucket(name: str, manifest: Manifest) -> dict[str, str]:
    """Settings of the service's bucket. Signed addresses lead to the published port."""
    if OBJECT_STORE not in manifest.needs:
        return {}
    return buckets.settings_of(name, f"http://{S3}", f"http://127.0.0.1:${{STORYMESH_S3_PORT:-{S3_PORT}}}")


def _envoy() -> Config:
    """The container of the edge. Its statistics are open to Prometheus in this network, its admin interface only to loopback."""
    settings = {
        "listen": "0.0.0.0:8080",
        "admin": "127.0.0.1:9901",
        "internal": "127.0.0.1:9903",
        "statistics": f"0.0.0.0:{STATISTICS_PORT}",
        **{f"services.{name}": f"{name}:{SERVER_PORT}" for name in manifests()},
        "tracing.otlp": "jaeger:4317",
    }
    ready = "from urllib.request import urlopen; urlopen('http://127.0.0.1:9901/ready', timeout=2)"
    return {
        # Above the heap size at which Envoy answers 503.
        **_our_server(
            _set(["python", "envoy", "serve"], settings), dict.fromkeys(manifests(), HEALTHY), memory="1536M"
        ),
        "healthcheck": _check(["CMD", "python", "-c", ready]),
        "ports": ["${STORYMESH_PUBLISH_ADDRESS:-127.0.0.1}:${STORYMESH_PORT:-8080}:8080"],
        "expose": [str(STATISTICS_PORT)],
    }


def _set(command: Sequence[str], settings: Mapping[str, str]) -> list[str]:
    return [*command, *(part for name, value in settings.items() for part in ("--set", f"{name}={value}"))]


def _our_step(command: Sequence[str], after: Mapping[str, str]) -> Config:
    return {
        **_confined("storymesh", OUR_USER, memory="512M"),
        "build": ".",
        "command": list(command),
        "restart": "no",
        **({"depends_on": _after(after)} if after else {}),
    }


def _our_server(command: Sequence[str], after: Mapping[str, str], memory: str = "1G") -> Config:
    probe = ["CMD", "python", "-m", "kit.runtime.probe", f"127.0.0.1:{SERVER_PORT}"]
    return {
        **_our_step(command, after),
        "deploy": _limit(memory),
        "restart": "unless-stopped",
        "stop_grace_period": "20s",
        "healthcheck": _check(probe, interval="5s"),
    }


def _confined(image: str, user: str, *, memory: str, tmpfs: Sequence[str] = _SCRATCH) -> Config:
    return {
        "image": image,
        "user": user,
        "read_only": True,
        "tmpfs": list(tmpfs),
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges:true"],
        "deploy": _limit(memory),
    }


def _limit(memory: str) -> Config:
    return {"resources": {"limits": {"memory": memory}}}


def _secrets(folder: str) -> Config:
    """The mount of one folder of the volume of secrets; a container sees no other."""
    return {
        "type": "volume",
        "source": "secrets",
        "target": "/secrets",
        "read_only": True,
        "volume": {"subpath": folder},
    }


def _overridable(settings: Mapping[str, str]) -> dict[str, str]:
    """Settings that the caller's environment overrides, with the manifest's values as defaults."""
    return {f"STORYMESH_{name}": f"${{STORYMESH_{name}:-{value}}}" for name, value in settings.items()}


def _passed(process: str, manifest: Manifest) -> dict[str, None]:
    """The settings that the process takes from the caller's environment: all that it reads, save secrets and addresses in here.

    A variable without a value is passed on as it is, and left out where the caller has none: then the process's default holds.
    """
    made = {name.removeprefix("storymesh_").upper() for name in secrets_of(manifest)}
    return {
        f"STORYMESH_{name}": None for name in SETTINGS[process] if name not in made and not name.endswith("_TARGET")
    }


def _check(test: Iterable[str], interval: str = "2s") -> Config:
    return {"test": list(test), "interval": interval, "timeout": "5s", "start_period": "30s"}


def _after(conditions: Mapping[str, str]) -> Config:
    return {name: {"condition": condition} for name, condition in conditions.items()}


class _NoAliases(yaml.SafeDumper):
    """A YAML dumper without aliases, so that the text of one container is complete."""

    def ignore_aliases(self, data: Any) -> bool:
        return True
