"""The rate-limit service of envoyproxy, built from its module, as a peer to compare with."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import pytest

MODULE = "github.com/envoyproxy/ratelimit"
VERSION = "v1.4.1-0.20260122083618-3fb702589d36"


class Peer:
    """The built service, and the folder of its module with the documentation."""

    def __init__(self, binary: Path, module: Path) -> None:
        self._binary = binary
        self._module = module

    def examples(self) -> list[str]:
        """The rules that its documentation shows and its examples have, in which something is to be filled in left out."""
        shown = re.findall(
            r"^```yaml\n(domain:.*?)^```", (self._module / "README.md").read_text(), re.DOTALL | re.MULTILINE
        )
        files = sorted((self._module / "examples/ratelimit/config").glob("*.yaml"))
        return [text for text in (*shown, *(file.read_text() for file in files)) if "<" not in text]

    @contextmanager
    def serving(self, rules: Path, redis_url: str, folder: Path) -> Iterator[str]:
        """Serve the rules of a folder; yields the address."""
        redis = urlsplit(redis_url)
        ports = _free_ports(3)
        environment = {
            "PATH": os.environ["PATH"],
            "USE_STATSD": "false",
            "LOG_LEVEL": "WARN",
            "REDIS_SOCKET_TYPE": "tcp",
            "REDIS_URL": f"{redis.hostname}:{redis.port}",
            "REDIS_AUTH": f"{redis.username}:{redis.password}",
            "RUNTIME_ROOT": str(rules.parent),
            "RUNTIME_SUBDIRECTORY": "",
            "RUNTIME_APPDIRECTORY": rules.name,
            "RUNTIME_WATCH_ROOT": "false",
            **{f"{name}HOST": "127.0.0.1" for name in ("", "GRPC_", "DEBUG_")},
            **{f"{name}PORT": str(port) for name, port in zip(("GRPC_", "", "DEBUG_"), ports, strict=True)},
        }
        with (folder / "peer.log").open("w") as log:
            process = subprocess.Popen([self._binary], env=environment, stdout=log, stderr=log)
            try:
                yield f"127.0.0.1:{ports[0]}"
            finally:
                process.terminate()
                process.wait(20)


def build(folder: Path) -> Peer:
    """Build the service. Skips the test where there is no Go, or its modules cannot be had."""
    go = shutil.which("go")
    if go is None:
        pytest.skip("the decisions of envoyproxy/ratelimit are compared only where Go is installed")
    (folder / "go.mod").write_text("module peer\n\ngo 1.25\n")
    (folder / "peer.go").write_text(f'package peer\n\nimport _ "{MODULE}/src/service"\n')
    environment = os.environ | {"GOFLAGS": "-mod=mod -buildvcs=false"}

    def run(*arguments: str) -> str:
        done = subprocess.run(
            [go, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=600, check=False
        )
        if done.returncode:
            said = done.stderr.strip().splitlines() or ["no reason given"]
            pytest.skip(f"the modules of envoyproxy/ratelimit cannot be had: {said[-1]}")
        return done.stdout

    run("get", f"{MODULE}/src/service_cmd@{VERSION}")
    run("build", "-o", "peer", f"{MODULE}/src/service_cmd")
    module = Path(json.loads(run("list", "-m", "-json", MODULE))["Dir"])
    return Peer(folder / "peer", module)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    try:
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]
    finally:
        for each in sockets:
            each.close()
