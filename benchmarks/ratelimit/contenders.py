"""The mesh's limiter and envoyproxy/ratelimit on one Redis, and Envoys that ask one of them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import grpc
import yaml
from foreign import rls_pb2, rls_pb2_grpc

from benchmarks.machine import cpu_seconds
from local.failures import LocalError
from local.harness import RunningMesh, running_mesh
from local.mesh.components import envoy
from local.settings import REPOSITORY, inherited_environment, users_settings
from local.supervision.process import guarded

from . import load

PEER_PROGRAM = Path(os.environ.get("VENV", ".venv")) / "bench" / "envoyproxy-ratelimit"
"""Built by `make bench-ratelimit` where Go is installed."""

_RULES = REPOSITORY / "services/ratelimit/rules/local.yaml"
_START_SECONDS = 30.0
_LOOK_SECONDS = 0.05
_PEER_LIMITS = {
    "domain": "storymesh",
    "descriptors": [
        {
            "key": "class",
            "value": "default",
            "descriptors": [
                {"key": key, "rate_limit": {"unit": "second", "requests_per_unit": 10_000}}
                for key in ("client_ip", "user")
            ],
        }
    ],
}
"""Limits per address and person, so wide that all checks are admitted."""


@dataclass(frozen=True)
class Limiter:
    """A limiter that answers at an address."""

    address: str
    cpu_seconds: Callable[[], float]


@contextmanager
def mesh(state_dir: Path) -> Iterator[RunningMesh]:
    """Redis, and the mesh's limiter on it, with rules so wide that all is admitted; the caller's STORYMESH_* variables apply."""
    rules = state_dir.with_name("rules.yaml")
    text = _RULES.read_text()
    wide = text.replace("rate: 10000/s\n    burst: 20000", "rate: 1000000/s\n    burst: 1000000")
    if wide == text:
        raise LocalError(
            f"the rules of the class default in {_RULES} have changed; they have to be widened for this benchmark"
        )
    rules.write_text(wide)
    environment = users_settings() | {"STORYMESH_RATE_LIMIT_RULES": str(rules)}
    with running_mesh(state_dir, only=("redis", "ratelimit"), environment=environment) as running:
        yield running


def ours(running: RunningMesh) -> Limiter:
    limiter = Limiter(running.address("ratelimit"), lambda: cpu_seconds([running.pid("ratelimit")]))
    _until_it_answers(limiter.address)
    return limiter


def peer_installed() -> bool:
    return PEER_PROGRAM.exists()


@contextmanager
def peer(running: RunningMesh, folder: Path) -> Iterator[Limiter]:
    """envoyproxy/ratelimit on the mesh's Redis, with headers in its responses, as ours has."""
    configuration = folder / "runtime" / "ratelimit" / "config" / "limits.yaml"
    configuration.parent.mkdir(parents=True)
    configuration.write_text(yaml.safe_dump(_PEER_LIMITS))
    redis, ports = (
        urlsplit(running.redis_url),
        {name: str(_free_port()) for name in ("GRPC_PORT", "PORT", "DEBUG_PORT")},
    )
    environment = {
        **ports,
        **dict.fromkeys(("GRPC_HOST", "HOST", "DEBUG_HOST"), "127.0.0.1"),
        "RUNTIME_ROOT": str(folder / "runtime"),
        "RUNTIME_SUBDIRECTORY": "ratelimit",
        "RUNTIME_WATCH_ROOT": "false",
        "REDIS_SOCKET_TYPE": "tcp",
        "REDIS_URL": f"{redis.hostname}:{redis.port}",
        "REDIS_AUTH": f"{redis.username}:{redis.password}",
        "USE_STATSD": "false",
        "LOG_LEVEL": "warn",
        "LIMIT_RESPONSE_HEADERS_ENABLED": "true",
    }
    with _process([str(PEER_PROGRAM)], environment, folder / "peer.log") as pid:
        limiter = Limiter(f"127.0.0.1:{ports['GRPC_PORT']}", lambda: cpu_seconds([pid]))
        _until_it_answers(limiter.address)
        yield limiter


@contextmanager
def edge(folder: Path, limiter: Limiter | None, *, quotas: bool = False) -> Iterator[int]:
    """An Envoy that asks the limiter, if any, and hands requests to itself; yields its port.

    With `quotas` it asks nothing and decides by itself, with tokens that the limiter hands it by the quota protocol.
    """
    ports = [_free_port() for _ in range(3)]
    file = folder / f"edge-{ports[0]}.json"
    file.write_text(
        json.dumps(_configuration(ports[0], ports[1], ports[2], limiter.address if limiter else None, quotas))
    )
    command = [str(envoy.program()), "--config-path", str(file), "--concurrency", "2", "--disable-hot-restart"]
    with _process([*command, "--log-level", "warning"], {}, folder / "edge.log"):
        _until(lambda: socket.create_connection(("127.0.0.1", ports[0]), timeout=1).close())
        yield ports[0]


