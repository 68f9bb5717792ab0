"""Checks sent by h2load, whose processor time is a small part of what the limiters need."""

from __future__ import annotations

import re
import resource
import shutil
import struct
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from foreign import rls_pb2

from local.failures import LocalError

METHOD = "/envoy.service.ratelimit.v3.RateLimitService/ShouldRateLimit"

_CONNECTIONS = 4
"""Each has callers of its own. Envoy opens one for each of its threads."""

_DATA = re.compile(r"\((\d+)\) data")
_GRACE_SECONDS = 30.0


@dataclass
class Seen:
    """Results of one generator or more."""

    answers: int = 0
    failed: int = 0
    data_bytes: int = 0
    seconds: float = 0.0
    own_cpu_seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    """Of each answer, in seconds."""

    @property
    def rate(self) -> float:
        return self.answers / self.seconds


def require() -> None:
    """Raises LocalError without h2load."""
    if shutil.which("h2load") is None:
        raise LocalError(
            "this benchmark needs h2load (Debian, Ubuntu: apt install nghttp2-client; macOS: brew install nghttp2)"
        )


def request(person: int) -> rls_pb2.RateLimitRequest:
    """What Envoy asks for a call of somebody who is signed in."""
    return rls_pb2.RateLimitRequest(
        domain="storymesh",
        descriptors=[
            rls_pb2.RateLimitDescriptor(
                entries=[
                    rls_pb2.RateLimitDescriptor.Entry(key="class", value="default"),
                    rls_pb2.RateLimitDescriptor.Entry(key=key, value=value),
                ]
            )
            for key, value in (
                ("client_ip", f"192.0.2.{person}/32"),
                ("user", f"0198f3a1-0000-7000-8000-{person:012d}"),
            )
        ],
    )


def checks(address: str, folder: Path, *, in_flight: int, seconds: float) -> Seen:
    """Keeps so many checks in flight, each begun when another is answered (a closed loop)."""
    connections = min(in_flight, _CONNECTIONS)
    commands = []
    for person in range(connections):
        message = request(person).SerializeToString()
        body = folder / f"body-{person}"
        body.write_bytes(struct.pack(">BI", 0, len(message)) + message)
        headers = ["--header=content-type: application/grpc", "--header=te: trailers", f"--data={body}"]
        commands.append([f"--max-concurrent-streams={in_flight // connections}", *headers, f"http://{address}{METHOD}"])
    return _measured(commands, folder, seconds)


def requests(port: int, folder: Path, *, connections: int, seconds: float) -> Seen:
    """Keeps one request in flight on each of so many connections of HTTP/1.1."""
    return _measured(
        [["--h1", f"--clients={connections}", f"http://127.0.0.1:{port}/"]], folder, seconds, clients=connections
    )


def _measured(commands: Sequence[Sequence[str]], folder: Path, seconds: float, *, clients: int = 1) -> Seen:
    logs = [folder / f"latencies-{number}" for number in range(len(commands))]
    common = [f"--duration={round(1000 * seconds)}ms", "--warm-up-time=0", "--threads=1"]
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    generators = []
    for command, log in zip(commands, logs, strict=True):
        log.unlink(missing_ok=True)
        own = [] if clients > 1 else ["--clients=1"]
        line = ["h2load", *common, *own, f"--log-file={log}", *command]
        generators.append(subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True))  # noqa: S603  # see above
    seen = Seen()
    for generator in generators:
        output, _ = generator.communicate(timeout=seconds + _GRACE_SECONDS)
        found = _DATA.search(output)
        if generator.returncode or found is None:
            raise LocalError(f"h2load failed: {output.strip()[-500:]}")
        seen.data_bytes += int(found[1])
    seen.seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seen.own_cpu_seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    for log in logs:
        for row in log.read_text().splitlines():
            _, status, microseconds = row.split("\t")[:3]
            if status == "200":
                seen.answers += 1
                seen.latencies.append(int(microseconds) / 1e6)
            else:
                seen.failed += 1
    return seen
