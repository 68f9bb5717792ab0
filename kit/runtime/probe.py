"""Asks a process of the mesh for its health, for container engines that can only run a command.

Usage: python -m kit.runtime.probe HOST:PORT [SERVICE]; exit code 0 when it is serving.
"""

from __future__ import annotations

import sys
from typing import Any

import grpc
from grpc_health.v1 import health_pb2
from grpc_health.v1.health_pb2_grpc import HealthStub


def serving(address: str, service: str = "") -> bool:
    """False also when nothing answers within 2 s."""
    with grpc.insecure_channel(address) as channel:
        stub: Any = HealthStub(channel)  # the stubs of this package know no methods
        try:
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=2)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


if __name__ == "__main__":
    sys.exit(not serving(*sys.argv[1:]))