def response(address: str) -> rls_pb2.RateLimitResponse:
    """A limiter's answer to one check."""
    with grpc.insecure_channel(address) as channel:
        return rls_pb2_grpc.RateLimitServiceStub(channel).ShouldRateLimit(load.request(0), timeout=_START_SECONDS)


def _configuration(port: int, upstream: int, admin: int, limiter: str | None, quotas: bool) -> dict[str, Any]:
    """One listener limits each request by address and by person, and another one is the upstream."""
    by = [{"request_headers": {"header_name": ":authority", "descriptor_key": key}} for key in ("client_ip", "user")]
    actions = [
        {"actions": [{"generic_key": {"descriptor_key": "class", "descriptor_value": "default"}}, each]} for each in by
    ]
    asking = {
        "name": "ratelimit",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.http.ratelimit.v3.RateLimit",
            "domain": "storymesh",
            "timeout": "1s",
            "failure_mode_deny": True,
            "rate_limit_service": {
                "grpc_service": {"envoy_grpc": {"cluster_name": "limiter"}},
                "transport_api_version": "V3",
            },
        },
    }
    filters = [] if not limiter else [_deciding(key) for key in ("client_ip", "user")] if quotas else [asking]
    to_upstream = {"cluster": "upstream", "rate_limits": actions if limiter and not quotas else []}
    clusters = [_cluster("upstream", f"127.0.0.1:{upstream}")]
    if limiter:
        clusters.append(_cluster("limiter", limiter, http2=True))
    return {
        "admin": {"address": _address(f"127.0.0.1:{admin}")},
        "static_resources": {
            "listeners": [
                _listener(port, {"route": to_upstream}, filters),
                _listener(upstream, {"direct_response": {"status": 200, "body": {"inline_string": "ok"}}}, []),
            ],
            "clusters": clusters,
        },
    }


def _deciding(key: str) -> dict[str, Any]:
    """The filter that the mesh's edge has for each key (envoy/edge/quotas.py)."""

    def header(name: str) -> dict[str, Any]:
        kind = "type.googleapis.com/envoy.type.matcher.v3.HttpRequestHeaderMatchInput"
        return {"name": name, "typed_config": {"@type": kind, "header_name": name}}

    package = "type.googleapis.com/envoy.extensions.filters.http.rate_limit_quota.v3"
    bucket = {
        "@type": f"{package}.RateLimitQuotaBucketSettings",
        "bucket_id_builder": {"bucket_id_builder": {f"class=default {key}": {"custom_value": header(":authority")}}},
        "reporting_interval": "5s",
    }
    action = {"action": {"name": "bucket", "typed_config": bucket}}
    return {
        "name": f"quota-{key}",
        "typed_config": {
            "@type": f"{package}.RateLimitQuotaFilterConfig",
            "domain": "storymesh",
            "rlqs_server": {"envoy_grpc": {"cluster_name": "limiter"}},
            "bucket_matchers": {"matcher_tree": {"input": header(":path"), "exact_match_map": {"map": {"/": action}}}},
        },
    }


def _listener(port: int, route: Mapping[str, Any], filters: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    router = {
        "name": "router",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
    }
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": str(port),
        "http_filters": [*filters, router],
        "route_config": {
            "virtual_hosts": [{"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, **route}]}]
        },
    }
    return {
        "address": _address(f"127.0.0.1:{port}"),
        "filter_chains": [{"filters": [{"name": "http", "typed_config": manager}]}],
    }


def _cluster(name: str, address: str, *, http2: bool = False) -> dict[str, Any]:
    options = {
        "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
        "explicit_http_config": {"http2_protocol_options": {}},
    }
    return {
        "name": name,
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": _address(address)}}]}],
        },
        **(
            {"typed_extension_protocol_options": {"envoy.extensions.upstreams.http.v3.HttpProtocolOptions": options}}
            if http2
            else {}
        ),
    }


def _address(address: str) -> dict[str, Any]:
    host, _, port = address.rpartition(":")
    return {"socket_address": {"address": host, "port_value": int(port)}}


@contextmanager
def _process(command: Sequence[str], environment: Mapping[str, str], log: Path) -> Iterator[int]:
    """A process that ends with the block, and with this process."""
    with log.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603  # our own program, or the peer that make has built
            guarded(list(command), death_signal=signal.SIGTERM, account=None),
            cwd=REPOSITORY,
            env=inherited_environment() | dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    try:
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def _until_it_answers(address: str) -> None:
    _until(lambda: response(address))


def _until(attempt: Callable[[], object]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        try:
            attempt()
        except (OSError, grpc.RpcError) as error:
            if time.monotonic() > deadline:
                raise LocalError(f"a contender did not start: {error}") from None
            time.sleep(_LOOK_SECONDS)
        else:
            return


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port
